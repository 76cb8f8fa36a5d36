"""Merging of channels: lists computed by hand and by a dictionary, and the rates of ranks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.cascade.merging import ChannelRates
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations


def lists(*rows: list[int], width: int) -> Recommendations:
    """Return the lists of one channel, padded to `width`."""
    items = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    scores = -torch.arange(width).float().expand(items.shape).masked_fill(items == 0, torch.inf)
    return Recommendations(items, scores.masked_fill(items == 0, -torch.inf))


def test_the_score_of_an_item_of_two_channels_combines_both_rates() -> None:
    rates = ChannelRates([3, 2])
    rates.rates.copy_(torch.tensor([[0.5, 0.2, 0.1], [0.4, 0.3, 0.0]]))
    merged = rates.merge([lists([7, 2, 9], width=3), lists([9, 7], width=2)], 4)
    assert merged.items.tolist() == [[7, 9, 2, 0]]
    torch.testing.assert_close(merged.scores[0, :3], torch.tensor([1 - 0.5 * 0.7, 1 - 0.9 * 0.6, 0.2]))
    assert merged.scores[0, 3] == -torch.inf
    assert merged.ranks[0, :3].tolist() == [[1, 2], [3, 1], [2, 0]]
    assert merged.channel[0, :3].tolist() == [0, 1, 0]
    items = torch.tensor([[2, 9]])
    assert merged.ranks_of(items).tolist() == [[[2, 0], [3, 1]]]
    assert merged.channel_of(items).tolist() == [[0, 1]]


def test_an_empty_channel_does_not_change_the_others() -> None:
    rates = ChannelRates([2, 2])
    merged = rates.merge([lists([5, 3], [4], width=2), lists([], [], width=2)], 3)
    assert merged.items.tolist() == [[5, 3, 0], [4, 0, 0]]
    empty = rates.merge([lists([], width=2), lists([], width=2)], 2)
    assert empty.items.tolist() == [[0, 0]]


def test_appended_items_follow_the_candidates_and_padding_is_at_the_tail() -> None:
    merged = ChannelRates([2]).merge([lists([5], [4, 3], width=2)], 2)
    extended = merged.append(torch.tensor([[8, 9], [7, 0]]), channel=1)
    assert extended.items.tolist() == [[5, 8, 9, 0], [4, 3, 7, 0]]
    assert extended.channel.tolist()[0][:3] == [0, 1, 1]
    assert bool((extended.scores[:, 1:] <= extended.scores[:, :-1]).all())
    assert extended.ranks_of(torch.tensor([[5], [7]])).tolist() == [[[1]], [[0]]]


def test_rates_are_hit_rates_of_ranks_and_never_rise() -> None:
    rates = ChannelRates([4, 2])
    items = torch.tensor([[1, 2, 3, 4]]).expand(1000, -1)
    targets = torch.tensor([1] * 300 + [3] * 100 + [4] * 100 + [9] * 500)
    rates.measure([items, torch.tensor([[4, 1]]).expand(1000, -1)], Jagged(targets, torch.arange(1001)))
    torch.testing.assert_close(rates.rates[0, 0], torch.tensor(0.3), atol=2e-3, rtol=0)
    assert rates.rates[0, 1] < 1e-3  # the item at rank 2 is never the target
    assert bool((rates.rates[0, 2:] <= rates.rates[0, 1]).all())
    torch.testing.assert_close(rates.rates[1, :2], torch.tensor([0.1, 0.1]), atol=2e-3, rtol=0)
    assert rates.rates[1, 2:].tolist() == [0, 0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_merging_equals_a_loop_with_a_dictionary(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    quotas = [4, 6, 3]
    rates = ChannelRates(quotas)
    rates.rates.copy_(torch.rand(3, 6, generator=generator))
    rows = [[torch.randperm(9, generator=generator)[:quota].add(1).tolist() for _ in range(5)] for quota in quotas]
    merged = rates.merge([lists(*of_channel, width=quota) for of_channel, quota in zip(rows, quotas, strict=True)], 7)
    for row in range(5):
        scores: dict[int, float] = {}
        for channel in range(3):
            for index, item in enumerate(rows[channel][row]):
                miss = (1 - scores.get(item, 0.0)) * (1 - float(rates.rates[channel, index]))
                scores[item] = 1 - miss
        best = sorted(scores.items(), key=lambda pair: (-round(pair[1], 5), pair[0]))[:7]
        items = [item for item in merged.items[row].tolist() if item]
        assert {item for item, _ in best[:4]} <= set(items)
        for item, score in zip(items, merged.scores[row].tolist(), strict=False):
            assert abs(scores[item] - score) < 1e-5
            assert merged.ranks_of(torch.tensor([[item]] * 5))[row, 0].tolist() == [
                rows[channel][row].index(item) + 1 if item in rows[channel][row] else 0 for channel in range(3)
            ]
