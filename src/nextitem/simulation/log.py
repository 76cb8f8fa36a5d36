"""What a policy showed and what customers did, as the tables of a data set folder, from which models can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tomli_w

from nextitem.simulation.answers import CustomerWorld
from nextitem.simulation.rollout import SECONDS_PER_SLOT, Rollout


def log_tables(rollout: Rollout) -> dict[str, pl.DataFrame]:
    """Return the tables of a data set: interactions, items, users and impressions.

    Interactions are those of the world's data, then the clicks and purchases of the rollout. Impressions are those of
    the rollout alone, with slots and propensities: the probability of an item in its slot, given the items above.
    """
    world, former = rollout.world, rollout.world.former_tables()
    shown_items = _shown_items(rollout)
    clicks = shown_items.filter("click")
    events = clicks.select(
        "user_id",
        "item_id",
        (pl.col("time").cast(pl.Int64) + pl.col("slot").cast(pl.Int64) * SECONDS_PER_SLOT).alias("timestamp"),
        pl.when("purchase").then(pl.lit("purchase")).otherwise(pl.lit("click")).alias("action"),
        ("simulated-" + pl.col("visit").cast(pl.String)).alias("session_id"),
    )
    interactions = former["interactions"]
    if "session_id" in interactions.columns:
        interactions = interactions.with_columns(pl.col("session_id").cast(pl.String))
    events = events.select(name for name in events.columns if name in interactions.columns)
    for name in ("price", "quantity"):
        if name in interactions.columns:
            events = (
                _with_price(events, former["items"]) if name == "price" else events.with_columns(quantity=pl.lit(1))
            )
    events = events.with_columns(
        pl.col(name).cast(interactions.schema[name]) for name in events.columns if name in interactions.columns
    )
    impressions = shown_items.select(
        ("v" + pl.col("visit").cast(pl.String)).alias("impression_id"),
        "item_id",
        pl.col("time").cast(pl.Int64).alias("timestamp"),
        "user_id",
        pl.col("slot").cast(pl.Int64),
        "propensity",
        pl.lit(rollout.policy).alias("policy"),
        pl.col("click").cast(pl.Int64),
        pl.col("purchase").cast(pl.Int64),
    )
    return {
        "interactions": pl.concat([interactions, events], how="diagonal").sort("timestamp", maintain_order=True),
        "items": former["items"],
        "users": _users(world, former["users"]),
        "impressions": impressions.sort("timestamp", "impression_id", "slot"),
    }


def write_log(rollout: Rollout, folder: Path) -> None:
    """Write the tables of `log_tables` and dataset.toml into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in log_tables(rollout).items():
        table.write_parquet(folder / f"{name}.parquet", compression="zstd")
    settings: dict[str, Any] = {**rollout.world.log_settings(), "name": f"simulated-{rollout.policy}"}
    settings["impressions"] = {"labels": ["click", "purchase"]}
    (folder / "dataset.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")


def _shown_items(rollout: Rollout) -> pl.DataFrame:
    """Return the shown items with user_id, item_id (as in the items table) and time."""
    world = rollout.world
    users, items = pl.Series(world.user_ids), world.former_tables()["items"]["item_id"]
    columns = rollout.visits.select("visit", "customer", "time")
    return rollout.shown_items.join(columns, on="visit", maintain_order="left").with_columns(
        user_id=users.gather(
            pl.Series(rollout.shown_items.join(columns, on="visit", maintain_order="left")["customer"])
        ),
        item_id=items.gather(rollout.shown_items["row"]),
    )


def _with_price(events: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    if "price" not in items.columns:
        return events
    return events.join(items.select("item_id", "price"), on="item_id", how="left", maintain_order="left")


def _users(world: CustomerWorld, users: pl.DataFrame) -> pl.DataFrame:
    """Return the users table with the customers that it lacks; these have no features."""
    users = users.with_columns(pl.col("user_id").cast(pl.String))
    former_ids = set(users["user_id"])
    new = np.array([user not in former_ids for user in world.user_ids])
    missing = pl.DataFrame({"user_id": pl.Series(world.user_ids).filter(pl.Series(new))})
    return pl.concat([users, missing], how="diagonal")
