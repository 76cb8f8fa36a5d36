"""AnnIndex: approximate nearest-neighbour search among item vectors, with its recall measured when it is built.

kinds   exact  ops.vector_search, which misses nothing
        flat   faiss, scans every vector in float32: the yardstick of the faiss kinds
        ivf    faiss, scans the vectors of the nearest clusters
        hnsw   faiss, walks on a graph of neighbours (Malkov, Yashunin, arXiv 1603.09320)
        pq     faiss, scans every vector, compressed to a few bytes (Jegou et al. 2011)

The candidates of an index are scored again by their own vectors, so scores are exact for every kind. Exact search
answers a request that has an allow-list, or for which the index returns too few items. Recall is measured against
exact search.

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


class ExactIndex(configs.Choice):
    """Exact search among all vectors."""

    kind: Literal["exact"] = "exact"
    """Exact search (ops.vector_search)."""


class _FaissIndex(configs.Choice):
    """Settings of every index of faiss: how many candidates are scored again, and how recall is measured."""

    oversampling: int = Field(4, ge=1)
    """Number of candidates for each item returned; all are scored by their uncompressed vectors."""
    recall_at: int = Field(100, ge=1)
    """Length of the lists (items) on which the recall of the index is measured."""
    recall_queries: int = Field(200, ge=1)
    """Number of queries on which the recall of the index is measured."""


class FlatIndex(_FaissIndex):
    """A scan of all vectors."""

    kind: Literal["flat"] = "flat"
    """A scan of all vectors in float32."""


class IVFIndex(_FaissIndex):
    """A scan of the nearest clusters."""

    kind: Literal["ivf"] = "ivf"
    """A scan of the vectors of the nearest clusters."""
    clusters: int = Field(256, ge=1)
    """Number of clusters of vectors; fewer if there are few items."""
    probes: int = Field(16, ge=1)
    """Number of clusters that a query searches."""


class HNSWIndex(_FaissIndex):
    """A walk on a graph of neighbours."""

    kind: Literal["hnsw"] = "hnsw"
    """A walk on a graph of neighbours."""
    links: int = Field(32, ge=2)
    """Number of neighbours of each vector in the graph."""
    build_width: int = Field(80, ge=1)
    """Number of candidates that the search keeps while the graph is built."""
    search_width: int = Field(128, ge=1)
    """Number of candidates that a query keeps; at least the number of items that it has to return."""


class PQIndex(_FaissIndex):
    """A scan of compressed vectors."""

    kind: Literal["pq"] = "pq"
    """A scan of all vectors, compressed to a few bytes."""
    code_bytes: int = Field(16, ge=1)
    """Number of bytes of a compressed vector, at most its width (D)."""


AnnIndexConfig = ExactIndex | FlatIndex | IVFIndex | HNSWIndex | PQIndex


class AnnIndex(nn.Module):
    """Index that returns the items with the largest inner products with query vectors.

    The serialised faiss index is a buffer, so it is saved in a bundle. `recall` is the fraction of the first
    `recall_at` items of exact search that the index returned when it was built; NaN before.
    """

    packed: Tensor
    recall: Tensor

    def __init__(self, config: AnnIndexConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("packed", torch.zeros(0, dtype=torch.uint8))
        self.register_buffer("recall", torch.tensor(torch.nan))
        self._table: tuple[VectorTable, int] | None = None  # table, version of the vectors that it was built from
        self._index: tuple[Tensor, int, Any] | None = None  # source buffer, its version, deserialised index

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the module, and drop caches that were built from tensors on the former device."""
        self._table = self._index = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def take_over(self, former: AnnIndex) -> None:
        """Do nothing (roles.TakesOver): the index is built again; until then every vector is searched."""

    def build(self, vectors: Tensor, queries: Tensor | None = None) -> None:
        """Build the index of `vectors [N + 1, D]` (row 0 is padding) and measure its recall.

        Recall is measured on a seeded sample of `queries [Q, D]`, vectors of typical users, or of item vectors if that
        is None.
        """
        if isinstance(self.config, ExactIndex):
            self.recall = torch.tensor(1.0)
            return
        import faiss

        points = np.ascontiguousarray(vectors[1:].detach().cpu().float().numpy())
        index = _new_index(self.config, *points.shape)
        index.train(points)
        index.add(points)
        self.packed = torch.from_numpy(faiss.serialize_index(index))
        if queries is None:
            queries = vectors[1:]
        generator = torch.Generator().manual_seed(0)
        sample = queries[torch.randperm(len(queries), generator=generator)[: self.config.recall_queries]].cpu()
        self.recall = torch.tensor(self.measure(vectors, sample, self.config.recall_at))

    def measure(self, vectors: Tensor, queries: Tensor, k: int) -> float:
        """Return the recall at k: the fraction of the first k items of exact search that the index returns."""
        if isinstance(self.config, ExactIndex):
            return 1.0
        exact = self._exact_index(vectors).search(queries, k)[0]
        approximate = self._candidates(vectors, queries, k)[0]
        is_hit = (exact[:, :, None] == approximate[:, None, :]).any(2) & (exact > 0)
        return float(is_hit.sum() / (exact > 0).sum().clamp(min=1))

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
        """Return the items with the largest inner products with the queries, and these products.

        Ties go to the smaller item number.

        Args:
            vectors: item vectors [N + 1, D], the same as in `build`.
            queries: query vectors [B, D].
            k: number of items to return for each query.
            allowed: allow-lists, as in SequenceBatch.
            excluded: excluded items of each query, as in SequenceBatch.
            hidden: items, bool [N + 1], that are returned for no query.

        Returns:
            Items [B, k] int64 and scores [B, k]; 0 and -inf at the end of a list if there are fewer than k items.

        """
        legal = allowed
        if hidden is not None:
            legal = ~hidden[None] if allowed is None else allowed & ~hidden
        if isinstance(self.config, ExactIndex) or allowed is not None or not self.packed.numel():
            return self._exact_index(vectors).search(queries, k, allowed=legal, excluded=_jagged_parts(excluded))
        items, scores = self._candidates(vectors, queries, k, excluded, hidden)
        short = (items[:, -1] == 0).nonzero()[:, 0]
        if len(short):
            exclusions = None if excluded is None else _jagged_parts(excluded.select(short))
            items[short], scores[short] = self._exact_index(vectors).search(
                queries[short], k, allowed=legal, excluded=exclusions
            )
        return items, scores

    def nearest(self, model: VectorModel, queries: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
        """Return the k items with the largest inner products with `queries [B, D]`.

        Items that the model has not seen in training follow at the end of the lists.
        """
        unseen = model.unseen_items()
        items, scores = self.search(
            model.item_vectors(), queries, k, allowed=batch.allowed, excluded=batch.excluded, hidden=unseen
        )
        return append_unseen(Recommendations(items, scores), batch, unseen)

    def _exact_index(self, vectors: Tensor) -> VectorTable:
        """Return the table for exact search, cached for this version of the vectors."""
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
        """Return the k best candidates of the faiss index, in the format of `search`."""
        index = self._faiss_index()
        num_excluded = 0 if excluded is None else int(excluded.lengths.max())
        assert not isinstance(self.config, ExactIndex)
        count = min(k * self.config.oversampling + num_excluded, index.ntotal)
        if isinstance(self.config, HNSWIndex):
            index.hnsw.efSearch = max(self.config.search_width, count)
        query_array = np.ascontiguousarray(queries.detach().cpu().float().numpy())
        items = torch.from_numpy(index.search(query_array, count)[1]) + 1  # 0 at the end if faiss returns fewer
        items = items.sort(dim=1).values  # so that ties go to the smaller item number
        scores = torch.bmm(vectors[items], queries[:, :, None].to(vectors.dtype))[:, :, 0].float()
        scores.masked_fill_(items == 0 if hidden is None else (items == 0) | hidden[items], -torch.inf)
        if excluded is not None:
            span = len(vectors)
            keys = torch.arange(len(items))[:, None] * span + items
            scores.masked_fill_(torch.isin(keys, excluded.row_ids() * span + excluded.values), -torch.inf)
        top_scores, places = stable_topk(scores, min(k, count))
        top_items = items.gather(1, places).masked_fill(top_scores == -torch.inf, 0)
        padding = (0, k - top_scores.shape[1])
        return nn.functional.pad(top_items, padding), nn.functional.pad(top_scores, padding, value=-torch.inf)

    def _faiss_index(self) -> Any:
        """Return the deserialised faiss index, cached for this version of its buffer."""
        version = version_of(self.packed)
        if self._index is None or self._index[0] is not self.packed or self._index[1] != version:
            import faiss

            self._index = (self.packed, version, faiss.deserialize_index(self.packed.cpu().numpy()))
        return self._index[2]


def _jagged_parts(excluded: Jagged | None) -> tuple[Tensor, Tensor] | None:
    """Return values and offsets of exclusions, or None if there are none."""
    return None if excluded is None else (excluded.values, excluded.offsets)


def _new_index(config: AnnIndexConfig, count: int, width: int) -> Any:
    """Return an empty faiss index for `count` vectors of `width` numbers, by inner product."""
    import faiss

    product = faiss.METRIC_INNER_PRODUCT
    if isinstance(config, IVFIndex):
        clusters = max(1, min(config.clusters, count // 39))  # faiss asks for at least 39 points for each cluster
        inverted = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, clusters, product)
        inverted.nprobe = min(config.probes, clusters)
        return inverted
    if isinstance(config, HNSWIndex):
        graph = faiss.IndexHNSWFlat(width, config.links, product)
        graph.hnsw.efConstruction = config.build_width
        return graph
    if isinstance(config, PQIndex):
        parts = max(size for size in range(1, min(config.code_bytes, width) + 1) if width % size == 0)
        bits = max(1, min(8, int(np.log2(max(2, count // 39)))))
        return faiss.IndexPQ(width, parts, bits, product)
    return faiss.IndexFlatIP(width)
