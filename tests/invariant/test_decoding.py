"""Beam search over a catalogue equals exhaustive scoring, and never leaves what a request allows."""

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
    """A small catalogue with a generator and requests on it."""

    rows: list[list[int]]
    sizes: tuple[int, ...]
    excluded: list[list[int]]
    allowed: list[list[bool]] | None
    seed: int
    dense: bool

    @property
    def users(self) -> int:
        return len(self.excluded)

    def trie(self) -> PrefixTrie:
        before = trie_module._DENSE_ENTRIES
        trie_module._DENSE_ENTRIES = before if self.dense else 0
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
    items = st.lists(st.integers(0, len(rows)), max_size=len(rows) + 2)  # repeats and padding happen
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
    for user, found in enumerate(lists(answer), start=1):
        expected = {item: score(user, world.rows[item - 1]) for item in world.legal(user)}
        assert set(found) == set(expected)
        scores = answer.scores[user - 1, : len(found)]
        assert torch.allclose(scores, torch.tensor([expected[item] for item in found]), atol=1e-4)
        assert (answer.scores[user - 1, len(found) :] == -torch.inf).all()
        for first, second in pairwise(found):
            if world.rows[first - 1] == world.rows[second - 1]:
                assert first < second


@settings(max_examples=150, deadline=None)
@given(world=worlds(), k=st.integers(1, 16), width=st.integers(1, 16))
def test_k_distinct_legal_items_whenever_k_exist(world: World, k: int, width: int) -> None:
    for user, found in enumerate(lists(world.search(k=k, beam_width=width)), start=1):
        legal = world.legal(user)
        assert len(found) == len(set(found)) == min(k, len(legal))
        assert set(found) <= set(legal)


@settings(max_examples=200, deadline=None)
@given(
    world=worlds(),
    k=st.integers(1, 8),
    width=st.integers(1, 12),
    items_per_list=st.integers(1, 3),
    accumulate=st.sampled_from(["sum", "last"]),
)
def test_two_steps_at_once_equal_two_steps(
    world: World, k: int, width: int, items_per_list: int, accumulate: str
) -> None:
    count = min(k, items_per_list)
    options: dict[str, Any] = {"k": k, "beam_width": width, "items_per_list": count, "accumulate": accumulate}
    plain = world.search(**options)
    batch = requests(world.users, excluded=world.excluded, allowed=world.allowed_mask())
    ahead = beam_search(FakeParallelGenerator(world.generator(count).tables), batch, world.trie(), **options)
    assert torch.equal(ahead.item_ids, plain.item_ids)
    assert torch.equal(ahead.scores, plain.scores)


@settings(max_examples=60, deadline=None)
@given(world=worlds(), k=st.integers(1, 8), items_per_list=st.integers(1, 3))
def test_a_batch_equals_its_requests_one_by_one(world: World, k: int, items_per_list: int) -> None:
    items_per_list = min(k, items_per_list)
    options: dict[str, Any] = {"k": k, "beam_width": 5, "items_per_list": items_per_list}
    whole = world.search(**options)
    batch = requests(world.users, excluded=world.excluded, allowed=world.allowed_mask())
    for row in range(world.users):
        single = beam_search(
            world.generator(items_per_list), batch.select(torch.tensor([row])), world.trie(), **options
        )
        assert torch.equal(single.item_ids[0], whole.item_ids[row])
        assert torch.allclose(single.scores[0], whole.scores[row], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(world=worlds(max_items=5, max_users=3), accumulate=st.sampled_from(["sum", "last"]))
def test_full_width_lists_equal_the_best_ordered_pair(world: World, accumulate: str) -> None:
    answer = world.search(k=2, beam_width=25, items_per_list=2, accumulate=accumulate)
    assert answer.ordered_by == "generation"
    generator = world.generator(items_per_list=2)

    def score(user: int, chosen: tuple[int, ...]) -> float:
        codes = [code for item in chosen for code in world.rows[item - 1]]
        if accumulate == "sum":
            return generator.log_prob(user, codes)
        levels = len(world.sizes)
        return sum(generator.last_logit(user, codes[: levels * (n + 1)]) for n in range(len(chosen)))

    for user, found in enumerate(lists(answer), start=1):
        legal = world.legal(user)
        length = min(2, len(legal))
        assert len(found) == len(set(found)) == length
        assert set(found) <= set(legal)
        if length:
            best = max(score(user, pair) for pair in permutations(legal, length))
            assert score(user, tuple(found)) == pytest.approx(best, abs=1e-4)
            assert float(answer.scores[user - 1, :length].sum()) == pytest.approx(best, abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(world=worlds(), items_per_list=st.integers(2, 3), width=st.integers(1, 6))
def test_narrow_lists_are_distinct_legal_and_complete(world: World, items_per_list: int, width: int) -> None:
    answer = world.search(k=items_per_list + 1, beam_width=width, items_per_list=items_per_list)
    for user, found in enumerate(lists(answer), start=1):
        legal = world.legal(user)
        assert len(found) == len(set(found)) == min(items_per_list, len(legal))
        assert set(found) <= set(legal)


ROUNDS, ASKED, ITEMS = 100, 1000, 60


def _random_requests(draw: torch.Generator) -> SequenceBatch:
    """Exclusions of any length, and allow-lists of any size, among them none, one item, and nothing at all."""
    lengths = torch.randint(0, ITEMS, (ASKED,), generator=draw) * (torch.rand(ASKED, generator=draw) < 0.7)
    excluded = Jagged.from_lengths(torch.randint(0, ITEMS + 1, (int(lengths.sum()),), generator=draw), lengths)
    allowed = torch.rand(ASKED, ITEMS + 1, generator=draw) < torch.rand(ASKED, 1, generator=draw) ** 3
    return SequenceBatch(
        Jagged.from_rows([[1]] * ASKED), user_ids=torch.arange(1, ASKED + 1), excluded=excluded, allowed=allowed
    )


def _random_filters(draw: torch.Generator, trie: PrefixTrie) -> tuple[FilteredSets, Tensor]:
    """FilterIndex kept as bits, one put together for each request, and the masks that they stand for."""
    masks = {
        name: torch.rand(ITEMS + 1, generator=draw) < share for name, share in (("a", 0.1), ("b", 0.5), ("c", 0.9))
    }
    filters = FilterIndex(trie, masks)
    kinds = [([["a"]], []), ([["b", "a"]], ["c"]), ([["b"], ["c"]], []), ([], ["b"]), ([["a"], ["b"]], ["c"])]
    sets, wanted = [], []
    for row in range(ASKED):
        any_of, none_of = kinds[row % len(kinds)]
        sets.append(filters.allowed(any_of, none_of))
        mask = torch.ones(ITEMS + 1, dtype=torch.bool)
        for group in any_of:
            mask &= torch.stack([masks[name] for name in group]).any(0)
        for name in none_of:
            mask &= ~masks[name]
        wanted.append(mask)
    return FilteredSets.stacked(sets), torch.stack(wanted)


class FakePointer(FakeGenerator):
    """A FakeGenerator whose beams have a vector, as items have, so that buckets can be searched."""

    def vectors_of(self, state: GeneratorState, codes: Tensor) -> Tensor:
        return torch.randn((*codes.shape, 4), generator=torch.Generator().manual_seed(1))

    def item_vectors(self) -> Tensor:
        return torch.randn((ITEMS + 1, 4), generator=torch.Generator().manual_seed(2))


@pytest.mark.slow
def test_a_hundred_thousand_random_requests_are_answered_by_legal_items() -> None:
    """Every way to search, with allow-lists and with filters kept as bits, over a new catalogue each time; as many
    items as there are, up to k."""
    draw = torch.Generator().manual_seed(0)
    sampled = Sampling(draw, (0.5, 2.0))
    narrow = Sampling(draw, top_k=2, top_p=0.7)
    ways: list[dict[str, Any]] = [
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
    for number in range(ROUNDS):
        sizes = (3, 5, 4)
        codes = torch.stack([torch.randint(0, size, (ITEMS,), generator=draw) for size in sizes], dim=1)
        trie = PrefixTrie.from_table(identifier_table(codes.tolist(), sizes))
        way, k = dict(ways[number % len(ways)]), 1 + number % 11
        per_list = min(k, way.get("items_per_list", 1))
        if "items_per_list" in way:
            way["items_per_list"] = per_list
        fake = FakePointer.random(sizes, users=ASKED, seed=number, items_per_list=per_list)
        batch = _random_requests(draw)
        if "share" in way:
            way["new"] = torch.rand(ITEMS + 1, generator=draw) < 0.3
        elif number // len(ways) % 2:  # a mask that says otherwise may not count
            way["allowed"], mask = _random_filters(draw, trie)
            legal = replace(batch, allowed=mask).legal(ITEMS)
        if "allowed" not in way:
            legal = batch.legal(ITEMS)
        assert legal is not None
        search: Any = next((each for name, each in searches.items() if name in way), beam_search)
        found = search(fake, batch, trie, k=k, beam_width=k + 2, **way)
        real = found.item_ids > 0
        assert bool((legal.gather(1, found.item_ids) | ~real).all())
        ordered = found.item_ids.sort(1).values
        assert not bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)).any())
        if "share" in way:
            assert bool(((real & way["new"][found.item_ids]).sum(1) <= int(0.3 * k)).all())
        elif way.get("sampling") is not narrow:
            wanted = legal.sum(1).clamp(max=per_list if per_list > 1 else k)
            assert torch.equal(real.sum(1), wanted)
