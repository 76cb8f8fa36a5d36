"""Guided search, compared with a fusion of all items, and its limits."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fake_generator import FakeGenerator, identifier_table, requests
from torch import Tensor

from nextitem.core.jagged import Jagged
from nextitem.core.roles import GeneratorState
from nextitem.core.sparse_scores import SparseScores
from nextitem.decoding import guide as guide_module
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.guide import Combination, Guide, NodeGuide
from nextitem.decoding.sampling import Sampling
from nextitem.decoding.trie import PrefixTrie

PAIRS = [[a, b] for a in range(3) for b in range(3)]  # item 3a + b + 1 has codes a, b
SIZES = (3, 4, 2)
USERS = 2


def sparse(probabilities: Tensor) -> SparseScores:
    """Return the entries above 0 of `probabilities [B, N + 1]`."""
    rows = [row.nonzero()[:, 0].tolist() for row in probabilities]
    values = torch.cat([row[row > 0] for row in probabilities])
    return SparseScores(Jagged.from_rows(rows), values, num_items=probabilities.shape[1] - 1)


def random_probabilities(num_items: int, seed: int) -> Tensor:
    """Return probabilities [USERS, N + 1] of which about half are 0; user 2 may have none."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(USERS, num_items + 1, generator=generator)
    scores *= torch.rand(scores.shape, generator=generator) < 0.5
    scores[:, 0] = 0
    if seed % 3 == 0:
        scores[1] = 0
    return scores / scores.sum(1, keepdim=True).clamp(min=1e-9)


def fused(log_prob: float, probability: float, weight: float, combine: Combination, num_items: int) -> float:
    """Return the score of one item: the definition, without a trie."""
    if combine == "mixture":
        return math.log((1 - weight) * math.exp(log_prob) + weight * probability)
    return (1 - weight) * log_prob + weight * math.log(probability + 1e-3 / num_items)


@pytest.fixture(params=[0, 2**20], ids=["entries are searched", "tables of nodes"])
def _way_of_sparse_entries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a sparse guide search its entries, or store a table of the nodes of a depth."""
    monkeypatch.setattr(guide_module, "_TABLE_ENTRIES_BY_QUERY", request.param)


@pytest.mark.usefixtures("_way_of_sparse_entries")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    codes=st.lists(st.tuples(*(st.integers(0, size - 1) for size in SIZES)).map(list), min_size=1, max_size=14),
    weight=st.sampled_from([0.0, 0.3, 0.9]),
    combine=st.sampled_from(["mixture", "product"]),
    is_sparse=st.booleans(),
    has_allow_list=st.booleans(),
    seed=st.integers(0, 50),
)
def test_a_search_at_full_width_equals_the_fusion_of_all_items(
    codes: list[list[int]], weight: float, combine: Combination, is_sparse: bool, has_allow_list: bool, seed: int
) -> None:
    num_items = len(codes)
    trie = PrefixTrie.from_table(identifier_table(codes, SIZES))
    generator = FakeGenerator.random(SIZES, users=USERS, seed=seed)
    random = torch.Generator().manual_seed(seed)
    excluded = (torch.rand(USERS, num_items + 1, generator=random) < 0.3).logical_and(torch.arange(num_items + 1) > 0)
    allowed = torch.rand(USERS, num_items + 1, generator=random) < 0.7
    batch = requests(
        USERS,
        excluded=[row.nonzero()[:, 0].tolist() for row in excluded],
        allowed=allowed if has_allow_list else None,
    )
    probabilities = random_probabilities(num_items, seed)
    guide = Guide(sparse(probabilities) if is_sparse else probabilities, weight, combine)
    answer = beam_search(generator, batch, trie, k=num_items, beam_width=num_items, guide=guide)
    for user in range(USERS):
        legal = [
            item
            for item in range(1, num_items + 1)
            if not excluded[user, item] and (allowed[user, item] or not has_allow_list)
        ]
        has_guide = any(probabilities[user, item] > 0 for item in legal)
        own_weight = weight if has_guide else 0.0
        expected = {
            item: fused(
                generator.log_prob(user + 1, codes[item - 1]),
                float(probabilities[user, item]),
                own_weight,
                combine,
                num_items,
            )
            for item in legal
        }
        assert answer.guided is not None
        assert bool(answer.guided[user]) == has_guide
        items = answer.item_ids[user, : len(legal)].tolist()
        assert sorted(items) == legal
        for item, score in zip(items, answer.scores[user].tolist(), strict=False):
            assert score == pytest.approx(expected[item], abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    codes=st.lists(st.tuples(*(st.integers(0, size - 1) for size in SIZES)).map(list), min_size=1, max_size=14),
    width=st.integers(1, 6),
    is_sparse=st.booleans(),
    seed=st.integers(0, 50),
)
def test_a_guide_alone_is_searched_exactly_at_every_width(
    codes: list[list[int]], width: int, is_sparse: bool, seed: int
) -> None:
    trie = PrefixTrie.from_table(identifier_table(codes, SIZES))
    generator = FakeGenerator.random(SIZES, users=USERS, seed=seed)
    probabilities = random_probabilities(len(codes), seed)
    guide = Guide(sparse(probabilities) if is_sparse else probabilities, 1.0)
    answer = beam_search(generator, requests(USERS), trie, k=width, beam_width=width, guide=guide)
    for user in range(USERS):
        best = sorted(range(1, len(codes) + 1), key=lambda item: (-float(probabilities[user, item]), item))
        best = [item for item in best[:width] if probabilities[user, item] > 0]
        assert answer.item_ids[user, : len(best)].tolist() == best
        assert (answer.item_ids[user] > 0).sum() == min(width, len(codes))  # the generator fills the list


def test_the_best_item_survives_a_prefix_that_the_generator_finds_unlikely() -> None:
    tables = [torch.tensor([[[0.6, 0.3, 0.1]]]).log(), torch.full((1, 3, 3), 1 / 3).log()]
    trie = PrefixTrie.from_table(identifier_table(PAIRS, (3, 3)))
    probabilities = torch.zeros(1, 10)
    probabilities[0, 8] = 0.8
    plain = beam_search(FakeGenerator(tables), requests(1), trie, k=1, beam_width=1)
    assert plain.item_ids.tolist() == [[1]]
    guided = beam_search(FakeGenerator(tables), requests(1), trie, k=1, beam_width=1, guide=Guide(probabilities, 0.5))
    assert guided.item_ids.tolist() == [[8]]
    assert float(guided.scores.exp()) == pytest.approx(0.5 * 0.1 / 3 + 0.5 * 0.8)


@settings(max_examples=30, deadline=None)
@given(
    codes=st.lists(st.tuples(*(st.integers(0, size - 1) for size in SIZES)).map(list), min_size=1, max_size=14),
    weight=st.floats(0, 1),
    seed=st.integers(0, 50),
)
def test_the_value_of_a_prefix_is_never_below_that_of_an_item_below_it(
    codes: list[list[int]], weight: float, seed: int
) -> None:
    trie = PrefixTrie.from_table(identifier_table(codes, SIZES))
    generator = FakeGenerator.random(SIZES, users=USERS, seed=seed)
    probabilities = random_probabilities(len(codes), seed)
    node_guide = NodeGuide(Guide(probabilities, weight), trie, Constraints(trie, requests(USERS)))
    for item, row in enumerate(codes, start=1):
        values = []
        for depth in range(1, len(SIZES) + 1):
            node = trie.ancestors(trie.positions[[item]], depth=depth).expand(USERS, 1, 1)
            log_probs = torch.tensor([generator.log_prob(user + 1, row[:depth]) for user in range(USERS)])
            values.append(node_guide.mix(log_probs[:, None, None], node, depth=depth)[:, 0, 0])
        position = trie.positions[[item] * USERS].long()
        values.append(node_guide.mix_items(log_probs, torch.arange(USERS), position))
        for above, below in pairwise(values):
            assert (above >= below - 1e-5).all()


def test_lists_are_generated_item_by_item_with_the_guide() -> None:
    trie = PrefixTrie.from_table(identifier_table(PAIRS, (3, 3)))
    generator = FakeGenerator.random((3, 3), users=1, seed=4, items_per_list=2)
    probabilities = random_probabilities(9, 1)[:1]
    answer = beam_search(
        generator, requests(1), trie, k=2, beam_width=81, items_per_list=2, guide=Guide(probabilities, 0.7)
    )

    def value(first: int, second: int) -> float:
        prefix = generator.log_prob(1, PAIRS[first - 1])
        both = generator.log_prob(1, PAIRS[first - 1] + PAIRS[second - 1])
        parts = ((prefix, first), (both - prefix, second))
        return sum(fused(log_prob, float(probabilities[0, item]), 0.7, "mixture", 9) for log_prob, item in parts)

    values = {(a, b): value(a, b) for a in range(1, 10) for b in range(1, 10) if a != b}
    best = max(values, key=lambda pair: values[pair])
    assert tuple(answer.item_ids[0].tolist()) == best
    assert float(answer.scores.sum()) == pytest.approx(values[best], abs=1e-4)


def test_with_scores_of_nodes_the_generator_s_probability_is_the_sigmoid_of_the_logit() -> None:
    trie = PrefixTrie.from_table(identifier_table(PAIRS, (3, 3)))
    tables = [torch.tensor([[[1.0, 0.5, -9.0]]]), torch.tensor([[[0.1, 0.2, 0.3], [4.0, 0.0, 0.2], [9.0] * 3]])]
    probabilities = torch.zeros(1, 10)
    probabilities[0, 2] = 0.9
    answer = beam_search(
        FakeGenerator(tables),
        requests(1),
        trie,
        k=2,
        beam_width=9,
        accumulate="last",
        guide=Guide(probabilities, 0.8),
    )
    assert answer.item_ids.tolist() == [[2, 7]]
    expected = [0.2 * torch.sigmoid(torch.tensor(0.2)) + 0.8 * 0.9, 0.2 * torch.sigmoid(torch.tensor(9.0))]
    torch.testing.assert_close(answer.scores[0].exp(), torch.stack(expected))


@pytest.mark.parametrize("codes", [[[0, 0, 0]], [[0, 1, 0], [1, 0, 1], [2, 3, 1]]])
def test_catalogues_of_one_item_and_nodes_with_a_single_child(codes: list[list[int]]) -> None:
    trie = PrefixTrie.from_table(identifier_table(codes, SIZES))
    generator = FakeGenerator.random(SIZES, users=USERS, seed=0)
    probabilities = random_probabilities(len(codes), 1)
    answer = beam_search(generator, requests(USERS), trie, k=3, beam_width=3, guide=Guide(probabilities, 0.5))
    assert (answer.item_ids > 0).sum(1).tolist() == [len(codes)] * USERS


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.5])
def test_probabilities_must_be_finite_and_between_0_and_1(bad: float) -> None:
    probabilities = torch.zeros(1, 10)
    probabilities[0, 3] = bad
    with pytest.raises(ValueError, match="from 0 to 1"):
        Guide(probabilities, 0.5)
    with pytest.raises(ValueError, match="from 0 to 1"):
        Guide(SparseScores(Jagged.from_rows([[3]]), torch.tensor([bad]), num_items=9), 0.5)


def test_a_guide_of_another_catalogue_or_other_requests_is_refused() -> None:
    trie = PrefixTrie.from_table(identifier_table(PAIRS, (3, 3)))
    generator = FakeGenerator.random((3, 3), users=1, seed=0)
    with pytest.raises(ValueError, match="catalogue of 4 items"):
        beam_search(generator, requests(1), trie, k=1, beam_width=1, guide=Guide(torch.zeros(1, 5), 0.5))
    with pytest.raises(ValueError, match="2 rows for 1 requests"):
        beam_search(generator, requests(1), trie, k=1, beam_width=1, guide=Guide(torch.zeros(2, 10), 0.5))
    with pytest.raises(ValueError, match="0 to 1"):
        Guide(torch.zeros(1, 10), 1.1)
    sampling, guide = Sampling(torch.Generator()), Guide(torch.zeros(1, 10), 0.5)
    with pytest.raises(ValueError, match="sampling needs guide=None"):
        beam_search(generator, requests(1), trie, k=1, beam_width=1, guide=guide, sampling=sampling)


class FakeChildScorer(FakeGenerator):
    """A FakeGenerator that scores the children alone; codes without a node are never read."""

    def __init__(self, tables: list[Tensor], trie: PrefixTrie) -> None:
        super().__init__(tables)
        self.trie = trie

    def score_children(
        self, state: GeneratorState, codes: Tensor | None, nodes: Tensor
    ) -> tuple[Tensor, GeneratorState]:
        logits, state = super().step(state, codes)
        child_codes = self.trie.codes[nodes.clamp(min=0)].long().clamp(min=0)
        return logits.gather(2, child_codes).masked_fill(nodes < 0, torch.nan), state

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        raise AssertionError("a search must call score_children")


@settings(max_examples=40, deadline=None)
@given(
    codes=st.lists(st.tuples(*(st.integers(0, size - 1) for size in SIZES)).map(list), min_size=1, max_size=14),
    width=st.integers(1, 8),
    seed=st.integers(0, 50),
)
def test_scores_of_children_alone_equal_a_softmax_over_the_children(
    codes: list[list[int]], width: int, seed: int
) -> None:
    trie = PrefixTrie.from_table(identifier_table(codes, SIZES))
    generator = FakeGenerator.random(SIZES, users=USERS, seed=seed)
    scorer = FakeChildScorer(generator.tables, trie)
    expected = beam_search(generator, requests(USERS), trie, k=width, beam_width=width, renormalise=True)
    actual = beam_search(scorer, requests(USERS), trie, k=width, beam_width=width)
    assert torch.equal(actual.item_ids, expected.item_ids)
    torch.testing.assert_close(actual.scores, expected.scores)


def test_exclusions_do_not_change_the_softmax_over_children() -> None:
    trie = PrefixTrie.from_table(identifier_table(PAIRS, (3, 3)))
    scorer = FakeChildScorer(FakeGenerator.random((3, 3), users=1, seed=3).tables, trie)
    everything = beam_search(scorer, requests(1), trie, k=9, beam_width=9)
    some = beam_search(scorer, requests(1, excluded=[[1, 5]]), trie, k=9, beam_width=9)
    scores = dict(zip(everything.item_ids[0].tolist(), everything.scores[0].tolist(), strict=True))
    for item, score in zip(some.item_ids[0, :7].tolist(), some.scores[0].tolist(), strict=False):
        assert score == pytest.approx(scores[item])


@pytest.mark.parametrize("combine", ["mixture", "product"])
def test_a_guide_that_must_not_be_silent_counts_even_if_it_knows_nothing(combine: Combination) -> None:
    generator = FakeGenerator.random(SIZES, users=1, seed=4)
    rows = [[a, b, c] for a in range(3) for b in range(4) for c in range(2)]
    trie = PrefixTrie.from_table(identifier_table(rows, SIZES))
    nothing = torch.zeros(1, len(rows) + 1)
    plain = beam_search(generator, requests(1), trie, k=5, beam_width=24)
    silent = beam_search(generator, requests(1), trie, k=5, beam_width=24, guide=Guide(nothing, 0.4, combine))
    assert silent.scores.equal(plain.scores)
    guide = Guide(nothing, 0.4, combine, can_be_silent=False)
    answer = beam_search(generator, requests(1), trie, k=5, beam_width=24, guide=guide)
    assert answer.item_ids.equal(plain.item_ids)
    for item, score in zip(answer.item_ids[0].tolist(), answer.scores[0].tolist(), strict=True):
        own = generator.log_prob(1, rows[item - 1])
        assert score == pytest.approx(fused(own, 0.0, 0.4, combine, len(rows)), abs=1e-4)
    assert answer.guided is not None
    assert not bool(answer.guided.any())
