"""Shuffled content rows: every row once, the same order for the same seed and epoch, resumable."""

from __future__ import annotations

import pytest
import torch

from nextitem.data.examples.content_rows import ContentRows

ROWS = ContentRows(torch.arange(23.0)[:, None].repeat(1, 2))


def _values(epoch: int, *, seed: int = 0, start: int = 0) -> list[list[float]]:
    return [batch.content[:, 0].tolist() for batch in ROWS.batches(5, epoch=epoch, seed=seed, start=start)]


def test_every_row_occurs_once_an_epoch() -> None:
    batches = _values(0)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert len(batches) == ROWS.num_batches(5)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == [float(row) for row in range(23)]
    assert rows != sorted(rows)


def test_the_order_depends_on_seed_and_epoch() -> None:
    assert _values(3, seed=1) == _values(3, seed=1)
    assert _values(3, seed=1) != _values(4, seed=1)
    assert _values(3, seed=1) != _values(3, seed=2)
    assert _values(0, seed=1) != _values(1, seed=0)


@pytest.mark.parametrize("start", [0, 2, 5])
def test_resuming_skips_earlier_batches(start: int) -> None:
    assert _values(1, start=start) == _values(1)[start:]


def test_a_batch_can_be_moved_to_a_device() -> None:
    batch = next(ROWS.batches(5, epoch=0, seed=0))
    assert batch.to("meta").content.device.type == "meta"
