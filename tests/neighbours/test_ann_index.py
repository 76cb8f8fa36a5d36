"""Every kind of index finds most of what exact search finds, and keeps the rules of a request."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextitem.core.jagged import Jagged
from nextitem.neighbours.ann_index import AnnIndex, AnnIndexConfig
from nextitem.ops.vector_search import search_vectors_reference
from nextitem.pipeline.bundle import load_weights, save_weights

DRAW = torch.Generator().manual_seed(0)
CENTRES = torch.randn(50, 16, generator=DRAW)
VECTORS = CENTRES[torch.randint(0, 50, (6001,), generator=DRAW)] + 0.4 * torch.randn(6001, 16, generator=DRAW)
QUERIES = CENTRES[:30] + 0.4 * torch.randn(30, 16, generator=DRAW)
KINDS = {"exact": 1.0, "flat": 1.0, "ivf": 0.9, "hnsw": 0.9, "pq": 0.9}


def built(kind: str, **settings: object) -> AnnIndex:
    index = AnnIndex(AnnIndexConfig(kind=kind, clusters=64, recall_at=20, **settings))
    index.build(VECTORS, QUERIES)
    return index


@pytest.mark.parametrize("kind", KINDS)
def test_recall_is_measured_when_it_is_built(kind: str) -> None:
    index = built(kind)
    wanted, scores = search_vectors_reference(VECTORS, QUERIES, 20)
    found, found_scores = index.search(VECTORS, QUERIES, 20)
    hits = (wanted[:, :, None] == found[:, None, :]).any(2)
    assert float(hits.double().mean()) == pytest.approx(float(index.recall), abs=1e-6)
    assert float(index.recall) >= KINDS[kind]
    same = hits.all(1)
    torch.testing.assert_close(found_scores[same], scores[same], rtol=1e-5, atol=1e-5)


def test_a_poor_index_says_so() -> None:
    assert float(built("pq", code_bytes=1, oversampling=1).recall) < 0.6
    assert float(built("ivf", probes=1).recall) < float(built("ivf", probes=16).recall)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rules_of_a_request_are_kept(kind: str) -> None:
    index = built(kind)
    best = index.search(VECTORS, QUERIES, 10)[0]
    excluded = Jagged.from_rows([row[:7] for row in best.tolist()])
    found = index.search(VECTORS, QUERIES, 10, excluded=excluded)[0]
    assert not (found[:, :, None] == best[:, None, :7]).any()
    assert torch.equal(found[:, :3], best[:, 7:])
    only = torch.zeros(1, 6001, dtype=torch.bool)
    only[0, [17, 5000]] = True
    found = index.search(VECTORS, QUERIES, 3, allowed=only)[0]
    assert found.sort(dim=1).values.tolist() == [[0, 17, 5000]] * 30


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_items_are_never_found(kind: str) -> None:
    index = built(kind)
    best = index.search(VECTORS, QUERIES, 10)[0]
    hidden = torch.isin(torch.arange(6001), best[:, :7].flatten())
    found, scores = index.search(VECTORS, QUERIES, 10, hidden=hidden)
    assert not bool(hidden[found].any())
    assert bool((found > 0).all())
    assert bool((scores[:, 1:] <= scores[:, :-1]).all())
    only = torch.isin(torch.arange(6001), torch.tensor([17, 5000, int(best[0, 0])]))[None]
    shown = {17, 5000} - set(hidden.nonzero()[:, 0].tolist())
    found = index.search(VECTORS, QUERIES[:1], 4, allowed=only, hidden=hidden)[0]
    assert {item for item in found[0].tolist() if item} == shown
    every = index.search(VECTORS, QUERIES[:2], 6001, hidden=hidden)[0]
    assert (every > 0).sum(1).tolist() == [6000 - int(hidden.sum())] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_the_index_leaves_short_is_searched_exactly(kind: str) -> None:
    index = built(kind, probes=1)
    found, scores = index.search(VECTORS, QUERIES[:3], 6003)
    assert (found > 0).sum(1).tolist() == [6000] * 3
    assert bool((scores[:, 1:] <= scores[:, :-1]).all())


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_items_than_clusters(kind: str) -> None:
    index = AnnIndex(AnnIndexConfig(kind=kind))
    index.build(VECTORS[:4])
    found = index.search(VECTORS[:4], QUERIES[:2], 5)[0]
    assert found.sort(dim=1).values.tolist() == [[0, 0, 1, 2, 3]] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_weights_on_disk_find_the_same(kind: str, tmp_path: Path) -> None:
    index = built(kind)
    save_weights(tmp_path / "index.safetensors", index)
    fresh = AnnIndex(index.settings)
    load_weights(tmp_path / "index.safetensors", fresh)
    assert torch.equal(fresh.search(VECTORS, QUERIES, 5)[0], index.search(VECTORS, QUERIES, 5)[0])
    assert fresh.recall == index.recall
