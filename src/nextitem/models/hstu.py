"""HSTU: gated pointwise attention over the history, with positions and times, predicts the next item.

Zhai et al., Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations,
arXiv 2402.17152, in its retrieval form. SiLU attention without softmax preserves the intensity of a taste, not only its
share; a bias by distance and by elapsed time enters every layer; a gate replaces the feed-forward.

Notable
- The query time of the last event is the request's time; a request without a time reuses the event's own, as in the
  authors' code. An undated log has no time bias.
- The normaliser N is the longest sequence; the authors' code adds 11 for outputs that it never computes.
- The published objective has 128 negatives for each position (`objective.shared_by = "position"`); the default shares
  more of them in the batch, which costs less.
- A training history longer than the limit is cut into windows, all of which are used, as in sasrec.
- Positions are initialised from a truncated normal of standard deviation 0.02, as items are. The authors' Xavier normal
  (0.13 at width 64 and 50 events) ends with lower metrics here (docs/lab_notes.md).
- The residual is the layer's input, as published. `residual = "normed"` uses the output of the layer's LN instead, as
  the block of SASRec's authors does: better on short undated histories (docs/results/sequence_models.md).
- With interleaved actions an event is two tokens, item and action; items are predicted from action tokens.
- Stochastic length samples the events of a long window that are read, recent ones with a higher probability. Each event
  that is read keeps its true successor as its target.

Shapes: B sequences, T tokens of all of them, D width, H heads, N items, S negatives.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.history_state import HistoryState
from nextitem.core.jagged import Jagged, offsets_of
from nextitem.core.roles import LossTerms
from nextitem.core.vector_model import VectorModel
from nextitem.data.examples.next_item import NextItemBatch, NextItemSequences
from nextitem.data.examples.stochastic_length import stochastic_length
from nextitem.data.negatives import sample_negatives
from nextitem.data.requests import action_codes
from nextitem.losses.full_softmax import full_softmax
from nextitem.losses.objectives import FullSoftmax, SampledSoftmax
from nextitem.losses.sampled_softmax import sampled_softmax
from nextitem.nn.attention.hstu import HSTULayer, Past
from nextitem.nn.attention.incremental import Window
from nextitem.nn.tables.kinds import DenseRows, GrowingRows, HashedRows
from nextitem.nn.tables.tables import item_table
from nextitem.ops.hstu_attention import Layout


class HSTUConfig(configs.Config):
    """Settings of HSTU."""

    width: int = Field(64, ge=1)
    """Width of the vectors (D)."""
    layers: int = Field(2, ge=1)
    """Number of HSTU layers."""
    heads: int = Field(2, ge=1)
    """Number of attention heads."""
    head_width: int = Field(32, ge=1)
    """Width of queries, keys and values of one head."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout rate of the input and of each layer's gated output."""
    residual: Literal["input", "normed"] = "input"
    """Tensor to which a layer adds its output: its input, or its input after layer normalisation."""
    max_history_length: int = Field(50, ge=1)
    """Maximum number of most recent events that the model reads."""
    table: DenseRows | GrowingRows | HashedRows = Field(DenseRows(), discriminator="kind")
    """Kind of the table of item vectors: dense, growing with the ids that training meets, or hashed."""
    window_step: int = Field(1, ge=1)
    """Number of events by which a full window advances at once; above 1, states stay valid in between."""
    actions: Literal["ignored", "interleaved"] = "ignored"
    """Actions of events: ignored, or interleaved as a token after each item."""
    num_actions: int = Field(16, ge=1)
    """Number of action codes with a vector of their own; higher codes share the last vector."""
    stochastic_length: float | None = Field(None, gt=1, le=2)
    """Alpha of stochastic length: training reads length ** (alpha / 2) events of a window; None: all events."""
    objective: FullSoftmax | SampledSoftmax = Field(SampledSoftmax(), discriminator="kind")
    """Loss of the next item; the authors': sampled-softmax, shared_by = "position", num_negatives = 128."""
    temperature: float | None = Field(0.05, gt=0)
    """Divides the cosine of user and item vectors; None: plain inner product of the vectors."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return configs.idle_unless(self.actions == "interleaved", f"actions are {self.actions}", "num_actions")


class HSTU(VectorModel):
    """A recommender that ranks items by the inner product with the last hidden state, both normalised."""

    Config = HSTUConfig
    config: HSTUConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "checkerboard")

    def __init__(self, config: HSTUConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.temperature = config.temperature
        self.window = Window(config.max_history_length, config.window_step)
        self.tokens_per_event = 1 if config.actions == "ignored" else 2
        longest = config.max_history_length * self.tokens_per_event
        self.items = item_table(config.table, catalog, config.width)
        self.actions = nn.Embedding(config.num_actions + 1, config.width) if self.tokens_per_event == 2 else None
        self.positions = nn.Embedding(longest, config.width)  # counted from the first token that is read
        self.layers = nn.ModuleList(
            HSTULayer(
                config.width,
                heads=config.heads,
                head_width=config.head_width,
                max_length=longest,
                dropout=config.dropout,
                normed_residual=config.residual == "normed",
            )
            for _ in range(config.layers)
        )
        for table in (self.items, self.actions, self.positions):
            if table is not None:
                nn.init.trunc_normal_(table.weight, std=0.02)
        with torch.no_grad():
            self.items.weight[0] = 0

    def examples(self, train: Dataset) -> NextItemSequences:
        """Return windows of the users' histories; every event but the first is a target."""
        actions = None if self.actions is None else action_codes(train)
        return NextItemSequences(train.interactions, max_length=self.config.max_history_length, actions=actions)

    def training_loss(self, batch: NextItemBatch) -> LossTerms:
        """Return the configured objective at every real target."""
        config = self.config
        generator = torch.Generator().manual_seed(batch.seed)
        self.items.observe(batch.occurrences())
        if config.stochastic_length is not None:
            batch = stochastic_length(
                batch, max_length=config.max_history_length, alpha=config.stochastic_length, generator=generator
            )
        event_query_times = None if batch.next_timestamps is None else batch.next_timestamps.values
        is_target = batch.targets.values > 0
        hidden_TD = self.scale_users(self._encode(batch, event_query_times)[is_target])
        targets, table = batch.targets.values[is_target], self.item_vectors()
        if not len(targets):
            return LossTerms(hidden_TD.sum())  # stochastic length has sampled no event: there is nothing to learn
        if isinstance(config.objective, FullSoftmax):
            return LossTerms(full_softmax(hidden_TD, table, *batch.targets_by_lag(config.objective.target_weights)))
        sampled = sample_negatives(
            batch,
            self.popularity,
            count=config.objective.num_negatives,
            shared_by=config.objective.shared_by,
            generator=generator,
            power=config.objective.power,
        )
        return LossTerms(sampled_softmax(hidden_TD, table, targets, **vars(sampled)))

    def user_vectors(self, batch: SequenceBatch) -> Tensor:
        """Return the last hidden state of each history, [B, D]."""
        if batch.state is not None:
            return self.encode_history(batch, batch.state).user_vectors
        window = batch.last(self.window.lengths(batch.items.lengths))
        return self.scale_users(self._encode(window, _query_times(window))[window.items.offsets[1:] - 1])

    def item_vectors(self) -> Tensor:
        """Return the output table, [N + 1, D]."""
        return self.scale_items(self.items.all_vectors())

    @torch.no_grad()
    def encode_history(self, batch: SequenceBatch, state: HistoryState | None = None) -> HistoryState:
        """Return the state after all events (roles.Incremental).

        It stores keys and values of all events but the last, whose row depends on its query time.
        """
        starts, version = self.window.starts(batch.items.lengths), self.weights_fingerprint()
        window = batch.last(batch.items.lengths - starts)
        if state is not None:
            state.check_version(version)
        num_reusable = self._num_reusable(batch, starts, state)
        rows = window.items.row_ids()
        places = torch.arange(len(rows), device=rows.device) - window.items.offsets[rows]
        new_events = (places >= num_reusable[rows]).nonzero()[:, 0]
        past = None if state is None else self._past(state, num_reusable, rows[new_events])
        new_keys_values: list[Tensor] = []
        hidden_TD = self._encode(
            window, _query_times(window), new_events=new_events, past=past, new_keys_values=new_keys_values
        )
        cache = torch.stack(new_keys_values, 1)  # [new tokens, 2 x layers, H, width of a head]
        if past is not None:
            cache = torch.cat([past.cache, cache])[past.order]
        tokens = Jagged(cache, window.items.offsets * self.tokens_per_event).drop_last(self.tokens_per_event)
        counts = window.items.lengths - num_reusable
        vectors = hidden_TD.new_zeros(len(counts), self.config.width)
        vectors[counts > 0] = self.scale_users(hidden_TD[(offsets_of(counts)[1:] - 1)[counts > 0]])
        return HistoryState(batch.items.lengths, vectors, {"keys_values": tokens.to_padded()}, starts, version)

    def _num_reusable(self, batch: SequenceBatch, starts: Tensor, state: HistoryState | None) -> Tensor:
        """Return the number of events of each window whose cached keys and values are still valid, [B]."""
        if state is None:
            return torch.zeros_like(starts)
        state.new_events(batch.items.lengths)  # raises an error if the state has read more events than there are
        has_slid = state.starts != starts  # positions have moved: the row is read from the start
        return (state.lengths - starts - 1).clamp(min=0).masked_fill(has_slid, 0)

    def _past(self, state: HistoryState, num_reusable: Tensor, new_rows: Tensor) -> Past:
        """Return the cached tokens, and the order in which new tokens follow the cached ones of their row."""
        cached = Jagged.from_padded(state.cache["keys_values"], num_reusable * self.tokens_per_event)
        rows = torch.cat([cached.row_ids(), new_rows.repeat_interleave(self.tokens_per_event)])
        return Past(torch.argsort(rows, stable=True), cached.values)

    def _encode(
        self,
        window: NextItemBatch | SequenceBatch,
        event_query_times: Tensor | None,
        *,
        new_events: Tensor | None = None,
        past: Past | None = None,
        new_keys_values: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the hidden states [T, D] of all events, or of the new ones after `past`.

        Args:
            window: histories, or their windows in training.
            event_query_times: query time of each event of the window in milliseconds, None if there are no times.
            new_events: places [T] of the new events among those of the window; None: all events.
            past: cached tokens before the new events.
            new_keys_values: list to which the keys and values of each layer are appended.

        """
        num_tokens, items = self.tokens_per_event, window.items
        new_events = torch.arange(len(items.values), device=items.values.device) if new_events is None else new_events
        hidden_TD = self.items(items.values[new_events]) * self.config.width**0.5
        places = (new_events - items.offsets[items.row_ids()[new_events]]) * num_tokens
        key_times = None if window.timestamps is None else window.timestamps.values
        query_times = None if event_query_times is None else event_query_times[new_events]
        if self.actions is not None:
            codes = torch.zeros_like(new_events) if window.actions is None else window.actions.values[new_events]
            actions_TD = self.actions(codes.clamp(max=self.config.num_actions)) * self.config.width**0.5
            hidden_TD = torch.stack([hidden_TD, actions_TD], 1).flatten(0, 1)
            places = torch.stack([places, places + 1], 1).flatten()
            if key_times is not None and query_times is not None:
                # The query time of an item is its action's time, the query time of an action is the next event's time.
                query_times = torch.stack([key_times[new_events], query_times], 1).flatten()
                key_times = key_times.repeat_interleave(2)
        hidden_TD = F.dropout(hidden_TD + self.positions(places), self.config.dropout, self.training)
        query_offsets = None
        if past is not None:
            query_offsets = offsets_of(
                torch.bincount(items.row_ids()[new_events], minlength=items.num_rows) * num_tokens
            )
        layout = Layout(items.offsets * num_tokens, query_offsets, query_times, key_times)
        for number, layer in enumerate(self.layers):
            hidden_TD, key, value = layer(hidden_TD, layout, past, number)
            if new_keys_values is not None:
                new_keys_values += [key, value]
        events: Tensor = hidden_TD[num_tokens - 1 :: num_tokens]
        return events


def _query_times(batch: SequenceBatch) -> Tensor | None:
    """Return the query time of each event, [T] milliseconds: the next event's time, for the last the request's time."""
    if batch.timestamps is None:
        return None
    event_times = batch.timestamps.values
    query_times = torch.cat([event_times[1:], event_times[:1]])
    has_events = batch.items.lengths > 0
    ends = batch.items.offsets[1:][has_events] - 1
    query_times[ends] = event_times[ends] if batch.request_times is None else batch.request_times[has_events]
    return query_times
