"""Sampling: exact probabilities, no replacement, and legal items under all options."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_generator import FakeGenerator, identifier_table, requests
from torch import Tensor

from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.sampling import Sampling
from nextitem.decoding.trie import PrefixTrie

ROWS = [[0, 0], [0, 1], [0, 1], [1, 0], [2, 2]]  # items 2 and 3 share a leaf
TRIE = PrefixTrie.from_table(identifier_table(ROWS, (3, 3)))
FAKE = FakeGenerator.random((3, 3), users=1, seed=3)


def seeded_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probabilities(temperatures: tuple[float, ...] = (1.0,)) -> Tensor:
    """Return the probabilities of the five items, by softmaxes over live children, computed by hand."""
    first = torch.log_softmax(FAKE.tables[0][0, 0] / temperatures[0], 0).exp()
    values = []
    for item, (a, b) in enumerate(ROWS):
        legal = sorted({row[1] for row in ROWS if row[0] == a})
        logits = FAKE.tables[1][0, a][legal] / temperatures[-1]
        share = 0.5 if item in (1, 2) else 1.0
        values.append(float(first[a] * torch.softmax(logits, 0)[legal.index(b)]) * share)
    return torch.tensor(values)


@pytest.mark.parametrize("temperatures", [(1.0,), (2.0, 0.5)])
def test_scores_are_log_probabilities_of_being_sampled_first(temperatures: tuple[float, ...]) -> None:
    sampling = Sampling(seeded_generator(0), temperatures=temperatures)
    answer = beam_search(FAKE, requests(1), TRIE, k=5, beam_width=5, sampling=sampling)
    assert sorted(answer.item_ids[0].tolist()) == [1, 2, 3, 4, 5]
    expected = probabilities(temperatures)[answer.item_ids[0] - 1]
    torch.testing.assert_close(answer.scores[0].exp(), expected)
    torch.testing.assert_close(answer.scores.exp().sum(), torch.tensor(1.0))
    assert answer.ordered_by == "generation"


@pytest.mark.parametrize("width", [2, 5])
def test_pairs_are_as_frequent_as_sampling_without_replacement_predicts(width: int) -> None:
    """P(i, then j) = p_i p_j / (1 - p_i); each request is one sample."""
    num_requests = 20_000
    generator = FakeGenerator([table.expand(num_requests, -1, -1) for table in FAKE.tables])
    answer = beam_search(
        generator, requests(num_requests), TRIE, k=2, beam_width=width, sampling=Sampling(seeded_generator(1))
    )
    p = probabilities().double()
    counts = torch.zeros(5, 5).index_put_(
        (answer.item_ids[:, 0] - 1, answer.item_ids[:, 1] - 1), torch.tensor(1.0), accumulate=True
    )
    for i in range(5):
        for j in range(5):
            expected = 0.0 if i == j else float(p[i] * p[j] / (1 - p[i]))
            error = 4.5 * math.sqrt(expected * (1 - expected) / num_requests) + 1e-9
            assert float(counts[i, j]) / num_requests == pytest.approx(expected, abs=error), (i, j)


def test_the_same_seed_gives_the_same_sample() -> None:
    first, second, other = (
        beam_search(FAKE, requests(1), TRIE, k=3, beam_width=3, sampling=Sampling(seeded_generator(seed))).item_ids
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_low_temperature_top_k_of_one_and_a_low_top_p_are_greedy() -> None:
    best = beam_search(FAKE, requests(1), TRIE, k=1, beam_width=1, renormalise=True).item_ids
    for options in ({"temperatures": (1e-4,)}, {"top_k": 1}, {"top_p": 1e-6}):
        answer = beam_search(
            FAKE, requests(1), TRIE, k=1, beam_width=3, sampling=Sampling(seeded_generator(0), **options)
        )
        codes = [ROWS[int(item) - 1] for item in (answer.item_ids[0, 0], best[0, 0])]
        assert codes[0] == codes[1]


def test_top_p_keeps_the_smallest_number_of_children_that_reaches_it() -> None:
    logits = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]]).log()
    for share, num_children in ((0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4)):
        log_probs = Sampling(seeded_generator(0), top_p=share).log_probs(logits, level=0)
        assert int((log_probs > -torch.inf).sum()) == num_children, share
        torch.testing.assert_close(log_probs.exp().sum(), torch.tensor(1.0))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=14),
    excluded=st.lists(st.integers(1, 14), max_size=6),
    k=st.integers(1, 9),
    top_k=st.none() | st.integers(1, 3),
    top_p=st.none() | st.floats(0.01, 1.0),
    temperature=st.floats(0.05, 20),
    items_per_list=st.integers(1, 2),
    seed=st.integers(0, 999),
)
def test_items_are_legal_and_distinct_under_all_options(
    rows: list[tuple[int, int, int]],
    excluded: list[int],
    k: int,
    top_k: int | None,
    top_p: float | None,
    temperature: float,
    items_per_list: int,
    seed: int,
) -> None:
    trie = PrefixTrie.from_table(identifier_table([list(row) for row in rows], (4, 3, 3)))
    excluded = [item for item in excluded if item <= len(rows)]
    per_list = min(items_per_list, k)
    generator = FakeGenerator.random((4, 3, 3), users=1, seed=seed, items_per_list=per_list)
    sampling = Sampling(seeded_generator(seed), temperatures=(temperature,), top_k=top_k, top_p=top_p)
    answer = beam_search(
        generator, requests(1, excluded=[excluded]), trie, k=k, beam_width=3, items_per_list=per_list, sampling=sampling
    )
    items = [item for item in answer.item_ids[0].tolist() if item]
    assert len(set(items)) == len(items)
    assert not set(items) & set(excluded)
    assert bool(items) == (len(set(excluded)) < len(rows))
    if top_k is None and top_p is None and per_list == 1:
        assert len(items) == min(k, len(rows) - len(set(excluded)))


@pytest.mark.parametrize(
    "options", [{"temperatures": (0.0,)}, {"temperatures": ()}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_invalid_options_raise(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        Sampling(seeded_generator(0), **options)  # type: ignore[arg-type]


def test_scores_that_are_no_probabilities_cannot_be_sampled() -> None:
    with pytest.raises(ValueError, match="sum"):
        beam_search(
            FAKE, requests(1), TRIE, k=1, beam_width=1, accumulate="last", sampling=Sampling(seeded_generator(0))
        )
