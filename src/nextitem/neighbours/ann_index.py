"""An index for approximate search among item vectors, with its recall against exact search measured when it is built.

kinds   exact  ops.vector_search, which misses nothing
        flat   faiss, every vector in float32: the yardstick
        ivf    faiss, the vectors of the nearest of some clusters
        hnsw   faiss, a walk on a graph of neighbours (Malkov, Yashunin, arXiv 1603.09320)
        pq     faiss, every vector in a few bytes (Jegou et al. 2011)

What an index finds is scored by the vectors themselves, so scores are true ones whatever the kind. A request with an
allow-list, or one for which the index finds too few items, is answered by exact search.

Shapes: B queries, N items, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.top_items import append_unseen
from nextitem.core.vector_model import VectorModel
from nextitem.ops.tensor_version import version_of
from nextitem.ops.topk import stable_topk
from nextitem.ops.vector_search import VectorTable


class AnnIndexConfig(configs.Config):
    """Settings of AnnIndex."""

    kind: Literal["exact", "flat", "ivf", "hnsw", "pq"] = "exact"
    """Kind of index."""
    clusters: int = Field(256, ge=1)
    """Ivf: clusters of vectors; fewer where there are few items."""
    probes: int = Field(16, ge=1)
    """Ivf: clusters that are searched."""
    links: int = Field(32, ge=2)
    """Hnsw: neighbours of a vector."""
    build_width: int = Field(80, ge=1)
    """Hnsw: candidates kept while building."""
    search_width: int = Field(128, ge=1)
    """Hnsw: candidates kept while searching, at least as many as are asked for."""
    code_bytes: int = Field(16, ge=1)
    """Pq: bytes of a vector, at most D."""
    oversampling: int = Field(4, ge=1)
    """Candidates for each item returned, scored by their true vectors."""
    recall_at: int = Field(100, ge=1)
    """Items of the lists that recall is measured on."""
    recall_queries: int = Field(200, ge=1)
    """Queries that recall is measured on."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        kind = f"kind is {self.kind}"
        approximate = ("oversampling", "recall_at", "recall_queries")
        return {
            **configs.idle_unless(self.kind == "ivf", kind, "clusters", "probes"),
            **configs.idle_unless(self.kind == "hnsw", kind, "links", "build_width", "search_width"),
            **configs.idle_unless(self.kind == "pq", kind, "code_bytes"),
            **configs.idle_unless(self.kind != "exact", kind, *approximate),
        }


class AnnIndex(nn.Module):
    """Finds the items of largest inner product. What faiss has built is a buffer, so that a bundle holds it.

    `recall` is the share of exact search's first `recall_at` items that it found when it was built; NaN before.
    """

    packed: Tensor
    recall: Tensor

    def __init__(self, config: AnnIndexConfig) -> None:
        super().__init__()
        self.settings = config
        self.register_buffer("packed", torch.zeros(0, dtype=torch.uint8))
        self.register_buffer("recall", torch.tensor(torch.nan))
        self._table: tuple[VectorTable, int] | None = None  # and the version of the vectors that it was made of
        self._index: tuple[Tensor, int, Any] | None = None  # the buffer that it was unpacked from, its version, and it

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moved as any module; what was made of tensors on another device stays behind."""
        self._table = self._index = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def build(self, vectors: Tensor, queries: Tensor | None = None) -> None:
        """Indexes `vectors [N + 1, D]` (row 0 is padding) and measures recall.

        `queries [Q, D]` is what users' vectors look like; None: item vectors ask. A seeded sample of them is used.
        """
        if self.settings.kind != "exact":
            import faiss

            points = np.ascontiguousarray(vectors[1:].detach().cpu().float().numpy())
            index = _new_index(self.settings, *points.shape)
            index.train(points)
            index.add(points)
            self.packed = torch.from_numpy(faiss.serialize_index(index))
        asking = vectors[1:] if queries is None else queries
        draw = torch.Generator().manual_seed(0)
        asking = asking[torch.randperm(len(asking), generator=draw)[: self.settings.recall_queries]].cpu()
        self.recall = torch.tensor(self.measure(vectors, asking, self.settings.recall_at))

    def measure(self, vectors: Tensor, queries: Tensor, k: int) -> float:
        """Share of exact search's first k items that the index finds."""
        if self.settings.kind == "exact":
            return 1.0
        exact = self._exact(vectors).search(queries, k)[0]
        found = self._candidates(vectors, queries, k)[0]
        hits = (exact[:, :, None] == found[:, None, :]).any(2) & (exact > 0)
        return float(hits.sum() / (exact > 0).sum().clamp(min=1))

    def search(
        self,
        vectors: Tensor,
        queries: Tensor,
        k: int,
        *,
        allowed: Tensor | None = None,
        excluded: Jagged | None = None,
        hidden: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Items [B, k] int64 and scores [B, k] for `queries [B, D]`; 0 and -inf where there are no more.

        `vectors` are those of `build`; `allowed` and `excluded` as in SequenceBatch. `hidden` items, bool [N + 1], are
        never found, whoever asks. Ties go to the smaller number.
        """
        legal = allowed
        if hidden is not None:
            legal = ~hidden[None] if allowed is None else allowed & ~hidden
        if self.settings.kind == "exact" or allowed is not None or not self.packed.numel():
            return self._exact(vectors).search(queries, k, allowed=legal, excluded=_rows(excluded))
        items, scores = self._candidates(vectors, queries, k, excluded, hidden)
        short = (items[:, -1] == 0).nonzero()[:, 0]
        if len(short):
            own = None if excluded is None else _rows(excluded.select(short))
            items[short], scores[short] = self._exact(vectors).search(queries[short], k, allowed=legal, excluded=own)
        return items, scores

    def nearest(self, model: VectorModel, queries: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
        """Return the k items of largest inner product with `queries [B, D]`; items unseen by the model follow."""
        unseen = model.unseen_items()
        found = self.search(
            model.item_vectors(), queries, k, allowed=batch.allowed, excluded=batch.excluded, hidden=unseen
        )
        return append_unseen(Recommendations(*found), batch, unseen)

    def _exact(self, vectors: Tensor) -> VectorTable:
        version = version_of(vectors)
        if self._table is None or self._table[0].vectors is not vectors or self._table[1] != version:
            self._table = (VectorTable(vectors), version)
        return self._table[0]

    def _candidates(
        self,
        vectors: Tensor,
        queries: Tensor,
        k: int,
        excluded: Jagged | None = None,
        hidden: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The best of what the index finds, as `search` returns it."""
        index = self._unpacked()
        left_out = 0 if excluded is None else int(excluded.lengths.max())
        count = min(k * self.settings.oversampling + left_out, index.ntotal)
        if self.settings.kind == "hnsw":
            index.hnsw.efSearch = max(self.settings.search_width, count)
        asked = np.ascontiguousarray(queries.detach().cpu().float().numpy())
        items = torch.from_numpy(index.search(asked, count)[1]) + 1  # 0 where faiss found no more
        items = items.sort(dim=1).values  # so that ties go to the smaller number
        scores = torch.bmm(vectors[items], queries[:, :, None].to(vectors.dtype))[:, :, 0].float()
        scores.masked_fill_(items == 0 if hidden is None else (items == 0) | hidden[items], -torch.inf)
        if excluded is not None:
            span = len(vectors)
            keys = torch.arange(len(items))[:, None] * span + items
            scores.masked_fill_(torch.isin(keys, excluded.row_ids() * span + excluded.values), -torch.inf)
        values, places = stable_topk(scores, min(k, count))
        found = items.gather(1, places).masked_fill(values == -torch.inf, 0)
        missing = (0, k - values.shape[1])
        return nn.functional.pad(found, missing), nn.functional.pad(values, missing, value=-torch.inf)

    def _unpacked(self) -> Any:
        version = version_of(self.packed)
        if self._index is None or self._index[0] is not self.packed or self._index[1] != version:
            import faiss

            self._index = (self.packed, version, faiss.deserialize_index(self.packed.cpu().numpy()))
        return self._index[2]


def _rows(excluded: Jagged | None) -> tuple[Tensor, Tensor] | None:
    return None if excluded is None else (excluded.values, excluded.offsets)


def _new_index(settings: AnnIndexConfig, count: int, width: int) -> Any:
    """An empty faiss index for `count` vectors of `width` numbers, by inner product."""
    import faiss

    product = faiss.METRIC_INNER_PRODUCT
    if settings.kind == "ivf":
        clusters = max(1, min(settings.clusters, count // 39))  # faiss wants 39 points a cluster
        inverted = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, clusters, product)
        inverted.nprobe = min(settings.probes, clusters)
        return inverted
    if settings.kind == "hnsw":
        graph = faiss.IndexHNSWFlat(width, settings.links, product)
        graph.hnsw.efConstruction = settings.build_width
        return graph
    if settings.kind == "pq":
        parts = max(size for size in range(1, min(settings.code_bytes, width) + 1) if width % size == 0)
        bits = max(1, min(8, int(np.log2(max(2, count // 39)))))
        return faiss.IndexPQ(width, parts, bits, product)
    return faiss.IndexFlatIP(width)
