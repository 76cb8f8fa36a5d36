"""GRU4Rec: a recurrent network reads a session and scores the next item.

Hidasi et al., Session-based Recommendations with Recurrent Neural Networks, arXiv 1511.06939; losses and sampling after
Hidasi and Karatzoglou, arXiv 1706.03847; details after the authors' code and their study of third-party versions,
arXiv 2307.14956. Sessions run side by side in lanes, one event a step; each step scores the targets of all lanes and
sampled items; gradients do not reach beyond the step.

Notable
- The popularity of an item is its number of training targets. Negatives are sampled in proportion to
  `popularity ** negatives_power`, with replacement.
- `log_q = "published"` is the authors' correction: raw counts for the columns of the batch, counts ** negatives_power
  for sampled ones; negatives that equal a target stay. "textbook" uses the expected number of samples of both kinds and
  skips a negative that is the row's target.
- BPR-max adds logarithms; the authors add 1e-24 within one logarithm. Both are equal, except where that constant would
  stop the gradient.
- An answer reads the latest `max_history_length` events; the authors' evaluation reads whole sessions.
- In a log of users, each user's history counts as one session.

Shapes: B lanes, S sampled items, M = B + S columns, U distinct items of a step, N items, D width of the last layer.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.history_state import HistoryState
from nextitem.core.roles import LossTerms
from nextitem.core.vector_model import VectorModel
from nextitem.data.examples.session_lanes import LaneBatch, SessionLanes
from nextitem.losses.bpr import bpr
from nextitem.losses.bpr_max import bpr_max
from nextitem.losses.merged_softmax import merged_softmax
from nextitem.losses.top1 import top1
from nextitem.losses.top1_max import top1_max
from nextitem.nn.attention.incremental import Window, extend_history_state
from nextitem.nn.recurrent import GRULayer, OneHotGRULayer, glorot_


class CrossEntropy(configs.Choice):
    """Cross-entropy over the targets of all lanes and sampled items."""

    kind: Literal["cross-entropy"] = "cross-entropy"
    """Cross-entropy over the targets of all lanes and sampled items."""
    log_q: Literal["published", "textbook"] | None = "published"
    """Correction of the scores for popularity, as published or as in the textbook; none: no correction."""


class BPRMax(configs.Choice):
    """BPR against the softmax-weighted negatives (the authors' second paper)."""

    kind: Literal["bpr-max"] = "bpr-max"
    """BPR against the softmax-weighted negatives."""
    regularisation: float = Field(1.0, ge=0)
    """Weight of the squared scores of the negatives."""
    elu: float = Field(0.0, ge=0)
    """Alpha of the ELU over the scores; 0: no ELU."""


class Top1Max(configs.Choice):
    """TOP1 against the softmax-weighted negatives."""

    kind: Literal["top1-max"] = "top1-max"
    """TOP1 against the softmax-weighted negatives."""
    elu: float = Field(0.0, ge=0)
    """Alpha of the ELU over the scores; 0: no ELU."""


class BPR(configs.Choice):
    """Mean BPR over the negatives."""

    kind: Literal["bpr"] = "bpr"
    """Mean BPR over the negatives."""


class Top1(configs.Choice):
    """Mean TOP1 over the negatives."""

    kind: Literal["top1"] = "top1"
    """Mean TOP1 over the negatives."""


class GRU4RecConfig(configs.Config):
    """Settings of GRU4Rec."""

    layers: tuple[int, ...] = Field((100,), min_length=1)
    """Number of hidden units of each layer."""
    embedding: Literal["shared", "separate", "one-hot"] = "shared"
    """Input table: shared with the output, separate, or none (one-hot input)."""
    embedding_width: int = Field(100, ge=1)
    """Width of the vectors of a separate input table."""
    dropout_embedding: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of the embedded input."""
    dropout_hidden: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of every layer's output, which is also the state that goes on to the next step."""
    objective: CrossEntropy | BPRMax | Top1Max | BPR | Top1 = Field(CrossEntropy(), discriminator="kind")
    """Loss of a training step."""
    num_negatives: int = Field(2048, ge=0)
    """Number of sampled negatives of each step (S), in addition to the targets of the other lanes."""
    negatives_power: float = Field(0.5, ge=0)
    """Alpha: negatives are sampled in proportion to count ** alpha; 0: uniformly."""
    max_history_length: int = Field(200, ge=1)
    """Maximum number of most recent events that an answer reads."""
    window_step: int = Field(1, ge=1)
    """Number of events by which a full window advances at once; above 1, states stay valid in between."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        embedding = f"embedding is {self.embedding}"
        return {
            **configs.idle_unless(self.embedding == "separate", embedding, "embedding_width"),
            **configs.idle_unless(self.embedding != "one-hot", embedding, "dropout_embedding"),
            **configs.idle_unless(self.num_negatives > 0, "num_negatives is 0", "negatives_power"),
        }


class GRU4Rec(VectorModel):
    """A recommender that ranks items by the inner product with the last hidden state, plus a bias."""

    Config = GRU4RecConfig
    config: GRU4RecConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle",)
    step_state: Tensor
    sampling: Tensor

    def __init__(self, config: GRU4RecConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.window = Window(config.max_history_length, config.window_step)
        rows, width = catalog.num_items + 1, config.layers[-1]
        self.items = nn.Embedding(rows, width, sparse=True)
        self.bias = nn.Embedding(rows, 1, sparse=True)
        self.inputs = (
            nn.Embedding(rows, config.embedding_width, sparse=True) if config.embedding == "separate" else None
        )
        first: nn.Module
        if config.embedding == "one-hot":
            first = OneHotGRULayer(rows, config.layers[0])
        else:
            first = GRULayer(width if self.inputs is None else config.embedding_width, config.layers[0])
        self.layers = nn.ModuleList(
            [first, *(GRULayer(*pair) for pair in zip(config.layers[:-1], config.layers[1:], strict=True))]
        )
        self.register_buffer("step_state", torch.zeros(0, sum(config.layers)), persistent=False)  # states of the lanes
        self.register_buffer("sampling", torch.zeros(0, dtype=torch.float64), persistent=False)
        self._initialise()

    def set_popularity(self, counts: Tensor) -> None:
        """Store the counts, and the distribution from which negatives are sampled."""
        super().set_popularity(counts)
        weights = counts.double() ** self.config.negatives_power
        weights[0] = 0
        self.sampling = weights.cumsum(0)
        self.sampling /= self.sampling[-1].clamp(min=1e-300)

    def examples(self, train: Dataset) -> SessionLanes:
        """Return the sessions in lanes; every event but a session's first is a target."""
        return SessionLanes(train.interactions)

    def training_loss(self, batch: LaneBatch) -> LossTerms:
        """Return the loss of one step of all lanes; their states go on to the next step, without gradient."""
        if len(self.step_state) != batch.num_lanes:
            self.step_state = self.step_state.new_zeros(batch.num_lanes, self.step_state.shape[1])
        # At every step the lanes whose session begins start from a zero state.
        states = self.step_state.index_select(0, batch.lanes).masked_fill_(batch.begins[:, None], 0)
        target_rows = batch.targets.nonzero()[:, 0]
        has_all_targets = len(target_rows) == len(batch.targets)
        targets = batch.targets if has_all_targets else batch.targets[target_rows]
        items, columns, column_places, biases, vectors = self._look_up(batch.items, targets, batch.seed)
        hidden = []
        out = self._embed(batch.items) if items is None else self._drop_out(items)
        for layer, state in zip(self.layers, torch.split(states, list(self.config.layers), dim=1), strict=True):
            assert isinstance(layer, GRULayer | OneHotGRULayer)
            out = F.dropout(layer.step(out, state), self.config.dropout_hidden, self.training)
            hidden.append(out.detach())
        self.step_state.index_copy_(0, batch.lanes, torch.cat(hidden, 1))
        loss = self._objective(out if has_all_targets else out[target_rows], columns, column_places, biases, vectors)
        return LossTerms(loss * (len(target_rows) / batch.num_lanes))

    @torch.no_grad()
    def encode_history(self, batch: SequenceBatch, state: HistoryState | None = None) -> HistoryState:
        """Return the state after all events (roles.Incremental); it stores the hidden states [B, all layers]."""
        empty, version = self.bias.weight.new_zeros(self.config.layers[-1]), self.weights_fingerprint()
        return extend_history_state(batch, state, self._read, window=self.window, version=version, empty=empty)

    def user_vectors(self, batch: SequenceBatch) -> Tensor:
        """Return the last hidden state of each history, [B, D]."""
        return self.encode_history(batch, batch.state).user_vectors

    def item_vectors(self) -> Tensor:
        """Return the output table, [N + 1, D]."""
        table: Tensor = self.items.weight
        return table

    def item_biases(self) -> Tensor:
        """Return the output biases, [N + 1]."""
        return self.bias.weight[:, 0]

    def _embed(self, items: Tensor) -> Tensor:
        """Return the first layer's input: vectors, or the item ids themselves if it takes one-hot vectors."""
        if self.config.embedding == "one-hot":
            return items
        return self._drop_out((self.items if self.inputs is None else self.inputs)(items))

    def _drop_out(self, vectors: Tensor) -> Tensor:
        return F.dropout(vectors, self.config.dropout_embedding, self.training)

    def _read(self, batch: SequenceBatch, state: HistoryState | None) -> HistoryState:
        """Return the state after histories, read from the start or after `state`; each row has events to read."""
        if state is None:
            items = self.window.recent_events(batch.items)
            former = self.bias.weight.new_zeros(batch.num_requests, sum(self.config.layers))
        else:
            items, former = batch.items.last(batch.items.lengths - state.lengths), state.cache["hidden"]
        out = pack_padded_sequence(items.to_padded(), items.lengths.cpu(), batch_first=True, enforce_sorted=False)
        out = PackedSequence(self._embed(out.data), *out[1:])
        hidden = []
        for layer, first_state in zip(self.layers, torch.split(former, list(self.config.layers), dim=1), strict=True):
            out, last = layer(out, first_state)
            hidden.append(last)
        return HistoryState(batch.items.lengths, hidden[-1], {"hidden": torch.cat(hidden, 1)})

    def _look_up(
        self, items: Tensor, targets: Tensor, seed: int
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
        """Look up the rows of the shared table that a step reads, each once.

        The order is that of the ids, so that the gradient of the table has neither to be sorted nor to be added up.

        Returns:
            The vectors of `items` (None if the input has a table of its own); the ids [M] of the columns, targets and
            then samples; the place [M] of each column among the distinct items; biases [U] and vectors [U, D] of those.

        """
        generator = torch.Generator().manual_seed(seed)
        uniform_S = torch.rand(self.config.num_negatives, generator=generator, dtype=torch.float64).to(items.device)
        sampled = torch.searchsorted(self.sampling, uniform_S, right=True).clamp_(max=self.num_items)
        columns = torch.cat([targets, sampled])
        is_shared = self.config.embedding == "shared"
        distinct, places = torch.unique(torch.cat([columns, items]) if is_shared else columns, return_inverse=True)
        vectors = self.items(distinct)
        input_vectors = vectors.index_select(0, places[len(columns) :]) if is_shared else None
        return input_vectors, columns, places[: len(columns)], self.bias(distinct)[:, 0], vectors

    def _objective(self, hidden: Tensor, columns: Tensor, places: Tensor, biases: Tensor, vectors: Tensor) -> Tensor:
        """Return the objective as a mean over the rows; only targets and sampled items are ever scored."""
        objective = self.config.objective
        if not len(hidden) or len(columns) < 2:
            return hidden.sum() * 0  # a last lane without negatives has nothing to learn from
        if isinstance(objective, CrossEntropy):
            log_q, collisions = self._log_q(objective, columns, len(hidden)), objective.log_q != "textbook"
            return merged_softmax(hidden, vectors, biases, places, log_q, collisions=collisions)
        scores = torch.addmm(biases.index_select(0, places), hidden, vectors.index_select(0, places).T)
        if isinstance(objective, BPRMax):
            return bpr_max(scores, regularisation=objective.regularisation, elu=objective.elu)
        if isinstance(objective, Top1Max):
            return top1_max(F.elu(scores, alpha=objective.elu) if objective.elu > 0 else scores)
        return bpr(scores) if isinstance(objective, BPR) else top1(scores)

    def _log_q(self, objective: CrossEntropy, columns: Tensor, num_targets: int) -> Tensor:
        """Return the cross-entropy's correction of each column [M], of which the first `rows` are targets."""
        config, counts = self.config, self.popularity[columns].clamp(min=1)
        if objective.log_q is None:
            return torch.zeros_like(counts)
        if objective.log_q == "published":
            return torch.cat([counts[:num_targets].log(), config.negatives_power * counts[num_targets:].log()])
        # Expected number of occurrences: as one of B targets, and as one of S samples.
        target_log_q = counts[:num_targets].log() - self.popularity.sum().log() + math.log(num_targets)
        log_normaliser = (self.popularity[1:] ** config.negatives_power).sum().log() - math.log(
            max(1, config.num_negatives)
        )
        return torch.cat([target_log_q, config.negatives_power * counts[num_targets:].log() - log_normaliser])

    def _initialise(self) -> None:
        for table in (self.items, self.inputs):
            if table is not None:
                glorot_(table.weight.data)
        nn.init.zeros_(self.bias.weight)
