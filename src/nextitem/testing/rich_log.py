"""Small log with every kind of data that a request can have: actions, times, context, labels, users, searches."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from nextitem.core.dataset import Dataset
from nextitem.data.readers import dataset_from_frames

SETTINGS: dict[str, Any] = {
    "repeats": True,
    "interactions": {
        "positive_actions": ["buy", "view"],
        "context": {"device": "categorical", "price": "numeric"},
        "labels": ["rating"],
    },
    "items": {"text": "{title}", "features": {"category": "categorical", "cost": "numeric"}},
    "users": {"features": {"country": "categorical", "age": "numeric", "hobbies": "categorical-list"}},
}
NUM_ITEMS = 12
WORDS = ["tent canvas", "kettle steel", "violin bow"]
HOUR = 3600  # seconds


def rich_log(*, num_users: int = 60, seed: int = 0) -> Dataset:
    """Return the log at the time of training: each item is followed by the next, and the last by the first.

    A user's items are consecutive; actions, context, labels and features are random or missing for some.
    """
    return dataset_from_frames(rich_frames(num_users=num_users, seed=seed), SETTINGS, name="rich")


def longer_log(*, num_users: int = 60, seed: int = 0) -> Dataset:
    """Return the log at a later time: with new users, whose ids sort first, new items, actions and values of context.

    The events of the users of `rich_log` are the same.
    """
    frames = rich_frames(num_users=num_users, seed=seed)
    later = 1_700_000_000 + 10**6
    new = pl.DataFrame(
        {
            "user_id": [f"a{n:02d}" for n in range(39) for _ in range(3)],
            "item_id": ["i03", "a-new-item", "i05"] * 39,
            "timestamp": [later + n for n in range(117)],
            "action": ["add-to-basket", "buy", "buy"] * 39,
            "query": [None] * 117,
            "device": ["abacus", "phone", "tablet"] * 39,
            "price": [0.5, 99.0, 3.0] * 39,
            "rating": [1, 2, 3] * 39,
        },
        schema_overrides={"query": pl.String, "rating": pl.Int64},
    )
    frames["interactions"] = pl.concat([frames["interactions"], new], how="diagonal_relaxed")
    item = pl.DataFrame({"item_id": ["a-new-item"], "title": ["abacus"], "category": ["aaa"], "cost": [1.0]})
    frames["items"] = pl.concat([frames["items"], item], how="diagonal_relaxed")
    user = pl.DataFrame({"user_id": ["a00"], "country": ["AA"], "age": [99.0], "hobbies": [["abseiling"]]})
    frames["users"] = pl.concat([frames["users"], user], how="diagonal_relaxed")
    return dataset_from_frames(frames, SETTINGS, name="rich")


def rich_frames(*, num_users: int = 60, seed: int = 0) -> dict[str, pl.DataFrame]:
    """Return the tables interactions, items and users of `rich_log`."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for user in range(num_users):
        time, item = 1_700_000_000 + int(rng.integers(0, 500) * HOUR), int(rng.integers(NUM_ITEMS))
        for _ in range(int(rng.integers(5, 9))):
            time += int(rng.integers(1, 30)) * HOUR
            item = (item + 1) % NUM_ITEMS
            rows.append(
                {
                    "user_id": f"u{user:02d}",
                    "item_id": f"i{item:02d}",
                    "timestamp": time,
                    "action": str(rng.choice(["buy", "view", "view", "return"])),
                    "query": None,
                    "device": None if rng.random() < 0.1 else str(rng.choice(["phone", "tablet"])),
                    "price": float(item) if rng.random() < 0.9 else None,
                    "rating": int(rng.integers(1, 6)),
                }
            )
        rows.append({**rows[-1], "item_id": None, "timestamp": time - 1, "action": "search", "query": "tent"})
    items = pl.DataFrame(
        {
            "item_id": [f"i{n:02d}" for n in range(NUM_ITEMS)],
            "title": [f"{WORDS[n % 3]} model{n}" for n in range(NUM_ITEMS)],
            "category": [WORDS[n % 3].split()[0] for n in range(NUM_ITEMS)],
            "cost": [float(n) for n in range(NUM_ITEMS)],
        }
    )
    users = pl.DataFrame(
        {
            "user_id": [f"u{user:02d}" for user in range(num_users)],
            "country": [["FR", "NL", None][user % 3] for user in range(num_users)],
            "age": [20.0 + user if user % 4 else None for user in range(num_users)],
            "hobbies": [[["chess"], ["golf", "chess"], None][user % 3] for user in range(num_users)],
        }
    )
    return {"interactions": pl.DataFrame(rows, infer_schema_length=None), "items": items, "users": users}
