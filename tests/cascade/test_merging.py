"""Merging channels: by hand, in any order, and what places are worth."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.cascade.merging import ChannelRates
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations


def lists(*rows: list[int], width: int) -> Recommendations:
    items = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    scores = -torch.arange(width).float().expand(items.shape).masked_fill(items == 0, torch.inf)
    return Recommendations(items, scores.masked_fill(items == 0, -torch.inf))


def test_an_item_of_two_channels_is_worth_what_both_places_say() -> None:
    rates = ChannelRates([3, 2])
    rates.rates.copy_(torch.tensor([[0.5, 0.2, 0.1], [0.4, 0.3, 0.0]]))
    found = rates.merge([lists([7, 2, 9], width=3), lists([9, 7], width=2)], 4)
    assert found.items.tolist() == [[7, 9, 2, 0]]
    torch.testing.assert_close(found.scores[0, :3], torch.tensor([1 - 0.5 * 0.7, 1 - 0.9 * 0.6, 0.2]))
    assert found.scores[0, 3] == -torch.inf
    assert found.ranks[0, :3].tolist() == [[1, 2], [3, 1], [2, 0]]
    assert found.channel[0, :3].tolist() == [0, 1, 0]
    some = torch.tensor([[2, 9]])
    assert found.ranks_of(some).tolist() == [[[2, 0], [3, 1]]]
    assert found.channel_of(some).tolist() == [[0, 1]]


def test_a_channel_that_brings_nothing_takes_nothing_away() -> None:
    rates = ChannelRates([2, 2])
    found = rates.merge([lists([5, 3], [4], width=2), lists([], [], width=2)], 3)
    assert found.items.tolist() == [[5, 3, 0], [4, 0, 0]]
    nothing = rates.merge([lists([], width=2), lists([], width=2)], 2)
    assert nothing.items.tolist() == [[0, 0]]


def test_what_is_added_stands_behind_and_padding_at_the_tail() -> None:
    found = ChannelRates([2]).merge([lists([5], [4, 3], width=2)], 2)
    more = found.append(torch.tensor([[8, 9], [7, 0]]), channel=1)
    assert more.items.tolist() == [[5, 8, 9, 0], [4, 3, 7, 0]]
    assert more.channel.tolist()[0][:3] == [0, 1, 1]
    assert bool((more.scores[:, 1:] <= more.scores[:, :-1]).all())
    assert more.ranks_of(torch.tensor([[5], [7]])).tolist() == [[[1]], [[0]]]


def test_rates_are_measured_by_place_and_never_rise() -> None:
    rates = ChannelRates([4, 2])
    first = torch.tensor([[1, 2, 3, 4]]).expand(1000, -1)
    targets = torch.tensor([1] * 300 + [3] * 100 + [4] * 100 + [9] * 500)
    rates.measure([first, torch.tensor([[4, 1]]).expand(1000, -1)], Jagged(targets, torch.arange(1001)))
    torch.testing.assert_close(rates.rates[0, 0], torch.tensor(0.3), atol=2e-3, rtol=0)
    assert rates.rates[0, 1] < 1e-3  # nobody took the second
    assert bool((rates.rates[0, 2:] <= rates.rates[0, 1]).all())
    torch.testing.assert_close(rates.rates[1, :2], torch.tensor([0.1, 0.1]), atol=2e-3, rtol=0)
    assert rates.rates[1, 2:].tolist() == [0, 0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_merging_equals_a_dictionary(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    quotas = [4, 6, 3]
    rates = ChannelRates(quotas)
    rates.rates.copy_(torch.rand(3, 6, generator=draw))
    rows = [[torch.randperm(9, generator=draw)[:quota].add(1).tolist() for _ in range(5)] for quota in quotas]
    found = rates.merge([lists(*each, width=quota) for each, quota in zip(rows, quotas, strict=True)], 7)
    for row in range(5):
        worth: dict[int, float] = {}
        for channel in range(3):
            for place, item in enumerate(rows[channel][row]):
                missed = (1 - worth.get(item, 0.0)) * (1 - float(rates.rates[channel, place]))
                worth[item] = 1 - missed
        best = sorted(worth.items(), key=lambda pair: (-round(pair[1], 5), pair[0]))[:7]
        got = [item for item in found.items[row].tolist() if item]
        assert {item for item, _ in best[:4]} <= set(got)
        for item, value in zip(got, found.scores[row].tolist(), strict=False):
            assert abs(worth[item] - value) < 1e-5
            assert found.ranks_of(torch.tensor([[item]] * 5))[row, 0].tolist() == [
                rows[channel][row].index(item) + 1 if item in rows[channel][row] else 0 for channel in range(3)
            ]
