"""Stochastic length: how long sequences become, and that what is left is true."""

from __future__ import annotations

import pytest
import torch

from nextitem.core.jagged import Jagged
from nextitem.data.examples.next_item import NextItemBatch
from nextitem.data.examples.stochastic_length import stochastic_length


def batch_of(lengths: list[int], *, dated: bool = True) -> NextItemBatch:
    """Every event is an item of its own, followed by the next number, an hour later."""
    items = Jagged.from_lengths(torch.arange(1, sum(lengths) + 1), torch.tensor(lengths))
    times = items.with_values(items.values * 3_600_000)
    return NextItemBatch(
        items,
        items.with_values(items.values + 1),
        seed=0,
        timestamps=times if dated else None,
        next_timestamps=items.with_values(times.values + 3_600_000) if dated else None,
    )


def draw(batch: NextItemBatch, seed: int, *, longest: int = 64, alpha: float = 1.6) -> NextItemBatch:
    return stochastic_length(batch, longest=longest, alpha=alpha, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dated", [True, False])
def test_what_is_left_keeps_its_order_its_successor_and_its_time(dated: bool) -> None:
    batch = batch_of([3, 64, 0, 40, 1], dated=dated)
    for seed in range(20):
        found = draw(batch, seed)
        lengths = found.items.lengths.tolist()
        assert lengths[0] == 3  # short ones stay whole
        assert lengths[2] == 0
        assert lengths[4] == 1
        assert {lengths[1], lengths[3]} <= {27, 64, 40}  # 64 ** 0.8 = 27.9
        assert torch.equal(found.targets.values, found.items.values + 1)
        for row in found.items.to_lists():
            assert row == sorted(set(row))
        if dated:
            assert found.timestamps is not None
            assert found.next_timestamps is not None
            assert torch.equal(found.timestamps.values, found.items.values * 3_600_000)
            assert torch.equal(found.next_timestamps.values, found.targets.values * 3_600_000)


def test_the_expected_length_is_that_of_the_formula() -> None:
    """n = N = 4096 and alpha 1.6: kept whole with probability N ** 1.6 / N ** 2 = .0359, else 776 events."""
    batch = batch_of([4096] * 40)
    lengths = torch.cat([draw(batch, seed, longest=4096).items.lengths for seed in range(25)])
    assert set(lengths.tolist()) == {776, 4096}
    share = float((lengths == 4096).float().mean())
    assert share == pytest.approx(4096**-0.4, abs=4 * (0.0359 * 0.9641 / 1000) ** 0.5)


def test_recent_events_are_drawn_more_often_in_proportion_to_their_weights() -> None:
    """Two of three events: without replacement, the chance of each follows from weights 1 - age / total age."""
    batch = batch_of([3] * 4000)
    found = draw(batch, 1, longest=3, alpha=1.3)  # 3 ** 0.65 = 2.04; whole with probability 3 ** 1.3 / 9 = .46
    cut = found.items.lengths == 2
    places = (found.items.select(cut.nonzero()[:, 0]).values - 1) % 3
    shares = torch.bincount(places, minlength=3) / int(cut.sum())
    weights = torch.tensor([1 / 3, 2 / 3, 1.0]) / 2  # ages 2, 1, 0 of 3 in all
    expected = []
    for one in range(3):
        second = sum(weights[other] * weights[one] / (1 - weights[other]) for other in range(3) if other != one)
        expected.append(float(weights[one] + second))
    assert shares.tolist() == pytest.approx(expected, abs=0.04)


def test_the_same_seed_draws_the_same() -> None:
    batch = batch_of([64, 64])
    assert torch.equal(draw(batch, 3).items.values, draw(batch, 3).items.values)
    assert not torch.equal(draw(batch, 3).items.values, draw(batch, 4).items.values)
