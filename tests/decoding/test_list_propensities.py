"""Propensities of sampled lists: against enumeration, against frequencies, and against the search itself."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_generator import FakeGenerator, identifier_table, requests
from torch import Tensor

from nextitem.core.roles import GeneratorState
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.list_propensities import (
    given_above,
    item_probabilities_of,
    list_probabilities_of,
    sampled_propensities,
)
from nextitem.decoding.sampling import Sampling
from nextitem.decoding.trie import PrefixTrie
from nextitem.evaluation.plackett_luce import slot_probabilities

ROWS = [[0, 0], [0, 1], [0, 1], [1, 0], [2, 2]]  # items 2 and 3 share a leaf
TRIE = PrefixTrie.from_table(identifier_table(ROWS, (3, 3)))
FAKE = FakeGenerator.random((3, 3), users=1, seed=3)
LIST_FAKE = FakeGenerator.random((3, 3), users=1, seed=4, items_per_list=2)
ITEMS = torch.arange(1, 6)[None]


def sampling(seed: int = 0, **options: object) -> Sampling:
    return Sampling(torch.Generator().manual_seed(seed), **options)  # type: ignore[arg-type]


def repeated(generator: FakeGenerator, count: int) -> FakeGenerator:
    """Return a generator that knows `count` users, who are all alike."""
    return FakeGenerator([table.expand(count, -1, -1) for table in generator.tables])


def of_generator(generator: FakeGenerator, items: set[int], prefix: tuple[int, ...]) -> dict[int, float]:
    """Return the probability of each of the items to come next, by softmaxes over live children, computed by hand.

    `prefix` are the codes of the items above.
    """
    number = sum(code * 3**place for place, code in enumerate(reversed(prefix)))
    first_table, second_table = generator.tables[len(prefix)][0], generator.tables[len(prefix) + 1][0]
    live = sorted({ROWS[item - 1][0] for item in items})
    first = torch.softmax(first_table[number][live].double(), 0)
    result = {}
    for item in items:
        a, b = ROWS[item - 1]
        below = sorted({ROWS[other - 1][1] for other in items if ROWS[other - 1][0] == a})
        second = torch.softmax(second_table[number * 3 + a][below].double(), 0)
        num_same = sum(ROWS[other - 1] == [a, b] for other in items)
        result[item] = float(first[live.index(a)] * second[below.index(b)]) / num_same
    return result


def test_items_have_the_probabilities_of_softmaxes_over_live_children() -> None:
    for excluded in ([], [1], [2], [5, 4]):
        left = {1, 2, 3, 4, 5} - set(excluded)
        expected = of_generator(FAKE, left, ())
        actual = item_probabilities_of(
            FAKE, requests(1, excluded=[excluded]), TRIE, torch.tensor([[1, 2, 3, 4, 5, 0]]), sampling=sampling()
        )
        assert actual[0].tolist() == pytest.approx([expected.get(item, 0.0) for item in (1, 2, 3, 4, 5, 0)])
        assert float(actual.sum()) == pytest.approx(1)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12),
    excluded=st.lists(st.integers(1, 12), max_size=5),
    forbidden=st.sets(st.integers(1, 12), max_size=5),
    top_k=st.none() | st.integers(1, 3),
    top_p=st.none() | st.floats(0.2, 1.0),
    temperature=st.floats(0.3, 5),
    seed=st.integers(0, 99),
)
def test_probabilities_are_those_of_an_exhaustive_search(
    rows: list[tuple[int, int, int]],
    excluded: list[int],
    forbidden: set[int],
    top_k: int | None,
    top_p: float | None,
    temperature: float,
    seed: int,
) -> None:
    trie = PrefixTrie.from_table(identifier_table([list(row) for row in rows], (4, 3, 3)))
    size = len(rows)
    generator = FakeGenerator.random((4, 3, 3), users=2, seed=seed)
    allowed = torch.tensor([[False] + [item not in forbidden for item in range(1, size + 1)]] * 2)
    batch = requests(2, excluded=[[item for item in excluded if item <= size], []], allowed=allowed)
    options = sampling(seed, temperatures=(temperature, 1.0), top_k=top_k, top_p=top_p)
    answer = beam_search(generator, batch, trie, k=size, beam_width=size, sampling=options)
    expected = torch.zeros((2, size + 1), dtype=torch.float64)
    expected.scatter_(1, answer.item_ids, answer.scores.double().exp())
    expected[:, 0] = 0
    items = torch.arange(size + 1).expand(2, -1)
    actual = item_probabilities_of(generator, batch, trie, items, sampling=options)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


class FakeChildScorer(FakeGenerator):
    """A FakeGenerator that scores the children of its beams' nodes."""

    def score_children(
        self, state: GeneratorState, codes: Tensor | None, nodes: Tensor
    ) -> tuple[Tensor, GeneratorState]:
        logits, state = super().step(state, codes)
        child_codes = TRIE.codes[nodes.clamp(min=0)].long().clamp(min=0)
        return logits.gather(2, child_codes).masked_fill(nodes < 0, torch.nan), state

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        raise AssertionError("a walk must call score_children")


def test_a_generator_may_score_the_children_alone() -> None:
    options = sampling(temperatures=(2.0,), top_k=2)
    expected = item_probabilities_of(FAKE, requests(1), TRIE, ITEMS, sampling=options)
    actual = item_probabilities_of(FakeChildScorer(FAKE.tables), requests(1), TRIE, ITEMS, sampling=options)
    torch.testing.assert_close(actual, expected)
    pair = torch.tensor([[4, 2]])
    chances = [
        list_probabilities_of(kind(LIST_FAKE.tables), requests(1), TRIE, pair, sampling=options)
        for kind in (FakeGenerator, FakeChildScorer)
    ]
    torch.testing.assert_close(chances[0], chances[1])
    assert (chances[0] > 0).all()


def test_slots_of_sampled_lists_are_as_frequent_as_predicted() -> None:
    """Given the items above, and over all lists; each request is one sample."""
    count = 6_000
    probabilities = item_probabilities_of(FAKE, requests(1), TRIE, ITEMS, sampling=sampling())
    answer = beam_search(repeated(FAKE, count), requests(count), TRIE, k=3, beam_width=3, sampling=sampling(1))
    propensities = sampled_propensities(answer)
    by_walk = given_above(probabilities[0][answer.item_ids - 1])
    torch.testing.assert_close(propensities, by_walk, atol=1e-5, rtol=1e-4)
    overall = slot_probabilities(probabilities.numpy(), 3)[0]
    for slot in range(3):
        frequencies = torch.bincount(answer.item_ids[:, slot], minlength=6)[1:] / count
        for item in range(5):
            chance = float(overall[slot, item])
            error = 4.5 * math.sqrt(chance * (1 - chance) / count) + 1e-9
            assert float(frequencies[item]) == pytest.approx(chance, abs=error), (slot, item)
    lists = torch.tensor(list(permutations(range(5), 3)))
    assert float(given_above(probabilities[0][lists]).prod(1).sum()) == pytest.approx(1)


def test_lists_that_are_generated_item_by_item() -> None:
    """All pairs by hand, their sum, the scores of sampled lists, and their frequencies."""
    pairs = torch.tensor(list(permutations(range(1, 6), 2)))
    fake = repeated(LIST_FAKE, len(pairs))
    actual = list_probabilities_of(fake, requests(len(pairs)), TRIE, pairs, sampling=sampling())
    for (first, second), row in zip(pairs.tolist(), actual.tolist(), strict=True):
        above = of_generator(LIST_FAKE, {1, 2, 3, 4, 5}, ())
        below = of_generator(LIST_FAKE, {1, 2, 3, 4, 5} - {first}, tuple(ROWS[first - 1]))
        assert row == pytest.approx([above[first], below[second]])
    whole = actual.prod(1)
    assert float(whole.sum()) == pytest.approx(1)
    count = 6_000
    answer = beam_search(
        repeated(LIST_FAKE, count), requests(count), TRIE, k=2, beam_width=3, items_per_list=2, sampling=sampling(2)
    )
    index = {tuple(pair): number for number, pair in enumerate(pairs.tolist())}
    places = torch.tensor([index[tuple(pair)] for pair in answer.item_ids.tolist()])
    torch.testing.assert_close(sampled_propensities(answer, items_per_list=2), actual[places], atol=1e-5, rtol=1e-4)
    frequencies = torch.bincount(places, minlength=len(pairs)) / count
    for chance, frequency in zip(whole.tolist(), frequencies.tolist(), strict=True):
        assert frequency == pytest.approx(chance, abs=4.5 * math.sqrt(chance * (1 - chance) / count) + 1e-9)


def test_a_list_with_an_impossible_item_or_padding() -> None:
    lists = torch.tensor([[1, 4], [5, 0]])
    generator = repeated(LIST_FAKE, 2)
    actual = list_probabilities_of(generator, requests(2, excluded=[[1], []]), TRIE, lists, sampling=sampling())
    assert actual[0].tolist() == [0, 0]
    assert actual[1, 1] == 1


def test_an_item_with_several_code_sequences_has_the_sum_of_their_probabilities() -> None:
    """Rows 1 and 4 lead to item 1, row 2 to item 2, rows 3 and 5 to item 3: as frequent as predicted, in each slot."""
    item_of_row = torch.tensor([0, 1, 2, 3, 1, 3])
    of_rows = item_probabilities_of(FAKE, requests(1), TRIE, ITEMS, sampling=sampling())[0]
    items = torch.tensor([[3, 1, 0, 2]])
    actual = item_probabilities_of(FAKE, requests(1), TRIE, items, sampling=sampling(), item_of_row=item_of_row)
    p = {1: float(of_rows[0] + of_rows[3]), 2: float(of_rows[1]), 3: float(of_rows[2] + of_rows[4])}
    assert actual[0].tolist() == pytest.approx([p[3], p[1], 0.0, p[2]])
    count = 6_000
    rows = beam_search(repeated(FAKE, count), requests(count), TRIE, k=5, beam_width=5, sampling=sampling(3)).item_ids
    owners = item_of_row[rows]
    later = first_other(owners)
    for first in p:
        for second in p.keys() - {first}:
            chance = p[first] * p[second] / (1 - p[first])
            frequency = float(((owners[:, 0] == first) & (later == second)).double().mean())
            assert frequency == pytest.approx(chance, abs=4.5 * math.sqrt(chance * (1 - chance) / count))


def first_other(owners: Tensor) -> Tensor:
    """Return the first entry of each row that differs from its first one."""
    place = (owners != owners[:, :1]).int().argmax(1)
    return owners.gather(1, place[:, None])[:, 0]


def test_a_beam_search_without_sampling_has_no_propensities() -> None:
    answer = beam_search(FAKE, requests(1), TRIE, k=2, beam_width=3)
    with pytest.raises(ValueError, match=r"always returns the same list.*pass sampling=Sampling"):
        sampled_propensities(answer)
    for function in (item_probabilities_of, list_probabilities_of):
        with pytest.raises(ValueError, match="serve with exploration"):
            function(FAKE, requests(1), TRIE, ITEMS, sampling=None)
