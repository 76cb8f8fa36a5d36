"""AnnIndex: recall of each kind, excluded, allowed and hidden items, exact search as a fallback, storage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextitem.core.jagged import Jagged
from nextitem.neighbours.ann_index import AnnIndex, AnnIndexConfig, ExactIndex, FlatIndex, HNSWIndex, IVFIndex, PQIndex
from nextitem.ops.vector_search import search_vectors_reference
from nextitem.pipeline.bundle import load_weights, save_weights

GENERATOR = torch.Generator().manual_seed(0)
CENTRES = torch.randn(50, 16, generator=GENERATOR)
VECTORS = CENTRES[torch.randint(0, 50, (6001,), generator=GENERATOR)] + 0.4 * torch.randn(6001, 16, generator=GENERATOR)
QUERIES = CENTRES[:30] + 0.4 * torch.randn(30, 16, generator=GENERATOR)
KINDS = {"exact": 1.0, "flat": 1.0, "ivf": 0.9, "hnsw": 0.9, "pq": 0.9}


SMALL: dict[str, AnnIndexConfig] = {
    "exact": ExactIndex(),
    "flat": FlatIndex(recall_at=20),
    "ivf": IVFIndex(recall_at=20, clusters=64),
    "hnsw": HNSWIndex(recall_at=20),
    "pq": PQIndex(recall_at=20),
}


def built_index(kind: str, **settings: object) -> AnnIndex:
    index = AnnIndex(SMALL[kind].model_copy(update=settings))
    index.build(VECTORS, QUERIES)
    return index


@pytest.mark.parametrize("kind", KINDS)
def test_recall_is_measured_when_the_index_is_built(kind: str) -> None:
    index = built_index(kind)
    exact, scores = search_vectors_reference(VECTORS, QUERIES, 20)
    items, item_scores = index.search(VECTORS, QUERIES, 20)
    is_hit = (exact[:, :, None] == items[:, None, :]).any(2)
    assert float(is_hit.double().mean()) == pytest.approx(float(index.recall), abs=1e-6)
    assert float(index.recall) >= KINDS[kind]
    has_all_items = is_hit.all(1)
    torch.testing.assert_close(item_scores[has_all_items], scores[has_all_items], rtol=1e-5, atol=1e-5)


def test_recall_of_a_poor_index_is_low() -> None:
    assert float(built_index("pq", code_bytes=1, oversampling=1).recall) < 0.6
    assert float(built_index("ivf", probes=1).recall) < float(built_index("ivf", probes=16).recall)


@pytest.mark.parametrize("kind", KINDS)
def test_excluded_and_allowed_items_of_a_request_are_respected(kind: str) -> None:
    index = built_index(kind)
    best = index.search(VECTORS, QUERIES, 10)[0]
    excluded = Jagged.from_rows([row[:7] for row in best.tolist()])
    items = index.search(VECTORS, QUERIES, 10, excluded=excluded)[0]
    assert not (items[:, :, None] == best[:, None, :7]).any()
    assert torch.equal(items[:, :3], best[:, 7:])
    allowed = torch.zeros(1, 6001, dtype=torch.bool)
    allowed[0, [17, 5000]] = True
    items = index.search(VECTORS, QUERIES, 3, allowed=allowed)[0]
    assert items.sort(dim=1).values.tolist() == [[0, 17, 5000]] * 30


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_items_are_never_returned(kind: str) -> None:
    index = built_index(kind)
    best = index.search(VECTORS, QUERIES, 10)[0]
    hidden = torch.isin(torch.arange(6001), best[:, :7].flatten())
    items, scores = index.search(VECTORS, QUERIES, 10, hidden=hidden)
    assert not bool(hidden[items].any())
    assert bool((items > 0).all())
    assert bool((scores[:, 1:] <= scores[:, :-1]).all())
    allowed = torch.isin(torch.arange(6001), torch.tensor([17, 5000, int(best[0, 0])]))[None]
    allowed_items = {17, 5000} - set(hidden.nonzero()[:, 0].tolist())
    items = index.search(VECTORS, QUERIES[:1], 4, allowed=allowed, hidden=hidden)[0]
    assert {item for item in items[0].tolist() if item} == allowed_items
    all_items = index.search(VECTORS, QUERIES[:2], 6001, hidden=hidden)[0]
    assert (all_items > 0).sum(1).tolist() == [6000 - int(hidden.sum())] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_exact_search_fills_lists_that_the_index_leaves_short(kind: str) -> None:
    index = built_index(kind, probes=1)
    items, scores = index.search(VECTORS, QUERIES[:3], 6003)
    assert (items > 0).sum(1).tolist() == [6000] * 3
    assert bool((scores[:, 1:] <= scores[:, :-1]).all())


@pytest.mark.parametrize("kind", KINDS)
def test_index_with_fewer_items_than_clusters(kind: str) -> None:
    index = AnnIndex(type(SMALL[kind])())
    index.build(VECTORS[:4])
    items = index.search(VECTORS[:4], QUERIES[:2], 5)[0]
    assert items.sort(dim=1).values.tolist() == [[0, 0, 1, 2, 3]] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_index_loaded_from_disk_returns_the_same_items(kind: str, tmp_path: Path) -> None:
    index = built_index(kind)
    save_weights(tmp_path / "index.safetensors", index)
    loaded = AnnIndex(index.config)
    load_weights(tmp_path / "index.safetensors", loaded)
    assert torch.equal(loaded.search(VECTORS, QUERIES, 5)[0], index.search(VECTORS, QUERIES, 5)[0])
    assert loaded.recall == index.recall
