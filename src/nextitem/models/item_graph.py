"""Item graph: an untrained walk on the graph of item transitions, re-weighted by content.

arXiv 2605.07125 (2026) shows that such a walk from the last one or two items matches or beats most published
sequential and generative recommenders on common data sets. It is the baseline to beat: a model with lower metrics has
no demonstrated benefit on that data.

    a = e_last + previous_weight * e_previous                 start of the walk
    s = a P + second_step * a P P                             P: row-normalised transitions of training
    f = a F F'                                                F: L2-normalised TF-IDF rows of the items' content
    score = s * (content_floor + f) + content_weight * f

Notable
- The items at the start of the walk get no content score of their own. If repeats are allowed, each would otherwise
  recommend itself. Transitions may still lead back to them.
- Transitions count at several lags, and backwards at a part of their weight.
- If items have neither text nor categorical features, f = 1 - content_floor and the score is s alone.
- Nothing is trained. The weights are those of the paper, except content_weight: 0.01 instead of 0.02 is clearly better
  on the validation requests of Amazon Sports, and hardly worse on those of Beauty.

Shapes: B requests, N items, K returned.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import ClassVar, TypeVar

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.interactions import Interactions
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.top_items import top_items
from nextitem.data.text import split_words
from nextitem.neighbours.sparse_rows import SparseRows, ages, weighted_histories
from nextitem.neighbours.transitions import count_transitions

# Far below the score of any real transition, so popularity only orders what the walk does not reach.
BACKFILL = 1e-7
BLOCK_SCORES = 2**22  # scores in memory of a thread at a time: 16 MiB, and a few copies of that size

Read = TypeVar("Read")


class ItemGraphConfig(configs.Config):
    """Settings of ItemGraph."""

    lag_weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Weights of transitions between events that are 1, 2, 3, ... events apart."""
    backward: float = Field(0.5, ge=0)
    """Weight of the reverse of a transition, relative to the transition."""
    previous_weight: float = Field(0.5, ge=0)
    """Start weight of the last item but one, relative to that of the last item."""
    second_step: float = Field(0.3, ge=0)
    """Weight of walks of two steps, relative to walks of one step."""
    content_floor: float = Field(0.05, ge=0)
    """Factor on the score of a transition between items that share no content."""
    content_weight: float = Field(0.01, ge=0)
    """Weight of the score of content similarity alone, without transitions."""
    use_content: bool = True
    """Whether to use content; False: transitions alone."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return configs.idle_unless(self.use_content, "use_content is false", "content_floor", "content_weight")


class ItemGraph(Recommender):
    """A recommender that ranks items by a two-step walk from the last items, re-weighted by content similarity."""

    Config = ItemGraphConfig
    config: ItemGraphConfig
    known_answers: ClassVar[tuple[str, ...]] = ("checkerboard", "planted-clusters")

    def __init__(self, config: ItemGraphConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.transitions = SparseRows()  # P [N + 1, N + 1]
        self.content = SparseRows()  # F [N + 1, V]; V = 0 if there is no content

    def fit(self, train: Dataset) -> None:
        """Count transitions of the training sequences and compute the TF-IDF weights of the items' words."""
        self.transitions.store(item_transitions(train.interactions.targets_only(), self.config))
        documents = _documents(self.catalog) if self.config.use_content else []
        self.content.store(_tfidf(documents, self.num_items))

    @property
    def can_rank_unseen_items(self) -> bool:
        """Whether items have content; without content no walk reaches an item that has no event."""
        return int(self.content.shape[1]) > 0

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Score every item for each request, [B, N + 1] (roles.ItemScorer)."""
        return torch.cat(list(self._by_blocks(batch, lambda scores, rows: scores)))

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        answers = self._by_blocks(batch, lambda scores, rows: top_items(scores, batch.select(rows), k))
        return Recommendations(
            torch.cat([answer.item_ids for answer in answers]), torch.cat([answer.scores for answer in answers])
        )

    def _by_blocks(self, batch: SequenceBatch, read: Callable[[Tensor, Tensor], Read]) -> list[Read]:
        """Return the results of `read` for consecutive blocks of requests, in order.

        Args:
            batch: the requests.
            read: function of the scores [n, N + 1] of n requests and of their rows [n] in the batch.

        """
        recent = batch.items.last(2)
        weights = torch.where(ages(recent.offsets) == 0, 1.0, self.config.previous_weight)
        start = weighted_histories(recent.values, recent.offsets, weights, num_items=self.num_items)
        transitions, content = self.transitions.matrix(), self.content.matrix()
        words = content.T.tocsr()
        backfill = BACKFILL * self.popularity.cpu() / self.popularity.max().clamp(min=1).cpu()

        def block_result(span: tuple[int, int]) -> Read:
            rows = start[span[0] : span[1]]
            one_step = rows @ transitions
            scores = torch.from_numpy((one_step + self.config.second_step * (one_step @ transitions)).toarray())
            if content.shape[1]:
                content_scores = torch.from_numpy(((rows @ content) @ words).toarray())
                scores *= self.config.content_floor + content_scores
                block_events = slice(recent.offsets[span[0]], recent.offsets[span[1]])
                content_scores[recent.row_ids()[block_events] - span[0], recent.values[block_events]] = 0
                scores += self.config.content_weight * content_scores
            return read(scores.add_(backfill), torch.arange(*span))

        # scipy multiplies on one thread and releases the GIL, so blocks of rows are distributed over several threads.
        threads, block_size = torch.get_num_threads(), max(1, BLOCK_SCORES // (self.num_items + 1))
        num_blocks = max(threads, -(-batch.num_requests // block_size))
        bounds = np.unique(np.linspace(0, batch.num_requests, num_blocks + 1).astype(int)).tolist()
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(block_result, pairwise(bounds)))


def item_transitions(log: Interactions, settings: ItemGraphConfig) -> sp.csr_matrix:
    """Return row-normalised transitions [N + 1, N + 1] between events of the same user, for lags 1, 2, ..."""
    total = count_transitions(log, settings.lag_weights)
    total = (total + settings.backward * total.T).tocsr()
    sums = np.asarray(total.sum(axis=1)).ravel()
    total.data /= np.repeat(np.where(sums > 0, sums, 1), np.diff(total.indptr)).astype(np.float32)
    return total


def _documents(catalog: Catalog) -> list[list[str]]:
    """Return the words of each item: those of its content sentence, or else its categorical features."""
    if catalog.text is not None:
        return [split_words(sentence) for sentence in catalog.text.fill_null("").to_list()]
    columns = [name for name, kind in catalog.features.items() if kind.startswith("categorical")]
    documents: list[list[str]] = [[] for _ in range(catalog.num_items)]
    for name in columns:
        column = catalog.table[name]
        values = column if isinstance(column.dtype, pl.List) else column.reshape((-1, 1)).arr.to_list()
        for document, entry in zip(documents, values.to_list(), strict=True):
            document += [f"{name}={value}" for value in entry or [] if value is not None]
    return documents


def _tfidf(documents: list[list[str]], num_items: int) -> sp.csr_matrix:
    """Return the L2-normalised TF-IDF weights [N + 1, V]; V = 0 if there are no words."""
    if not any(documents):
        return sp.csr_matrix((num_items + 1, 0), dtype=np.float32)
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(analyzer=list, dtype=np.float32).fit_transform(documents)
    return sp.vstack([sp.csr_matrix((1, weights.shape[1]), dtype=np.float32), weights]).tocsr()
