"""Streaming VQ: a retrieval index of clusters that is trained on the stream and never rebuilt.

Real-time Indexing for Large-scale Recommendation by Streaming Vector Quantization Retriever, arXiv 2501.08695. Two
towers encode users and items; every item belongs to the cluster nearest to its vector, and cluster vectors are moving
averages of their items. Each step writes the clusters of its items, so the index is usable at any moment and an item
changes its cluster as its vector drifts.

Notable
- Events are used in the order of the stream; an undated log is ordered by (position in the history, user).
- No term pulls an item to its cluster (`commitment` = 0, the paper's main idea): items stay free to move. The gradient
  of the indexing loss for the cluster vector goes straight through to the item.
- Besides the items of a batch, each step assigns a slice of the catalogue, in turn, so that rare items follow too.
- A drifting item is reassigned at every step that contains it, and any other item once within N events of the stream.
  So the index never lags behind the towers by more than that, whatever the events are.
- delta, the mean number of steps between an item's occurrences, is the plain mean of its first ten intervals and then
  moves by a tenth at each occurrence. Before the second occurrence it is the number of steps so far. The paper does not
  define this.
- Moving averages are stored as vector and weight. A cluster without new items keeps its vector, and its weight decays,
  which makes it look nearer (r of the paper) until an item joins it.
- If several processes share a batch, each has the in-batch negatives of its own part, and all of them learn the index
  from the items of the whole batch.
- The towers rank the candidates that the index retrieves; in the paper a complex ranker follows.
- The user tower reads the mean of the history and its last item; the paper's is not published.

Shapes: B requests, D width, K clusters, N items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.roles import LossTerms
from nextitem.core.top_items import append_unseen, search_unseen_last, top_candidates, top_items
from nextitem.data.examples.next_target import NextTargets
from nextitem.distributed import processes
from nextitem.losses.in_batch_softmax import in_batch_softmax
from nextitem.nn.quantisation.quantizers import kmeans
from nextitem.ops.merge_lists import SortedLists, merge_lists
from nextitem.ops.tensor_version import version_of


class StreamingVQConfig(configs.Config):
    """Settings of StreamingVQ."""

    width: int = Field(64, ge=1)
    """Width of the vectors of users, items and clusters (D)."""
    hidden: int = Field(128, ge=1)
    """Units of the hidden layer of each tower."""
    clusters: int = Field(64, ge=1)
    """Number of clusters (K)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate of embeddings."""
    max_history_length: int = Field(50, ge=1)
    """Maximum number of most recent events that the model reads."""
    decay: float = Field(0.99, ge=0, lt=1)
    """Alpha: weight of the past in the moving averages at each step."""
    rarity_power: float = Field(0.5, ge=0)
    """Beta: the weight of an item is (mean number of steps between its occurrences) ** beta."""
    balance: float | None = Field(5.0, gt=0)
    """Clusters with less than 1 / balance of the mean weight look nearer (s of the paper); None: no balancing."""
    commitment: float = Field(0.0, ge=0)
    """Weight of the loss that pulls items to their cluster; the paper removes it."""
    candidates: int = Field(500, ge=1)
    """Number of items that the index retrieves for the towers to rank; raised to k if k is larger."""


class StreamingVQ(Recommender):
    """A recommender that retrieves candidates by their clusters and ranks them by the towers."""

    Config = StreamingVQConfig
    config: StreamingVQConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle",)
    can_rank_unseen_items = False
    vectors: Tensor
    weights: Tensor
    assigned: Tensor
    interval: Tensor
    last_seen: Tensor
    seen: Tensor
    steps: Tensor
    turn: Tensor

    def __init__(self, config: StreamingVQConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.items = nn.Embedding(catalog.num_items + 1, config.width, padding_idx=0)
        self.bias = nn.Embedding(catalog.num_items + 1, 1)  # b_v: how popular an item is with all users
        self.item_tower = _tower(config.width, config.hidden, config.width)
        self.user_tower = _tower(2 * config.width, config.hidden, config.width)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.items.weight[1:], std=config.width**-0.5)
        nn.init.zeros_(self.bias.weight)
        rows = catalog.num_items + 1
        self.register_buffer("vectors", torch.zeros(config.clusters, config.width))  # e_k
        self.register_buffer("weights", torch.ones(config.clusters))  # c_k
        self.register_buffer("assigned", torch.zeros(rows, dtype=torch.int64))  # each item's cluster
        self.register_buffer("interval", torch.ones(rows))  # delta: mean steps between an item's occurrences
        self.register_buffer("last_seen", torch.zeros(rows, dtype=torch.int64))  # step of the last one
        self.register_buffer("seen", torch.zeros(rows))  # occurrences
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))  # the item before the next to be assigned
        # Cached lists, with the tensor and the versions of the tensors from which they were built.
        self._index: tuple[Tensor, tuple[int, ...], SortedLists] | None = None
        self._part: tuple[Tensor, Tensor] | None = None  # items of this process's part of a batch, and their vectors

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the module as any other, and drop the cached lists, which belong to the former tensors."""
        self._index = None
        super()._apply(fn, recurse)
        return self

    def examples(self, train: Dataset) -> NextTargets:
        """Return every target with the history before it, in the order of the stream."""
        return NextTargets(train.interactions, max_length=self.config.max_history_length, in_order=True)

    def training_loss(self, batch: SequenceBatch) -> LossTerms:
        """Return in-batch softmax losses by item vectors (L_aux) and by cluster vectors (L_ind); move the clusters."""
        assert batch.targets is not None
        targets = batch.targets.values
        user_BD, item_BD = self._user(batch), self._item(targets)
        if self.training and int(self.steps) == 0:
            self._initialise_clusters(item_BD.detach())
        log_q = self._log_q(targets)
        bias = self.bias(targets)[:, 0]
        is_repeated = (targets[:, None] == targets) & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)
        cluster = self.cluster_of(item_BD.detach())
        entry_BD = self.vectors[cluster]
        auxiliary = in_batch_softmax((user_BD @ item_BD.T + bias).masked_fill(is_repeated, -torch.inf), log_q=log_q)
        straight_through_BD = item_BD + (entry_BD - item_BD).detach()
        indexing = in_batch_softmax(
            (user_BD @ straight_through_BD.T + bias).masked_fill(is_repeated, -torch.inf), log_q=log_q
        )
        total = auxiliary + indexing
        if self.config.commitment:
            total = total + self.config.commitment * (item_BD - entry_BD).square().sum(1).mean()
        if self.training and processes.world_size() == 1:
            self._learn_index(targets, item_BD.detach(), cluster)
        elif self.training:
            self._part = (targets, item_BD.detach())
        return LossTerms(total, {"auxiliary": auxiliary.detach(), "indexing": indexing.detach()})

    @torch.no_grad()
    def after_batch(self, weight: float) -> None:
        """Let all processes learn the index from the whole batch (roles.HasBatchHook)."""
        if processes.world_size() == 1:
            return
        targets, item_BD = self._part or (torch.zeros(0, dtype=torch.int64), self.vectors[:0])
        self._part = None
        targets, item_BD = (processes.gather_batch(part.cpu()).to(self.vectors.device) for part in (targets, item_BD))
        if int(self.steps) == 0:
            self._initialise_clusters(item_BD)
        self._learn_index(targets, item_BD, self.cluster_of(item_BD))

    @torch.no_grad()
    def cluster_of(self, item_BD: Tensor) -> Tensor:
        """Return each item's cluster [B], argmin_k r_k ||e_k - v||^2.

        r_k = min(s c_k / mean c, 1) makes clusters with little weight look nearer.
        """
        distances = torch.cdist(item_BD, self.vectors).square()
        if self.config.balance is not None:
            distances = distances * (self.config.balance * self.weights / self.weights.mean()).clamp(max=1)
        return distances.argmin(1)

    def lists(self) -> SortedLists:
        """Return the current index: each cluster's items by descending bias. It is cached as long as nothing changes.

        Unseen items are in no list.
        """
        bias, cached = self.bias.weight, self._index
        versions = tuple(version_of(tensor) for tensor in (self.assigned, bias, self.popularity))
        if cached is None or cached[0] is not self.assigned or cached[1] != versions:
            sorted_lists = SortedLists.from_list_numbers(
                self.assigned, bias.detach()[:, 0], num_lists=self.config.clusters, is_hidden=self.unseen_items()
            )
            self._index = cached = (self.assigned, versions, sorted_lists)
        return cached[2]

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        unseen = self.unseen_items()
        if batch.allowed is None:
            return append_unseen(self._search(batch, k), batch, unseen)
        return search_unseen_last(lambda part: self._search(part, k), batch, unseen)

    def _search(self, batch: SequenceBatch, k: int) -> Recommendations:
        user_BD = self._user(batch)
        count = max(k, self.config.candidates)
        cluster_scores = user_BD @ self.vectors.T
        if batch.allowed is not None:  # an allow-list may leave few items of each list, so every item is scored
            scores = cluster_scores[:, self.assigned] + self.bias.weight[:, 0]
            item_ids = top_items(scores, batch, count).item_ids
        else:
            num_excluded = 0 if batch.excluded is None else int(batch.excluded.lengths.max())
            item_ids = merge_lists(cluster_scores, self.lists(), count + num_excluded)[0]
        candidates = Jagged.from_padded(item_ids, (item_ids > 0).sum(1))
        scores = (user_BD[candidates.row_ids()] * self._item(candidates.values)).sum(1)
        scores = scores + self.bias(candidates.values)[:, 0]
        return top_candidates(candidates, scores, batch, k, num_items=self.num_items)

    def _user(self, batch: SequenceBatch) -> Tensor:
        """Return the vectors [B, D] of requests whose histories are not empty."""
        recent = batch.items.last(self.config.max_history_length)
        embedded = self.dropout(self.items(recent.values))
        total = embedded.new_zeros(recent.num_rows, self.config.width)
        mean = total.index_add(0, recent.row_ids(), embedded) / recent.lengths.clamp(min=1)[:, None]
        last = embedded[recent.offsets[1:] - 1]
        vector: Tensor = self.user_tower(torch.cat([mean, last], dim=1))
        return vector

    def _item(self, items: Tensor) -> Tensor:
        vector: Tensor = self.item_tower(self.dropout(self.items(items)))
        return vector

    def _log_q(self, targets: Tensor) -> Tensor:
        """Return the log of the share of each target in all occurrences, those of this batch included if it trains."""
        seen, total = self.seen[targets], self.seen.sum()
        if self.training:
            _, places, counts = torch.unique(targets, return_inverse=True, return_counts=True)
            seen, total = seen + counts[places], total + len(targets)
        return torch.log(seen.clamp(min=1) / total.clamp(min=1))

    def _learn_index(self, targets: Tensor, item_BD: Tensor, cluster: Tensor) -> None:
        """Count the items of a step, and move the clusters by their vectors."""
        self._count(targets)
        self._move(item_BD, cluster, targets)

    @torch.no_grad()
    def _count(self, targets: Tensor) -> None:
        """Update the number of occurrences and the mean interval between them, for the items of one step."""
        self.steps += 1
        items, counts = torch.unique(targets, return_counts=True)
        interval = (self.steps - self.last_seen[items]).float() / counts
        # The first interval counts from the start of the stream. n occurrences in one step are n intervals at once.
        rate = (counts / (self.seen[items] + counts)).maximum(1 - 0.9**counts)
        self.interval[items] += rate * (interval - self.interval[items])
        self.last_seen[items] = self.steps
        self.seen[items] += counts

    @torch.no_grad()
    def _initialise_clusters(self, item_BD: Tensor) -> None:
        """Set the cluster vectors at the first step: by k-means of its items, and near items sampled at random."""
        centres = kmeans(item_BD, self.config.clusters, seed=0)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(len(item_BD), (self.config.clusters - len(centres),), generator=generator)
        noise = torch.randn((len(rows), item_BD.shape[1]), generator=generator).to(item_BD) * item_BD.std()
        self.vectors.copy_(torch.cat([centres, item_BD[rows] + 0.1 * noise]))
        self.assigned[1:] = self.cluster_of(self.item_tower(self.items.weight[1:]))

    @torch.no_grad()
    def _move(self, item_BD: Tensor, cluster: Tensor, targets: Tensor) -> None:
        """Move the clusters, and write those of this step's items and of a slice of the catalogue.

        w <- a w + (1 - a) sum delta^b v, c <- a c + (1 - a) sum delta^b, e = w / c.
        """
        item_weights = self.interval[targets] ** self.config.rarity_power
        new_weights = torch.zeros_like(self.weights).index_add_(0, cluster, item_weights)
        sums = torch.zeros_like(self.vectors).index_add_(0, cluster, item_weights[:, None] * item_BD)
        past = self.config.decay * self.weights
        weights = (past + (1 - self.config.decay) * new_weights).clamp(min=1e-12)
        self.vectors.copy_((past[:, None] * self.vectors + (1 - self.config.decay) * sums) / weights[:, None])
        self.weights.copy_(weights)
        # The items of this step, and the next slice of the catalogue.
        count = min(len(targets), self.num_items)
        next_items = (self.turn + torch.arange(count, device=targets.device)) % self.num_items + 1
        self.turn.copy_((self.turn + count) % self.num_items)
        changed_items = torch.cat([targets, next_items])
        self.assigned[changed_items] = self.cluster_of(self.item_tower(self.items(changed_items)))


def _tower(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
