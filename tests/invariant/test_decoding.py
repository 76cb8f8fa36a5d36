"""Beam search over a catalogue equals exhaustive scoring, and returns only items that a request allows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_generator import FakeGenerator, FakeParallelGenerator, identifier_table, requests
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import GeneratorState
from nextitem.decoding import trie as trie_module
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.bucket_search import bucket_search
from nextitem.decoding.diverse_beams import diverse_beam_search
from nextitem.decoding.new_items import search_with_new_items
from nextitem.decoding.sampling import Sampling
from nextitem.decoding.sets_on_demand import FilteredSets, FilterIndex
from nextitem.decoding.trie import PrefixTrie


@dataclass
class World:
    """A small catalogue with a generator and requests."""

    rows: list[list[int]]
    sizes: tuple[int, ...]
    excluded: list[list[int]]
    allowed: list[list[bool]] | None
    seed: int
    has_dense_levels: bool

    @property
    def users(self) -> int:
        return len(self.excluded)

    def trie(self) -> PrefixTrie:
        before = trie_module._DENSE_ENTRIES
        trie_module._DENSE_ENTRIES = before if self.has_dense_levels else 0
        try:
            return PrefixTrie.from_table(identifier_table(self.rows, self.sizes))
        finally:
            trie_module._DENSE_ENTRIES = before

    def generator(self, items_per_list: int = 1) -> FakeGenerator:
        return FakeGenerator.random(self.sizes, users=self.users, seed=self.seed, items_per_list=items_per_list)

    def allowed_mask(self) -> Tensor | None:
        if self.allowed is None:
            return None
        return torch.tensor([[False, *row] for row in self.allowed])

    def search(self, **options: Any) -> Recommendations:
        generator = self.generator(options.get("items_per_list", 1))
        batch = requests(self.users, excluded=self.excluded, allowed=self.allowed_mask())
        return beam_search(generator, batch, self.trie(), **options)

    def legal(self, user: int) -> list[int]:
        allowed = self.allowed_mask()
        row = None if allowed is None else allowed[min(user - 1, len(allowed) - 1)]
        return [
            item
            for item in range(1, len(self.rows) + 1)
            if item not in self.excluded[user - 1] and (row is None or bool(row[item]))
        ]


@st.composite
def worlds(draw: Any, max_items: int = 14, max_users: int = 4) -> World:
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes)).map(list)
    rows = draw(st.lists(row, min_size=1, max_size=max_items))
    users = draw(st.integers(1, max_users))
    items = st.lists(st.integers(0, len(rows)), max_size=len(rows) + 2)  # with repeats and padding
    masks = st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))
    allowed = draw(
        st.none() | st.sampled_from([1, users]).flatmap(lambda count: st.lists(masks, min_size=count, max_size=count))
    )
    return World(
        rows,
        sizes,
        draw(st.lists(items, min_size=users, max_size=users)),
        allowed,
        draw(st.integers(0, 1000)),
        draw(st.booleans()),
    )


def lists(answer: Recommendations) -> list[list[int]]:
    return [[item for item in row if item] for row in answer.item_ids.tolist()]


@settings(max_examples=150, deadline=None)
@given(world=worlds(), accumulate=st.sampled_from(["sum", "last"]))
def test_full_width_equals_exhaustive_scoring(world: World, accumulate: str) -> None:
    count = len(world.rows)
    answer = world.search(k=count, beam_width=count, accumulate=accumulate)
    generator = world.generator()
    score = generator.log_prob if accumulate == "sum" else generator.last_logit
    for user, items in enumerate(lists(answer), start=1):
        expected = {item: score(user, world.rows[item - 1]) for item in world.legal(user)}
        assert set(items) == set(expected)
        scores = answer.scores[user - 1, : len(items)]
        assert torch.allclose(scores, torch.tensor([expected[item] for item in items]), atol=1e-4)
        assert (answer.scores[user - 1, len(items) :] == -torch.inf).all()
        for first, second in pairwise(items):
            if world.rows[first - 1] == world.rows[second - 1]:
                assert first < second


@settings(max_examples=150, deadline=None)
@given(world=worlds(), k=st.integers(1, 16), width=st.integers(1, 16))
def test_k_distinct_legal_items_are_returned_if_k_exist(world: World, k: int, width: int) -> None:
    for user, items in enumerate(lists(world.search(k=k, beam_width=width)), start=1):
        legal = world.legal(user)
        assert len(items) == len(set(items)) == min(k, len(legal))
        assert set(items) <= set(legal)


@settings(max_examples=200, deadline=None)
@given(
    world=worlds(),
    k=st.integers(1, 8),
    width=st.integers(1, 12),
    items_per_list=st.integers(1, 3),
    accumulate=st.sampled_from(["sum", "last"]),
)
def test_a_parallel_generator_gives_the_same_lists_as_single_steps(
    world: World, k: int, width: int, items_per_list: int, accumulate: str
) -> None:
    count = min(k, items_per_list)
    options: dict[str, Any] = {"k": k, "beam_width": width, "items_per_list": count, "accumulate": accumulate}
    plain = world.search(**options)
    batch = requests(world.users, excluded=world.excluded, allowed=world.allowed_mask())
    parallel = beam_search(FakeParallelGenerator(world.generator(count).tables), batch, world.trie(), **options)
    assert torch.equal(parallel.item_ids, plain.item_ids)
    assert torch.equal(parallel.scores, plain.scores)


@settings(max_examples=60, deadline=None)
@given(world=worlds(), k=st.integers(1, 8), items_per_list=st.integers(1, 3))
def test_a_batch_gives_the_same_lists_as_its_requests_one_by_one(world: World, k: int, items_per_list: int) -> None:
    items_per_list = min(k, items_per_list)
    options: dict[str, Any] = {"k": k, "beam_width": 5, "items_per_list": items_per_list}
    batched = world.search(**options)
    batch = requests(world.users, excluded=world.excluded, allowed=world.allowed_mask())
    for row in range(world.users):
        single = beam_search(
            world.generator(items_per_list), batch.select(torch.tensor([row])), world.trie(), **options
        )
        assert torch.equal(single.item_ids[0], batched.item_ids[row])
        assert torch.allclose(single.scores[0], batched.scores[row], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(world=worlds(max_items=5, max_users=3), accumulate=st.sampled_from(["sum", "last"]))
def test_full_width_lists_equal_the_best_ordered_pair(world: World, accumulate: str) -> None:
    answer = world.search(k=2, beam_width=25, items_per_list=2, accumulate=accumulate)
    assert answer.ordered_by == "generation"
    generator = world.generator(items_per_list=2)

    def score(user: int, ordered_items: tuple[int, ...]) -> float:
        codes = [code for item in ordered_items for code in world.rows[item - 1]]
        if accumulate == "sum":
            return generator.log_prob(user, codes)
        levels = len(world.sizes)
        return sum(generator.last_logit(user, codes[: levels * (n + 1)]) for n in range(len(ordered_items)))

    for user, items in enumerate(lists(answer), start=1):
        legal = world.legal(user)
        length = min(2, len(legal))
        assert len(items) == len(set(items)) == length
        assert set(items) <= set(legal)
        if length:
            best = max(score(user, pair) for pair in permutations(legal, length))
            assert score(user, tuple(items)) == pytest.approx(best, abs=1e-4)
            assert float(answer.scores[user - 1, :length].sum()) == pytest.approx(best, abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(world=worlds(), items_per_list=st.integers(2, 3), width=st.integers(1, 6))
def test_lists_of_narrow_beams_are_distinct_legal_and_complete(world: World, items_per_list: int, width: int) -> None:
    answer = world.search(k=items_per_list + 1, beam_width=width, items_per_list=items_per_list)
    for user, items in enumerate(lists(answer), start=1):
        legal = world.legal(user)
        assert len(items) == len(set(items)) == min(items_per_list, len(legal))
        assert set(items) <= set(legal)


NUM_ROUNDS, NUM_REQUESTS, NUM_ITEMS = 100, 1000, 60


def _random_requests(generator: torch.Generator) -> SequenceBatch:
    """Return requests with exclusions and allow-lists of any size, among them no exclusion, one item and no item."""
    lengths = torch.randint(0, NUM_ITEMS, (NUM_REQUESTS,), generator=generator) * (
        torch.rand(NUM_REQUESTS, generator=generator) < 0.7
    )
    excluded = Jagged.from_lengths(torch.randint(0, NUM_ITEMS + 1, (int(lengths.sum()),), generator=generator), lengths)
    allowed = (
        torch.rand(NUM_REQUESTS, NUM_ITEMS + 1, generator=generator)
        < torch.rand(NUM_REQUESTS, 1, generator=generator) ** 3
    )
    return SequenceBatch(
        Jagged.from_rows([[1]] * NUM_REQUESTS),
        user_ids=torch.arange(1, NUM_REQUESTS + 1),
        excluded=excluded,
        allowed=allowed,
    )


def _random_filters(generator: torch.Generator, trie: PrefixTrie) -> tuple[FilteredSets, Tensor]:
    """Return filters stored as bits, one combined for each request, and the masks that they equal."""
    masks = {
        name: torch.rand(NUM_ITEMS + 1, generator=generator) < share
        for name, share in (("a", 0.1), ("b", 0.5), ("c", 0.9))
    }
    filters = FilterIndex(trie, masks)
    kinds = [([["a"]], []), ([["b", "a"]], ["c"]), ([["b"], ["c"]], []), ([], ["b"]), ([["a"], ["b"]], ["c"])]
    sets, combined_masks = [], []
    for row in range(NUM_REQUESTS):
        any_of, none_of = kinds[row % len(kinds)]
        sets.append(filters.allowed(any_of, none_of))
        mask = torch.ones(NUM_ITEMS + 1, dtype=torch.bool)
        for group in any_of:
            mask &= torch.stack([masks[name] for name in group]).any(0)
        for name in none_of:
            mask &= ~masks[name]
        combined_masks.append(mask)
    return FilteredSets.stacked(sets), torch.stack(combined_masks)


class FakeVectorGenerator(FakeGenerator):
    """A FakeGenerator with vectors of beams and items, so that buckets can be searched."""

    def vectors_of(self, state: GeneratorState, codes: Tensor) -> Tensor:
        return torch.randn((*codes.shape, 4), generator=torch.Generator().manual_seed(1))

    def item_vectors(self) -> Tensor:
        return torch.randn((NUM_ITEMS + 1, 4), generator=torch.Generator().manual_seed(2))


@pytest.mark.slow
def test_a_hundred_thousand_random_requests_get_legal_items() -> None:
    """All kinds of search, with allow-lists and with filters stored as bits, over a new catalogue in each round.

    Lists have min(k, number of legal items) items.
    """
    generator = torch.Generator().manual_seed(0)
    sampled = Sampling(generator, (0.5, 2.0))
    narrow = Sampling(generator, top_k=2, top_p=0.7)
    variants: list[dict[str, Any]] = [
        {},
        {"renormalise": True},
        {"accumulate": "last"},
        {"sampling": sampled},
        {"sampling": narrow},
        {"items_per_list": 3},
        {"items_per_list": 2, "sampling": sampled},
        {"groups": 2, "penalty": 1.0},
        {"sparse_sharpness": 0.9, "dense_sharpness": 4.0},
        {"share": 0.3, "reserved": True},
    ]
    searches = {"groups": diverse_beam_search, "share": search_with_new_items, "sparse_sharpness": bucket_search}
    for number in range(NUM_ROUNDS):
        sizes = (3, 5, 4)
        codes = torch.stack([torch.randint(0, size, (NUM_ITEMS,), generator=generator) for size in sizes], dim=1)
        trie = PrefixTrie.from_table(identifier_table(codes.tolist(), sizes))
        options, k = dict(variants[number % len(variants)]), 1 + number % 11
        per_list = min(k, options.get("items_per_list", 1))
        if "items_per_list" in options:
            options["items_per_list"] = per_list
        fake = FakeVectorGenerator.random(sizes, users=NUM_REQUESTS, seed=number, items_per_list=per_list)
        batch = _random_requests(generator)
        if "share" in options:
            options["new"] = torch.rand(NUM_ITEMS + 1, generator=generator) < 0.3
        elif number // len(variants) % 2:  # the filters replace the allow-lists of the batch
            options["allowed"], mask = _random_filters(generator, trie)
            legal = replace(batch, allowed=mask).legal(NUM_ITEMS)
        if "allowed" not in options:
            legal = batch.legal(NUM_ITEMS)
        assert legal is not None
        search: Any = next((function for name, function in searches.items() if name in options), beam_search)
        answer = search(fake, batch, trie, k=k, beam_width=k + 2, **options)
        is_item = answer.item_ids > 0
        assert bool((legal.gather(1, answer.item_ids) | ~is_item).all())
        sorted_items = answer.item_ids.sort(1).values
        assert not bool(((sorted_items[:, 1:] == sorted_items[:, :-1]) & (sorted_items[:, 1:] > 0)).any())
        if "share" in options:
            assert bool(((is_item & options["new"][answer.item_ids]).sum(1) <= int(0.3 * k)).all())
        elif options.get("sampling") is not narrow:
            expected_counts = legal.sum(1).clamp(max=per_list if per_list > 1 else k)
            assert torch.equal(is_item.sum(1), expected_counts)
