"""Sampling: exact probabilities, without replacement, legal whatever the options."""

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


def draw_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probabilities(temperatures: tuple[float, ...] = (1.0,)) -> Tensor:
    """Of the five items under softmaxes over live children, by hand."""
    first = torch.log_softmax(FAKE.tables[0][0, 0] / temperatures[0], 0).exp()
    found = []
    for item, (a, b) in enumerate(ROWS):
        legal = sorted({row[1] for row in ROWS if row[0] == a})
        logits = FAKE.tables[1][0, a][legal] / temperatures[-1]
        share = 0.5 if item in (1, 2) else 1.0
        found.append(float(first[a] * torch.softmax(logits, 0)[legal.index(b)]) * share)
    return torch.tensor(found)


@pytest.mark.parametrize("temperatures", [(1.0,), (2.0, 0.5)])
def test_scores_are_the_log_probability_of_being_drawn_first(temperatures: tuple[float, ...]) -> None:
    sampling = Sampling(draw_of(0), temperatures=temperatures)
    found = beam_search(FAKE, requests(1), TRIE, k=5, beam_width=5, sampling=sampling)
    assert sorted(found.item_ids[0].tolist()) == [1, 2, 3, 4, 5]
    expected = probabilities(temperatures)[found.item_ids[0] - 1]
    torch.testing.assert_close(found.scores[0].exp(), expected)
    torch.testing.assert_close(found.scores.exp().sum(), torch.tensor(1.0))
    assert found.ordered_by == "generation"


@pytest.mark.parametrize("width", [2, 5])
def test_pairs_come_as_often_as_drawing_without_replacement_says(width: int) -> None:
    """P(i, then j) = p_i p_j / (1 - p_i), in as many draws as requests."""
    many = 20_000
    fake = FakeGenerator([table.expand(many, -1, -1) for table in FAKE.tables])
    found = beam_search(fake, requests(many), TRIE, k=2, beam_width=width, sampling=Sampling(draw_of(1)))
    p = probabilities().double()
    counts = torch.zeros(5, 5).index_put_(
        (found.item_ids[:, 0] - 1, found.item_ids[:, 1] - 1), torch.tensor(1.0), accumulate=True
    )
    for i in range(5):
        for j in range(5):
            wanted = 0.0 if i == j else float(p[i] * p[j] / (1 - p[i]))
            error = 4.5 * math.sqrt(wanted * (1 - wanted) / many) + 1e-9
            assert float(counts[i, j]) / many == pytest.approx(wanted, abs=error), (i, j)


def test_the_same_generator_draws_the_same() -> None:
    first, second, other = (
        beam_search(FAKE, requests(1), TRIE, k=3, beam_width=3, sampling=Sampling(draw_of(seed))).item_ids
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_cold_sampling_takes_the_likeliest_and_top_k_of_one_is_greedy() -> None:
    best = beam_search(FAKE, requests(1), TRIE, k=1, beam_width=1, renormalise=True).item_ids
    for options in ({"temperatures": (1e-4,)}, {"top_k": 1}, {"top_p": 1e-6}):
        found = beam_search(FAKE, requests(1), TRIE, k=1, beam_width=3, sampling=Sampling(draw_of(0), **options))
        leaf = [ROWS[int(answer) - 1] for answer in (found.item_ids[0, 0], best[0, 0])]
        assert leaf[0] == leaf[1]


def test_top_p_keeps_the_fewest_children_that_reach_it() -> None:
    logits = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]]).log()
    for share, kept in ((0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4)):
        found = Sampling(draw_of(0), top_p=share).log_probs(logits, level=0)
        assert int((found > -torch.inf).sum()) == kept, share
        torch.testing.assert_close(found.exp().sum(), torch.tensor(1.0))


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
def test_whatever_the_options_every_item_is_legal_and_new(
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
    fake = FakeGenerator.random((4, 3, 3), users=1, seed=seed, items_per_list=per_list)
    sampling = Sampling(draw_of(seed), temperatures=(temperature,), top_k=top_k, top_p=top_p)
    found = beam_search(
        fake, requests(1, excluded=[excluded]), trie, k=k, beam_width=3, items_per_list=per_list, sampling=sampling
    )
    items = [item for item in found.item_ids[0].tolist() if item]
    assert len(set(items)) == len(items)
    assert not set(items) & set(excluded)
    assert bool(items) == (len(set(excluded)) < len(rows))
    if top_k is None and top_p is None and per_list == 1:
        assert len(items) == min(k, len(rows) - len(set(excluded)))


@pytest.mark.parametrize(
    "options", [{"temperatures": (0.0,)}, {"temperatures": ()}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        Sampling(draw_of(0), **options)  # type: ignore[arg-type]


def test_scores_that_are_no_probabilities_cannot_be_drawn_from() -> None:
    with pytest.raises(ValueError, match="sum"):
        beam_search(FAKE, requests(1), TRIE, k=1, beam_width=1, accumulate="last", sampling=Sampling(draw_of(0)))
