"""The trace of a search: what stays, what is pruned and what a constraint cuts, against a walk in plain Python."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from support.fake_generator import FakeGenerator, FakeParallelGenerator, identifier_table, requests
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.beam_trace import BeamTrace, TracedLevel, TracedPrefix
from nextitem.decoding.guide import Guide
from nextitem.decoding.trie import PrefixTrie

SIZES = (3, 4, 3)
ROWS = [list(codes) for codes in product(*(range(size) for size in SIZES)) if sum(codes) % 4 != 3]
TRIE = PrefixTrie.from_table(identifier_table(ROWS, SIZES))
POPULARITY = torch.arange(len(ROWS) + 1).float()
WIDTH = 4
Prefix = tuple[int, ...]


def walk(
    generator: FakeGenerator, user: int, allowed: set[int], guide: Tensor | None = None, weight: float = 0.0
) -> list[list[tuple[Prefix, float]]]:
    """Return all live children of the beams at each level with their values, best first: the definition."""
    rows = [tuple(codes) for codes in ROWS]
    beams: list[Prefix] = [()]
    levels = []
    for depth in range(1, len(SIZES) + 1):
        children = sorted({row[:depth] for row in rows if row[: depth - 1] in beams})
        values = []
        for child in children:
            below = [item for item in sorted(allowed) if rows[item - 1][:depth] == child]
            if not below:
                continue
            value = generator.log_prob(user, list(child))
            if guide is not None:
                largest = max(float(guide[user - 1, item]) for item in below)
                value = math.log((1 - weight) * math.exp(value) + weight * largest)
            values.append((child, value))
        values.sort(key=lambda pair: -pair[1])
        beams = [child for child, _ in values[:WIDTH]]
        levels.append(values)
    return levels


def of_state(level: TracedLevel, state: str) -> list[TracedPrefix]:
    return [prefix for prefix in level.prefixes if prefix.state == state]


def values_of(prefixes: list[TracedPrefix]) -> list[tuple[Prefix, object]]:
    return [(prefix.codes, pytest.approx(prefix.score, abs=1e-4)) for prefix in prefixes]


def traced(generator: FakeGenerator, batch: SequenceBatch, guide: Guide | None = None) -> BeamTrace:
    trace = BeamTrace()
    options = {"k": WIDTH, "beam_width": WIDTH, "guide": guide}
    answer = beam_search(generator, batch, TRIE, **options, watch=trace)  # type: ignore[arg-type]
    plain = beam_search(generator, batch, TRIE, **options)  # type: ignore[arg-type]
    assert answer.item_ids.equal(plain.item_ids)
    assert answer.scores.equal(plain.scores)
    return trace


@pytest.mark.parametrize("kind", [FakeGenerator, FakeParallelGenerator])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("is_guided", [False, True])
def test_a_trace_is_the_walk_of_the_definition(kind: type[FakeGenerator], seed: int, is_guided: bool) -> None:
    generator = kind.random(SIZES, users=2, seed=seed)
    everything = set(range(1, len(ROWS) + 1))
    allowed = torch.zeros(2, len(ROWS) + 1, dtype=torch.bool)
    allowed[:, 1:] = torch.rand(2, len(ROWS), generator=torch.Generator().manual_seed(seed)) < 0.5
    excluded = [[1, 2, 3], [5]]
    probabilities = torch.rand(2, len(ROWS) + 1, generator=torch.Generator().manual_seed(seed + 9))
    probabilities[:, 0] = 0
    probabilities /= probabilities.sum(1, keepdim=True)
    guide = Guide(probabilities, 0.4) if is_guided else None
    weights = (probabilities, 0.4) if is_guided else (None, 0.0)
    trace = traced(generator, requests(2, allowed=allowed, excluded=excluded), guide)
    free = traced(generator, requests(2), guide)
    for row in range(2):
        live = {item for item in everything if bool(allowed[row, item])} - set(excluded[row])
        expected, unlimited = walk(generator, row + 1, live, *weights), walk(generator, row + 1, everything, *weights)
        levels = trace.levels(row, POPULARITY, free=free)
        assert [level.level for level in levels] == [1, 2, 3]
        for level, best, all_best in zip(levels, expected, unlimited, strict=True):
            assert values_of(of_state(level, "kept")) == best[:WIDTH]
            assert values_of(of_state(level, "pruned")) == best[WIDTH : WIDTH + 20]
            is_live = {tuple(ROWS[item - 1][: level.level]) for item in live}
            cut = [(codes, value) for codes, value in all_best[:WIDTH] if codes not in is_live]
            assert values_of(of_state(level, "cut")) == cut
            assert level.num_cut == len(cut)
            for prefix in level.prefixes:
                own = generator.log_prob(row + 1, list(prefix.codes))
                assert prefix.model == (pytest.approx(own, abs=1e-4) if is_guided else None)
                below = [n for n, codes in enumerate(ROWS, 1) if tuple(codes[: level.level]) == prefix.codes]
                assert prefix.items == tuple(sorted(below, reverse=True)[:3])
                if is_guided and prefix.state != "cut":
                    largest = max(float(probabilities[row, item]) for item in below if item in live)
                    assert prefix.guide == pytest.approx(math.log(largest), abs=1e-4)


def test_without_constraints_nothing_is_cut() -> None:
    generator = FakeGenerator.random(SIZES, users=1, seed=1)
    levels = traced(generator, requests(1)).levels(0, POPULARITY)
    assert [level.num_cut for level in levels] == [0, 0, 0]
    assert {prefix.state for level in levels for prefix in level.prefixes} == {"kept", "pruned"}


def test_a_guide_without_probability_below_a_prefix_has_no_value_there() -> None:
    generator = FakeGenerator.random(SIZES, users=1, seed=1)
    probabilities = torch.zeros(1, len(ROWS) + 1)
    probabilities[0, 1] = 1.0
    levels = traced(generator, requests(1), Guide(probabilities, 0.5)).levels(0, POPULARITY)
    for level in levels:
        values = {prefix.codes: prefix.guide for prefix in level.prefixes}
        assert values.pop(tuple(ROWS[0][: level.level])) == 0.0
        assert set(values.values()) == {None}


def test_only_the_first_of_several_items_is_traced() -> None:
    generator = FakeGenerator.random(SIZES, users=1, seed=2, items_per_list=2)
    trace = BeamTrace()
    beam_search(generator, requests(1), TRIE, k=4, beam_width=WIDTH, items_per_list=2, watch=trace)
    expected = walk(generator, 1, set(range(1, len(ROWS) + 1)))
    for level, best in zip(trace.levels(0, POPULARITY), expected, strict=True):
        assert values_of(of_state(level, "kept")) == best[:WIDTH]
