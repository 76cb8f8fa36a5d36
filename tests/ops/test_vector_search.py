"""Exact search with bounds, compared with computing all inner products, for vectors of various shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextitem.core.jagged import Jagged
from nextitem.ops import vector_search
from nextitem.ops.vector_search import VectorTable, search_vectors_reference


def rows_of(lists: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = Jagged.from_rows(lists)
    return rows.values, rows.offsets


def table_of(vectors: Tensor) -> VectorTable:
    """Return a table that searches with int8 codes, even if it is small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_search, "SMALL", 0)
        table = VectorTable(vectors)
    assert table.has_codes
    return table


def integers(items: int, width: int, *, seed: int, largest: int = 3) -> Tensor:
    """Return vectors of small integers: their products are exact in float32 and have many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, (items, width), generator=generator).float()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_search_equals_the_reference_including_ties(data: st.DataObject) -> None:
    items = data.draw(st.sampled_from([1, 2, 15, 16, 17, 300, 1023, 1024, 1025, 2500]))
    width = data.draw(st.sampled_from([1, 3, 8, 64]))
    count = data.draw(st.integers(1, 5))
    k = data.draw(st.sampled_from([1, 2, 10, 40, items + 3]))
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    vectors, queries = integers(items + 1, width, seed=seed), integers(count, width, seed=seed + 1)
    allowed, excluded = None, None
    kind = data.draw(st.sampled_from(["none", "shared", "own"]))
    if kind != "none":
        share = data.draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))
        allowed = torch.from_numpy(rng.random((1 if kind == "shared" else count, items + 1)) < share)
    if data.draw(st.booleans()):
        excluded = rows_of([rng.integers(0, items + 1, rng.integers(0, 40)).tolist() for _ in range(count)])
    actual, scores = table_of(vectors).search(queries, k, allowed=allowed, excluded=excluded)
    expected = search_vectors_reference(vectors, queries, k, allowed=allowed, excluded=excluded)
    assert torch.equal(actual, expected[0])
    assert torch.equal(scores, expected[1])


@pytest.mark.parametrize("kind", ["usual", "long and short", "nearly alike", "zeros", "one far away"])
def test_search_is_exact_for_vectors_of_any_distribution(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(5001, 24, generator=generator)
    if kind == "long and short":
        vectors *= torch.exp(2 * torch.randn(5001, 1, generator=generator))
    elif kind == "nearly alike":
        vectors = 5 + 1e-3 * vectors
    elif kind == "zeros":
        vectors[100:4000] = 0
    elif kind == "one far away":
        vectors[77] *= 1e4
    queries = torch.randn(7, 24, generator=generator)
    queries[6] = 0
    _, scores = table_of(vectors).search(queries, 50)
    exact = (queries.double() @ vectors[1:].double().T).sort(dim=1, descending=True).values[:, :50]
    torch.testing.assert_close(scores.double(), exact, rtol=1e-4, atol=1e-5)


def test_smaller_groups_of_queries_and_blocks_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = integers(3001, 16, seed=1), integers(9, 16, seed=2)
    allowed = torch.from_numpy(np.random.default_rng(0).random((9, 3001)) < 0.7)
    excluded = rows_of([list(range(1, 60 * row + 1)) for row in range(9)])
    table = table_of(vectors)
    whole = table.search(queries, 20, allowed=allowed, excluded=excluded)
    monkeypatch.setattr(vector_search, "QUERIES", 4)
    monkeypatch.setattr(vector_search, "BLOCK_PRODUCTS", 1)
    parts = table.search(queries, 20, allowed=allowed, excluded=excluded)
    assert torch.equal(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])
    assert table.search(queries[:0], 5)[0].shape == (0, 5)


def test_a_small_table_is_searched_plainly_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = integers(601, 8, seed=3), integers(9, 8, seed=4)
    excluded = rows_of([[row, row + 1] for row in range(9)])
    table = VectorTable(vectors)
    assert not table.has_codes
    monkeypatch.setattr(vector_search, "PLAIN_PRODUCTS", 2 * 601)
    together = table.search(queries, 5, excluded=excluded)
    for row in range(9):
        one = table.search(queries[row : row + 1], 5, excluded=rows_of([[row, row + 1]]))
        assert torch.equal(one[0][0], together[0][row])
        assert torch.equal(one[1][0], together[1][row])


def test_most_vectors_are_never_scored_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    table = table_of(torch.randn(200_001, 32, generator=generator))
    num_candidates: list[int] = []
    original = VectorTable._candidates

    def count_candidates(self: VectorTable, *arguments: Any) -> Tensor:
        items = original(self, *arguments)
        num_candidates.append(len(items))
        return items

    monkeypatch.setattr(VectorTable, "_candidates", count_candidates)
    table.search(torch.randn(20, 32, generator=generator), 10)
    assert max(num_candidates) < 100
