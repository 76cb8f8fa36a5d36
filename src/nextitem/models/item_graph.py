"""Item graph: an untrained walk on the graph of item transitions, re-weighted by content.

arXiv 2605.07125 (2026) shows that such a walk from the last one or two items matches or beats most published
sequential and generative recommenders on common data sets. It is the baseline to beat: a model with lower metrics has
no demonstrated benefit on that data. The walk "published" is the paper's:

    a = e_last + previous_weight * e_previous                 start of the walk
    s = a P + second_step * a P P                             P: row-normalised transitions of training
    f = a F F'                                                F: L2-normalised TF-IDF rows of the items' content
    score = s * (content_floor + f) + content_weight * f

The walk "wide", the default, is better on four real data sets, and worse on the simulated shop (decision 91):

    h = sum over events of decay ** age * e_item              the whole history
    s = count_weight * a C + h Q Q                            C: transition counts, not normalised
    f = h F F'                                                Q: row-normalised transitions over eight lags

Notable
- What follows the last two items counts by how often it was seen, not by its share: a pair that was seen once says
  little, though its share may be 1. Two steps over wide lags reach items that were never seen together.
- The items at the start get no content score of their own. If repeats are allowed, each would otherwise recommend
  itself. Transitions may still lead back to them.
- Transitions count backwards at a part of their weight.
- If items have neither text nor categorical features, f = 1 - content_floor and the score is s alone.
- Nothing is trained. The weights of "wide" were chosen on the validation requests of four data sets; those of
  "published" are the paper's, except content_weight, 0.01 instead of 0.02.

Shapes: B requests, N items, K returned, n requests of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, Literal, TypeVar

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
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.sparse_scores import SparseScores
from nextitem.core.top_items import top_items
from nextitem.data.text import split_words
from nextitem.neighbours.sparse_rows import SparseRows, ages, keep_largest, weighted_histories
from nextitem.neighbours.transitions import count_transitions, item_transitions

# Far below the score of any real transition, so popularity only orders what the walk does not reach.
BACKFILL = 1e-7
BLOCK_SCORES = 2**22  # scores in memory of a thread at a time: 16 MiB, and a few copies of that size
MIN_WEIGHT = 1e-3  # older events, whose weight in a history is below this part of the last one's, are not read

Read = TypeVar("Read")


class PublishedWalk(configs.Choice):
    """Walk of one and two steps from the last two items (arXiv 2605.07125)."""

    kind: Literal["published"] = "published"
    """Walk of one and two steps from the last two items."""
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


class WideWalk(configs.Choice):
    """Counts of what followed the last two items, and two steps over wide lags from the whole history."""

    kind: Literal["wide"] = "wide"
    """Counts of what followed the last two items, and two steps over wide lags from the whole history."""
    near_lag_weights: tuple[float, ...] = (1.0, 0.42, 0.17)
    """Weights of transitions from the last two items, between events that are 1, 2, 3, ... events apart."""
    near_backward: float = Field(0.11, ge=0)
    """Weight of the reverse of these transitions, relative to the transition."""
    previous_weight: float = Field(0.63, ge=0)
    """Weight of the last item but one, relative to that of the last item, among these transitions."""
    count_weight: float = Field(0.02, ge=0)
    """Weight of these transitions, each by its count, relative to the walk of two steps."""
    lag_weights: tuple[float, ...] = (1.0, 0.62, 0.46, 0.38, 0.32, 0.29, 0.26, 0.23)
    """Weights of the transitions of the walk of two steps, between events that are 1, 2, 3, ... events apart."""
    backward: float = Field(0.5, ge=0)
    """Weight of the reverse of these transitions, relative to the transition."""
    max_transitions: int | None = Field(128, ge=1)
    """Number of transitions of an item that the walk of two steps follows, those of the highest weight; none: all."""
    decay: float = Field(0.8, gt=0, lt=1)
    """Weight of an event in the history, relative to that of the event after it."""
    content_floor: float = Field(0.33, ge=0)
    """Factor on the score of a walk between items that share no content."""
    content_weight: float = Field(0.017, ge=0)
    """Weight of the score of content similarity alone, without a walk."""


class ItemGraphConfig(configs.Config):
    """Settings of ItemGraph."""

    walk: WideWalk | PublishedWalk = Field(WideWalk(), discriminator="kind")
    """Walk on the graph, with its weights."""
    use_content: bool = True
    """Whether to use content; False: transitions alone."""

    def unused_settings(self) -> tuple[str, ...]:
        """Return a sentence for each setting that has no effect, the weights of unused content included."""
        changed = {} if self.use_content else self.walk.model_dump(exclude_defaults=True)
        idle = [name for name in ("content_floor", "content_weight") if name in changed]
        sentences = [f"walk.{name} = {changed[name]!r} has no effect: use_content is false" for name in idle]
        return (*super().unused_settings(), *sentences)


class ItemGraph(Recommender):
    """A recommender that ranks items by a walk from the history, re-weighted by content similarity."""

    Config = ItemGraphConfig
    config: ItemGraphConfig
    known_answers: ClassVar[tuple[str, ...]] = ("checkerboard", "planted-clusters")

    def __init__(self, config: ItemGraphConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.transitions = SparseRows()  # P or Q [N + 1, N + 1]
        self.counts = SparseRows()  # C [N + 1, N + 1]; not stored for the published walk
        self.content = SparseRows()  # F [N + 1, V]; V = 0 if there is no content

    def fit(self, train: Dataset) -> None:
        """Count transitions of the training sequences and compute the TF-IDF weights of the items' words."""
        log, walk = train.interactions.targets_only(), self.config.walk
        transitions = item_transitions(log, walk.lag_weights, backward=walk.backward)
        if isinstance(walk, WideWalk) and walk.max_transitions is not None:
            transitions = keep_largest(transitions, walk.max_transitions)
        self.transitions.store(transitions)
        if isinstance(walk, WideWalk):
            counts = count_transitions(log, walk.near_lag_weights)
            self.counts.store((counts + walk.near_backward * counts.T).tocsr())
        has_content = self.config.use_content
        self.content.store(_content(self.catalog) if has_content else _tfidf([], self.num_items))

    @property
    def can_rank_unseen_items(self) -> bool:
        """Whether items have content; without content no walk reaches an item that has no event."""
        return int(self.content.shape[1]) > 0

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Score every item for each request, [B, N + 1] (roles.ItemScorer)."""
        return torch.cat(list(self._by_blocks(batch, lambda scores, rows: scores)))

    def sparse_scores(self, batch: SequenceBatch) -> SparseScores:
        """Return the scores of the items that the walk reaches (roles.SparseItemScorer)."""
        content, parts = self.content.matrix(), []
        for rows in torch.arange(batch.num_requests).split(max(1, BLOCK_SCORES // (self.num_items + 1))):
            walk, history = self._walk(batch.select(rows))
            if content.shape[1]:
                similarity = (history @ content).toarray()
                owners = np.repeat(np.arange(len(rows)), np.diff(walk.indptr))
                # Words of the reached items, entry by entry: nothing is computed for the others.
                reached = content[walk.indices]
                entries = np.repeat(np.arange(len(owners)), np.diff(reached.indptr))
                products = reached.data * similarity[owners[entries], reached.indices]
                shared = np.bincount(entries, products, minlength=len(owners)).astype(np.float32)
                own = np.asarray(history[owners, walk.indices]).ravel() > 0
                floor, weight = self.config.walk.content_floor, self.config.walk.content_weight
                walk.data = walk.data * (floor + shared) + weight * np.where(own, 0, shared)
            parts.append(walk)
        joined = sp.vstack(parts).tocsr()
        items = Jagged(torch.from_numpy(joined.indices.astype(np.int64)), torch.from_numpy(joined.indptr).long())
        return SparseScores(items, torch.from_numpy(joined.data.astype(np.float32)), self.num_items)

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        def block_answer(scores: Tensor, rows: Tensor) -> Recommendations:
            return top_items(scores, batch if len(rows) == batch.num_requests else batch.select(rows), k)

        answers = self._by_blocks(batch, block_answer)
        if len(answers) == 1:
            return answers[0]
        return Recommendations(
            torch.cat([answer.item_ids for answer in answers]), torch.cat([answer.scores for answer in answers])
        )

    def _walk(self, batch: SequenceBatch) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Return the scores of the walk, without content, and the histories as the content reads them, [B, N + 1]."""
        walk, transitions = self.config.walk, self.transitions.matrix()
        recent = batch.items.last(2)
        weights = torch.where(ages(recent.offsets) == 0, 1.0, walk.previous_weight)
        start = weighted_histories(recent.values, recent.offsets, weights, num_items=self.num_items)
        if isinstance(walk, PublishedWalk):
            one_step = start @ transitions
            return (one_step + walk.second_step * (one_step @ transitions)).tocsr(), start
        events = batch.items.last(1 + math.ceil(math.log(MIN_WEIGHT) / math.log(walk.decay)))
        decayed = torch.tensor(walk.decay) ** ages(events.offsets)
        history = weighted_histories(events.values, events.offsets, decayed, num_items=self.num_items)
        near = (start @ self.counts.matrix()) * walk.count_weight
        return (near + (history @ transitions) @ transitions).tocsr(), history

    def _by_blocks(self, batch: SequenceBatch, read: Callable[[Tensor, Tensor], Read]) -> list[Read]:
        """Return the results of `read` for consecutive blocks of requests, in order.

        Args:
            batch: the requests.
            read: function of the scores [n, N + 1] of n requests and of their rows [n] in the batch.

        """
        content, walk = self.content.matrix(), self.config.walk
        words = self.content.transposed()
        backfill = BACKFILL * self.popularity.cpu() / self.popularity.max().clamp(min=1).cpu()

        def block_result(span: tuple[int, int]) -> Read:
            rows = torch.arange(*span)
            steps, history = self._walk(batch if len(rows) == batch.num_requests else batch.select(rows))
            scores = torch.from_numpy(steps.toarray().astype(np.float32, copy=False))
            if content.shape[1]:
                content_scores = torch.from_numpy(((history @ content) @ words).toarray())
                scores *= walk.content_floor + content_scores
                own_rows, own_items = (torch.from_numpy(part).long() for part in history.nonzero())
                content_scores[own_rows, own_items] = 0
                scores += walk.content_weight * content_scores
            return read(scores.add_(backfill), rows)

        # scipy multiplies on one thread and releases the GIL, so blocks of rows are distributed over several threads.
        threads, block_size = torch.get_num_threads(), max(1, BLOCK_SCORES // (self.num_items + 1))
        num_blocks = max(threads, -(-batch.num_requests // block_size))
        bounds = np.unique(np.linspace(0, batch.num_requests, num_blocks + 1).astype(int)).tolist()
        if threads == 1 or len(bounds) == 2:  # to start a thread takes longer than a small block
            return [block_result(span) for span in pairwise(bounds)]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(block_result, pairwise(bounds)))


@lru_cache(maxsize=4)
def _content(catalog: Catalog) -> sp.csr_matrix:
    """Return the TF-IDF weights of the items' words, [N + 1, V]; no setting changes them, and they take longest."""
    return _tfidf(_documents(catalog), catalog.num_items)


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
