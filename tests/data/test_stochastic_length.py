"""Stochastic length: lengths of shortened sequences, and that their events are unchanged."""

from __future__ import annotations

import pytest
import torch

from nextitem.core.jagged import Jagged
from nextitem.data.examples.next_item import NextItemBatch
from nextitem.data.examples.stochastic_length import stochastic_length


def batch_of(lengths: list[int], *, is_dated: bool = True) -> NextItemBatch:
    """Return sequences in which every event has a different item, followed by the next number an hour later."""
    items = Jagged.from_lengths(torch.arange(1, sum(lengths) + 1), torch.tensor(lengths))
    times = items.with_values(items.values * 3_600_000)
    return NextItemBatch(
        items,
        items.with_values(items.values + 1),
        seed=0,
        timestamps=times if is_dated else None,
        next_timestamps=items.with_values(times.values + 3_600_000) if is_dated else None,
    )


def shorten(batch: NextItemBatch, seed: int, *, max_length: int = 64, alpha: float = 1.6) -> NextItemBatch:
    return stochastic_length(batch, max_length=max_length, alpha=alpha, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("is_dated", [True, False])
def test_sampled_events_keep_their_order_their_successor_and_their_time(is_dated: bool) -> None:
    batch = batch_of([3, 64, 0, 40, 1], is_dated=is_dated)
    for seed in range(20):
        shortened = shorten(batch, seed)
        lengths = shortened.items.lengths.tolist()
        assert lengths[0] == 3  # short ones stay whole
        assert lengths[2] == 0
        assert lengths[4] == 1
        assert {lengths[1], lengths[3]} <= {27, 64, 40}  # 64 ** 0.8 = 27.9
        assert torch.equal(shortened.targets.values, shortened.items.values + 1)
        for row in shortened.items.to_lists():
            assert row == sorted(set(row))
        if is_dated:
            assert shortened.timestamps is not None
            assert shortened.next_timestamps is not None
            assert torch.equal(shortened.timestamps.values, shortened.items.values * 3_600_000)
            assert torch.equal(shortened.next_timestamps.values, shortened.targets.values * 3_600_000)


def test_the_expected_length_is_that_of_the_formula() -> None:
    """Check n = N = 4096 and alpha = 1.6: whole with probability N ** 1.6 / N ** 2 = 0.0359, else 776 events."""
    batch = batch_of([4096] * 40)
    lengths = torch.cat([shorten(batch, seed, max_length=4096).items.lengths for seed in range(25)])
    assert set(lengths.tolist()) == {776, 4096}
    share = float((lengths == 4096).float().mean())
    assert share == pytest.approx(4096**-0.4, abs=4 * (0.0359 * 0.9641 / 1000) ** 0.5)


def test_recent_events_are_sampled_in_proportion_to_their_weights() -> None:
    """Check two of three events: without replacement, weights 1 - age / total age decide the probability of each."""
    batch = batch_of([3] * 4000)
    shortened = shorten(
        batch, 1, max_length=3, alpha=1.3
    )  # 3 ** 0.65 = 2.04; whole with probability 3 ** 1.3 / 9 = 0.46
    is_cut = shortened.items.lengths == 2
    places = (shortened.items.select(is_cut.nonzero()[:, 0]).values - 1) % 3
    shares = torch.bincount(places, minlength=3) / int(is_cut.sum())
    weights = torch.tensor([1 / 3, 2 / 3, 1.0]) / 2  # ages 2, 1, 0 of 3 in all
    expected = []
    for event in range(3):
        second = sum(weights[other] * weights[event] / (1 - weights[other]) for other in range(3) if other != event)
        expected.append(float(weights[event] + second))
    assert shares.tolist() == pytest.approx(expected, abs=0.04)


def test_the_same_seed_samples_the_same_events() -> None:
    batch = batch_of([64, 64])
    assert torch.equal(shorten(batch, 3).items.values, shorten(batch, 3).items.values)
    assert not torch.equal(shorten(batch, 3).items.values, shorten(batch, 4).items.values)
