"""What was shown before a request: strictly earlier impressions of the same user, in the order of their times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Impressions
from nextitem.data.requests import RequestBuilder
from nextitem.data.shown_items import ShownItems
from nextitem.testing.rich_log import rich_log


def impressions(rows: Sequence[tuple[int, int, int, float | None]]) -> Impressions:
    """Return impressions with these users, items, times and clicks."""
    users, items, times, clicks = zip(*rows, strict=True)
    return Impressions(
        np.arange(len(rows)),
        np.array(items, np.int32),
        np.array(users, np.int32),
        np.array(times, np.int64),
        pl.DataFrame({"click": pl.Series(clicks, dtype=pl.Float64)}),
        labels=("click",),
    )


def test_only_strictly_earlier_impressions_of_the_user_are_returned() -> None:
    log = ShownItems.of(
        impressions([(2, 5, 30, 1.0), (1, 7, 20, 0.0), (2, 6, 10, None), (0, 9, 5, 1.0), (2, 8, 30, 0.0)])
    )
    assert log is not None
    columns = log.before(np.array([2, 2, 1, 0, 3]), np.array([30, 31, 99, 99, 99]))
    assert columns["shown_items"].to_lists() == [[6], [6, 5, 8], [7], [], []]
    assert columns["shown_times"].to_lists() == [[10], [10, 30, 30], [20], [], []]
    click = columns["shown_labels"]["click"].values
    torch.testing.assert_close(click, torch.tensor([np.nan, np.nan, 1, 0, 0]), equal_nan=True)


def test_random_logs_equal_a_loop() -> None:
    rng = np.random.default_rng(0)
    rows = [(int(rng.integers(0, 5)), int(rng.integers(1, 9)), int(rng.integers(0, 12)), 1.0) for _ in range(80)]
    log = ShownItems.of(impressions(rows))
    assert log is not None
    users, times = rng.integers(0, 6, 40), rng.integers(0, 14, 40)
    expected = [
        [item for user, item, time, _ in sorted(rows, key=lambda row: row[2]) if user == u > 0 and time < t]
        for u, t in zip(users, times, strict=True)
    ]
    assert log.before(users, times)["shown_items"].to_lists() == expected


def test_there_is_nothing_without_known_users_or_times() -> None:
    assert ShownItems.of(None) is None
    assert ShownItems.of(impressions([(0, 1, 1, 1.0)])) is None
    undated = impressions([(1, 1, 1, 1.0)])
    object.__setattr__(undated, "timestamps", None)
    assert ShownItems.of(undated) is None


def test_requests_contain_what_was_shown() -> None:
    dataset = rich_log()
    log = dataset.interactions
    assert log.timestamps is not None
    last = int(log.timestamps.max())
    log_of_pages = impressions([(1, 3, last, 1.0), (3, 4, last - 9, 0.0), (3, 5, last + 5, 0.0)])
    builder = RequestBuilder(replace(dataset, impressions=log_of_pages))
    users = np.arange(1, 4, dtype=np.int32)
    batch = builder.build(log.offsets[users - 1], log.offsets[users], times=np.full(3, last + 1), user_ids=users)
    assert batch.shown_items is not None
    assert batch.shown_items.to_lists() == [[3], [], [4]]
    assert list(batch.shown_labels) == ["click"]
    assert batch.select(torch.tensor([2])).shown_labels["click"].to_lists() == [[0.0]]
    undated = builder.build(log.offsets[users - 1], log.offsets[users], user_ids=users)
    assert undated.shown_items is None
    joined = SequenceBatch.concat([batch, undated], fill=True)
    assert joined.shown_items is not None
    assert joined.shown_items.to_lists() == [[3], [], [4], [], [], []]
