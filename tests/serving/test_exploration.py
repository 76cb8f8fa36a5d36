"""Sampled lists: their frequencies are their propensities, which are those of the Plackett-Luce model by hand."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from nextitem.pipeline.recommend import RecommendationList
from nextitem.serving.exploration import head_size, propensities, sampled_list


def head_of(size: int) -> RecommendationList:
    items = [f"i{place}" for place in range(size)]
    return RecommendationList(items, [1.0 - place for place in range(size)], [item.upper() for item in items], False)


def test_propensities_equal_those_by_hand() -> None:
    # temperature 1: the weights of the ranks are 1, 1/2, 1/3; their sum is 11/6
    assert propensities([1, 0, 2], head_size=3, temperature=1.0) == pytest.approx([3 / 11, 3 / 4, 1.0])
    # temperature 1/2: 1, 1/4, 1/9
    assert propensities([2], head_size=3, temperature=0.5) == pytest.approx([(1 / 9) / (49 / 36)])
    assert propensities([3, 1], head_size=4, temperature=1e9) == pytest.approx([1 / 4, 1 / 3])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_probabilities_of_all_lists_add_up_to_one(temperature: float) -> None:
    lists = permutations(range(5), 3)
    total = sum(propensities(order, head_size=5, temperature=temperature).prod() for order in lists)
    assert total == pytest.approx(1.0, abs=1e-12)


def test_frequencies_of_20_000_lists_match_the_propensities() -> None:
    head, num_lists = head_of(4), 20_000
    counts: Counter[tuple[str, ...]] = Counter()
    chances: dict[tuple[str, ...], list[float]] = {}
    for number in range(num_lists):
        sampled, chance = sampled_list(head, k=2, temperature=0.8, seed=f"request {number}")
        counts[tuple(sampled.item_ids)] += 1
        chances[tuple(sampled.item_ids)] = chance
    assert len(counts) == 12
    firsts = Counter(dict.fromkeys(head.item_ids, 0))
    for (first, second), count in counts.items():
        expected = float(np.prod(chances[first, second]))
        assert count / num_lists == pytest.approx(expected, abs=4.5 * (expected / num_lists) ** 0.5)
        firsts[first] += count
    for (first, second), count in counts.items():  # the second slot given the first
        expected = chances[first, second][1]
        assert count / firsts[first] == pytest.approx(expected, abs=4.5 * (expected / firsts[first]) ** 0.5)


def test_at_temperature_0_the_list_is_the_head_itself() -> None:
    for temperature in (0.01, 1e-6, 1e-300):
        sampled, chances = sampled_list(head_of(400), k=100, temperature=temperature, seed="x")
        if temperature <= 1e-6:
            assert sampled.item_ids == head_of(100).item_ids
            assert chances == [1.0] * 100
        assert sampled.item_ids[0] == "i0"


def test_a_list_can_be_computed_again_and_keeps_its_columns_together() -> None:
    first, chances = sampled_list(head_of(50), k=10, temperature=2.0, seed="abc")
    again, same_chances = sampled_list(head_of(50), k=10, temperature=2.0, seed="abc")
    other, _ = sampled_list(head_of(50), k=10, temperature=2.0, seed="abd")
    assert (first, chances) == (again, same_chances)
    assert first.item_ids != other.item_ids
    assert [title.lower() for title in first.titles] == first.item_ids
    assert [1.0 - float(item[1:]) for item in first.item_ids] == first.scores
    assert len(set(first.item_ids)) == 10


def test_short_heads_are_sampled_whole() -> None:
    assert sampled_list(head_of(0), k=5, temperature=1.0, seed="x") == (head_of(0), [])
    sampled, chances = sampled_list(head_of(3), k=5, temperature=1.0, seed="x")
    assert sorted(sampled.item_ids) == ["i0", "i1", "i2"]
    assert chances[-1] == pytest.approx(1.0)
    assert (head_size(10), head_size(50)) == (100, 200)


def test_small_chances_are_exact() -> None:
    # subtracting the weights of the slots above from their sum would lose these digits
    order = list(range(60))
    chances = propensities(order, head_size=100, temperature=0.05)
    weights = [float(rank) ** -20.0 for rank in range(1, 101)]
    expected = [weights[place] / sum(sorted(weights[place:])) for place in order]
    assert chances == pytest.approx(expected, rel=1e-9)
