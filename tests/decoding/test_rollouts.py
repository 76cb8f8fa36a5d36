"""Rollouts and the log-probabilities of lists, against sums over all lists of small catalogues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from support.fake_generator import FakeGenerator, FakeParallelGenerator, identifier_table, requests
from torch import Tensor

from nextitem.core.rollouts import Rollouts
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.list_log_probs import list_log_probs, score_lists
from nextitem.decoding.rollouts import codes_at, legal_items, sample_freely, search_lists
from nextitem.decoding.sampling import Sampling
from nextitem.decoding.trie import PrefixTrie

SIZES = (2, 3)
ROWS = [[0, 0], [0, 2], [1, 0], [1, 1], [1, 2]]
TRIE = PrefixTrie.from_table(identifier_table(ROWS, SIZES))
COLLIDING = PrefixTrie.from_table(identifier_table([*ROWS, [1, 1], [1, 1]], SIZES))


def fake(items_per_list: int = 1, *, users: int = 3) -> FakeGenerator:
    return FakeGenerator.random(SIZES, users=users, seed=5, items_per_list=items_per_list)


def codes_of(lists: Sequence[tuple[int, ...]], num_requests: int) -> Tensor:
    """Return the codes of lists of item numbers, the same for each request, [B, G, m, M]."""
    codes = torch.tensor([[ROWS[item - 1] for item in row] for row in lists])
    return codes.expand(num_requests, *codes.shape)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_probabilities_of_all_lists_sum_to_one(length: int) -> None:
    lists = list(permutations(range(1, len(ROWS) + 1), length))
    log_probs = list_log_probs(fake(length), requests(3), codes_of(lists, 3), TRIE)
    assert log_probs.shape == (3, len(lists), length, 2)
    torch.testing.assert_close(log_probs.double().sum((2, 3)).exp().sum(1), torch.ones(3, dtype=torch.float64))


def test_excluded_and_forbidden_items_have_no_probability() -> None:
    allowed = torch.tensor([[False, True, True, False, True, True]])
    batch = requests(3, excluded=[[4], [], [1, 2]], allowed=allowed)
    legal = [[1, 2, 5], [1, 2, 4, 5], [4, 5]]
    for length in (1, 2):
        lists = list(permutations(range(1, len(ROWS) + 1), length))
        probabilities = list_log_probs(fake(length), batch, codes_of(lists, 3), TRIE).sum((2, 3)).exp()
        is_legal = torch.tensor([[set(row) <= set(items) for row in lists] for items in legal])
        assert bool((probabilities[~is_legal] == 0).all())
        torch.testing.assert_close((probabilities * is_legal).sum(1), torch.ones(3))


def test_without_the_constraint_they_are_those_of_the_generator() -> None:
    generator, lists = fake(2), list(permutations(range(1, len(ROWS) + 1), 2))
    log_probs = list_log_probs(generator, requests(3), codes_of(lists, 3), TRIE, constrained=False).sum((2, 3))
    for user in (1, 2, 3):
        expected = [generator.log_prob(user, ROWS[a - 1] + ROWS[b - 1]) for a, b in lists]
        torch.testing.assert_close(log_probs[user - 1], torch.tensor(expected))


def test_codes_that_no_item_has_have_a_probability_only_without_the_constraint() -> None:
    generator, codes = fake(), torch.tensor([[[[0, 1]], [[0, 2]]]])
    free, legal = (list_log_probs(generator, requests(1), codes, TRIE, constrained=flag) for flag in (False, True))
    assert math.isclose(float(free[0, 0].sum()), generator.log_prob(1, [0, 1]), rel_tol=1e-5)
    assert float(legal[0, 0, 0, 1]) == -torch.inf
    assert bool(legal[0, 1].isfinite().all())


def test_items_that_share_codes_leave_them_legal_until_the_list_contains_all_of_them() -> None:
    codes = torch.tensor([[[[1, 1]] * 3, [[1, 1], [1, 1], [1, 2]]]])
    log_probs = list_log_probs(fake(3), requests(1), codes, COLLIDING)
    assert bool(log_probs.isfinite().all())
    excluded = list_log_probs(fake(3), requests(1, excluded=[[6]]), codes, COLLIDING)
    assert float(excluded[0, 0, 2, 1]) == -torch.inf
    assert bool(excluded[0, 0, :2].isfinite().all())


@pytest.mark.parametrize("kind", [FakeGenerator, FakeParallelGenerator])
def test_the_likeliest_lists_are_those_of_a_beam_search(kind: type[FakeGenerator]) -> None:
    generator, batch = kind(fake(2).tables), requests(3, excluded=[[4], [], [1, 2]])
    rollouts = search_lists(generator, batch, TRIE, num_lists=20, items_per_list=2, version="v")
    best = beam_search(generator, batch, TRIE, k=2, beam_width=20, items_per_list=2, renormalise=True)
    assert rollouts.item_ids[:, 0].tolist() == best.item_ids.tolist()
    torch.testing.assert_close(rollouts.log_probs[:, 0].sum(2), best.scores)
    totals = rollouts.log_probs.sum((2, 3)).where(rollouts.is_legal, -torch.inf)
    assert bool((totals[:, 1:] <= totals[:, :-1] + 1e-6).all())
    assert rollouts.is_legal.sum(1).tolist() == [12, 20, 6]
    single = search_lists(generator, batch, TRIE, num_lists=4, version="v")
    items = beam_search(generator, batch, TRIE, k=4, beam_width=4, renormalise=True)
    assert single.item_ids[..., 0].tolist() == items.item_ids.tolist()
    scores = single.log_probs.sum((2, 3)).where(single.is_legal, -torch.inf)
    torch.testing.assert_close(scores, items.scores)


def test_lists_end_when_a_request_allows_no_further_item() -> None:
    batch = requests(3, excluded=[[1, 2, 3, 4], [1, 2, 3, 4, 5], [3]])
    rollouts = search_lists(fake(3), batch, TRIE, num_lists=2, items_per_list=3, version="v")
    assert rollouts.lengths.tolist() == [[1, 0], [0, 0], [3, 3]]
    assert rollouts.is_legal.tolist() == [[True, False], [False, False], [True, True]]
    assert rollouts.item_ids[0, 0].tolist() == [5, 0, 0]
    assert bool((rollouts.log_probs[0, 0] == 0).all())  # there was no choice


def test_sampled_lists_are_distinct_and_repeat_with_the_seed() -> None:
    def lists(seed: int) -> Rollouts:
        sampling = Sampling(torch.Generator().manual_seed(seed), temperatures=(2.0,))
        return search_lists(fake(2), requests(3), TRIE, num_lists=6, items_per_list=2, sampling=sampling, version="v")

    first, again, other = lists(1), lists(1), lists(2)
    assert first.item_ids.tolist() == again.item_ids.tolist() != other.item_ids.tolist()
    for row in first.item_ids.tolist():
        assert len({tuple(items) for items in row}) == 6
    expected = list_log_probs(fake(2), requests(3), first.codes, TRIE)
    torch.testing.assert_close(first.log_probs, expected)


def test_free_samples_are_legal_as_often_as_the_generator_says() -> None:
    generator, batch = fake(users=2), requests(2, excluded=[[1], []])
    random = torch.Generator().manual_seed(0)
    samples = sample_freely(generator, batch, TRIE, num_lists=4000, random=random)
    for user, items in ((1, [2, 3, 4, 5]), (2, [1, 2, 3, 4, 5])):
        expected = sum(math.exp(generator.log_prob(user, ROWS[item - 1])) for item in items)
        assert abs(float(samples.is_legal[user - 1].double().mean()) - expected) < 0.03
    assert bool((samples.item_ids[~samples.is_legal] == 0).all())
    free = list_log_probs(generator, batch, samples.codes, TRIE, constrained=False)
    torch.testing.assert_close(samples.log_probs, free)


def test_legal_items_are_the_first_with_the_codes() -> None:
    codes = torch.tensor([[[1, 1], [0, 1], [1, 2]], [[1, 1], [0, 0], [1, 0]]])
    batch = requests(2, excluded=[[4], [1]])
    assert legal_items(COLLIDING, batch, codes).tolist() == [[6, 0, 5], [4, 0, 3]]
    positions = COLLIDING.positions[1:].long()
    assert codes_at(COLLIDING, positions).tolist() == [*ROWS, [1, 1], [1, 1]]


def test_entropy_is_that_of_the_legal_codes() -> None:
    scores = score_lists(fake(), requests(1, excluded=[[1, 2]]), codes_of([(3,), (4,), (5,)], 1), TRIE)
    probabilities = scores.log_probs.sum((2, 3)).exp()[0]
    total = float(scores.entropies[0, 0, 0].sum())  # the first code is certain, the second has all of the entropy
    assert math.isclose(total, float(-(probabilities * probabilities.log()).sum()), rel_tol=1e-5)


def test_gradients_equal_finite_differences() -> None:
    tables = [table.double().requires_grad_() for table in fake(2, users=2).tables]
    batch, codes = requests(2, excluded=[[4], []]), codes_of([(1, 2), (5, 3)], 2).clone()
    codes[1, 1, 1] = -1

    def total(step: float = 0.0) -> Tensor:
        moved = [table + step * direction for table, direction in zip(tables, directions, strict=True)]
        return list_log_probs(FakeGenerator(moved), batch, codes, TRIE).sum()

    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(table.shape, generator=generator).double() for table in tables]
    gradients = torch.autograd.grad(total(), tables)
    slope = sum(float((one * other).sum()) for one, other in zip(gradients, directions, strict=True))
    difference = float((total(1e-6) - total(-1e-6)).detach()) / 2e-6
    assert math.isclose(slope, difference, rel_tol=1e-6)


def test_rollouts_are_checked() -> None:
    rollouts = search_lists(fake(2), requests(2), TRIE, num_lists=3, items_per_list=2, version="v")
    picked = rollouts.select(torch.tensor([[2, 0], [1, 1]]))
    assert picked.item_ids[0, 1].tolist() == rollouts.item_ids[0, 0].tolist()
    for field, value, message in (
        ("codes", rollouts.codes[..., 0], "must be"),
        ("is_legal", rollouts.is_legal[:1], "first two"),
        ("codes", rollouts.codes.clone().index_fill_(2, torch.tensor([0]), -1), "tail"),
        ("codes", rollouts.codes.clone().index_fill_(3, torch.tensor([1]), -1), "all of its codes"),
        ("item_ids", rollouts.item_ids * 0, "belongs to an item"),
    ):
        changed: dict[str, Any] = {field: value}
        with pytest.raises(ValueError, match=message):
            replace(rollouts, **changed)
