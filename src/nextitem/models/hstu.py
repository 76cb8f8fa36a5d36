"""HSTU: gated pointwise attention over the history, aware of positions and of time, predicts the next item.

Zhai et al., Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations,
arXiv 2402.17152, in its retrieval form. SiLU attention without softmax keeps the intensity of a taste, not only its
share; a bias by distance and by elapsed time enters every layer; a gate takes the place of the feed-forward.

Notable
- The last event's row is asked about at the request's time; a request without a time reuses the event's own, as in the
  authors' code. An undated log has no time bias.
- The normaliser N is the longest sequence; the authors' code adds 11 for outputs that it never makes.
- The published objective has 128 negatives for each position (`negatives_shared_by = "position"`); the default shares
  more of them in the batch, which costs less.
- A training history beyond the limit is cut into windows and learnt from in full, as in sasrec.
- Positions begin from a truncated normal of standard deviation .02, as items do. The authors' Xavier normal (.13 at
  width 64 and 50 events) ends lower here (docs/lab_notes.md).
- The residual is the layer's input, as published. `residual = "normed"` takes it from the layer's LN, as the block of
  SASRec's authors does: better on short undated histories (docs/results/sequence_models.md).
- With interleaved actions an event is two tokens, item and action; items are predicted from action tokens.
- Stochastic length draws which events of a long window are read, recent ones with a higher chance; each that is read
  keeps its true successor as its target.

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
from nextitem.data.negatives import draw_negatives
from nextitem.data.requests import action_codes
from nextitem.losses.full_softmax import full_softmax
from nextitem.losses.objectives import FullSoftmax, SampledSoftmax
from nextitem.losses.sampled_softmax import sampled_softmax
from nextitem.nn.attention.hstu import HSTULayer, Past
from nextitem.nn.attention.incremental import Window
from nextitem.ops.hstu_attention import Layout


class HSTUConfig(configs.Config):
    """Settings of HSTU."""

    width: int = Field(64, ge=1)
    """D."""
    layers: int = Field(2, ge=1)
    """Number of HSTU layers."""
    heads: int = Field(2, ge=1)
    """Attention heads."""
    head_width: int = Field(32, ge=1)
    """Of queries, keys and values of one head."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Of the input and of each layer's gated output."""
    residual: Literal["input", "normed"] = "input"
    """A layer adds to what it reads, or to its normalised form."""
    max_history_length: int = Field(50, ge=1)
    """Most recent events that are read."""
    window_step: int = Field(1, ge=1)
    """Events that a full window moves on by; above 1 states stay valid in between."""
    actions: Literal["ignored", "interleaved"] = "ignored"
    """Is an event's action a token after its item?."""
    num_actions: int = Field(16, ge=1)
    """Action codes with a vector of their own; higher ones share the last."""
    stochastic_length: float | None = Field(None, gt=1, le=2)
    """Alpha; training reads length ** (alpha / 2) events."""
    objective: FullSoftmax | SampledSoftmax = Field(SampledSoftmax(), discriminator="kind")
    """Loss of the next item; the authors': sampled-softmax, shared_by = "position", num_negatives = 128."""
    temperature: float | None = Field(0.05, gt=0)
    """L2-normalise both vectors, divide by this; None: inner product."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        return configs.idle_unless(self.actions == "interleaved", f"actions are {self.actions}", "num_actions")


class HSTU(VectorModel):
    """Ranks items by the inner product with the last hidden state, both normalised."""

    Config = HSTUConfig
    config: HSTUConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "checkerboard")

    def __init__(self, config: HSTUConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.temperature = config.temperature
        self.window = Window(config.max_history_length, config.window_step)
        self.tokens_an_event = 1 if config.actions == "ignored" else 2
        longest = config.max_history_length * self.tokens_an_event
        self.items = nn.Embedding(catalog.num_items + 1, config.width, padding_idx=0)
        self.actions = nn.Embedding(config.num_actions + 1, config.width) if self.tokens_an_event == 2 else None
        self.positions = nn.Embedding(longest, config.width)  # from the first token that is read
        self.layers = nn.ModuleList(
            HSTULayer(
                config.width,
                heads=config.heads,
                head_width=config.head_width,
                longest=longest,
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
        """Windows of the users' histories; every event but the first is a target."""
        actions = None if self.actions is None else action_codes(train)
        return NextItemSequences(train.interactions, max_length=self.config.max_history_length, actions=actions)

    def training_loss(self, batch: NextItemBatch) -> LossTerms:
        """The configured objective at every real target."""
        chosen = self.config
        generator = torch.Generator().manual_seed(batch.seed)
        if chosen.stochastic_length is not None:
            batch = stochastic_length(
                batch, longest=chosen.max_history_length, alpha=chosen.stochastic_length, generator=generator
            )
        asked = None if batch.next_timestamps is None else batch.next_timestamps.values
        kept = batch.targets.values > 0
        hidden_TD = self.scale_users(self._encode(batch, asked)[kept])
        targets, table = batch.targets.values[kept], self.item_vectors()
        if not len(targets):
            return LossTerms(hidden_TD.sum())  # stochastic length has drawn none: nothing to learn from
        if isinstance(chosen.objective, FullSoftmax):
            return LossTerms(full_softmax(hidden_TD, table, targets))
        sampled = draw_negatives(
            batch,
            self.popularity,
            count=chosen.objective.num_negatives,
            shared_by=chosen.objective.shared_by,
            generator=generator,
            power=chosen.objective.power,
        )
        return LossTerms(sampled_softmax(hidden_TD, table, targets, **vars(sampled)))

    def user_vectors(self, batch: SequenceBatch) -> Tensor:
        """The last hidden state of each history, [B, D]."""
        if batch.state is not None:
            return self.read(batch, batch.state).user_vectors
        window = batch.last(self.window.lengths(batch.items.lengths))
        return self.scale_users(self._encode(window, _asked_at(window))[window.items.offsets[1:] - 1])

    def item_vectors(self) -> Tensor:
        """The table that scores, [N + 1, D]."""
        return self.scale_items(self.items.weight)

    @torch.no_grad()
    def read(self, batch: SequenceBatch, state: HistoryState | None = None) -> HistoryState:
        """Roles.Incremental: keys and values of all events but the last, whose row depends on when it is asked."""
        starts, version = self.window.starts(batch.items.lengths), self.weights_fingerprint()
        window = batch.last(batch.items.lengths - starts)
        if state is not None:
            state.check_version(version)
        settled = self._settled(batch, starts, state)
        rows = window.items.row_ids()
        place = torch.arange(len(rows), device=rows.device) - window.items.offsets[rows]
        new = (place >= settled[rows]).nonzero()[:, 0]
        past = None if state is None else self._past(state, settled, rows[new])
        made: list[Tensor] = []
        hidden_TD = self._encode(window, _asked_at(window), new=new, past=past, made=made)
        cache = torch.stack(made, 1)  # [new tokens, 2 x layers, H, width of a head]
        if past is not None:
            cache = torch.cat([past.cache, cache])[past.order]
        tokens = Jagged(cache, window.items.offsets * self.tokens_an_event).drop_last(self.tokens_an_event)
        counts = window.items.lengths - settled
        vectors = hidden_TD.new_zeros(len(counts), self.config.width)
        vectors[counts > 0] = self.scale_users(hidden_TD[(offsets_of(counts)[1:] - 1)[counts > 0]])
        return HistoryState(batch.items.lengths, vectors, {"keys_values": tokens.to_padded()}, starts, version)

    def _settled(self, batch: SequenceBatch, starts: Tensor, state: HistoryState | None) -> Tensor:
        """How many events of each window stand in the cache as they would be computed now, [B]."""
        if state is None:
            return torch.zeros_like(starts)
        state.new_events(batch.items.lengths)  # raises an error if the state has read more than there is
        has_slid = state.starts != starts  # positions have moved: the row is read from the start
        return (state.lengths - starts - 1).clamp(min=0).masked_fill(has_slid, 0)

    def _past(self, state: HistoryState, settled: Tensor, new_rows: Tensor) -> Past:
        """The cached tokens, and the order that puts the new ones behind them, row by row."""
        cached = Jagged.from_padded(state.cache["keys_values"], settled * self.tokens_an_event)
        rows = torch.cat([cached.row_ids(), new_rows.repeat_interleave(self.tokens_an_event)])
        return Past(torch.argsort(rows, stable=True), cached.values)

    def _encode(
        self,
        window: NextItemBatch | SequenceBatch,
        asked: Tensor | None,
        *,
        new: Tensor | None = None,
        past: Past | None = None,
        made: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [T, D] of all events, or of the `new` ones (their places [T]) after `past`.

        `asked` [all events]: when each is asked about, in milliseconds. Keys and values are added to `made`.
        """
        per, items = self.tokens_an_event, window.items
        new = torch.arange(len(items.values), device=items.values.device) if new is None else new
        hidden_TD = self.items(items.values[new]) * self.config.width**0.5
        place = (new - items.offsets[items.row_ids()[new]]) * per
        key_times = None if window.timestamps is None else window.timestamps.values
        query_times = None if asked is None else asked[new]
        if self.actions is not None:
            codes = torch.zeros_like(new) if window.actions is None else window.actions.values[new]
            actions_TD = self.actions(codes.clamp(max=self.config.num_actions)) * self.config.width**0.5
            hidden_TD = torch.stack([hidden_TD, actions_TD], 1).flatten(0, 1)
            place = torch.stack([place, place + 1], 1).flatten()
            if key_times is not None and query_times is not None:
                # An item is asked about when its action happens, an action when the next event does.
                query_times = torch.stack([key_times[new], query_times], 1).flatten()
                key_times = key_times.repeat_interleave(2)
        hidden_TD = F.dropout(hidden_TD + self.positions(place), self.config.dropout, self.training)
        asked_offsets = None
        if past is not None:
            asked_offsets = offsets_of(torch.bincount(items.row_ids()[new], minlength=items.num_rows) * per)
        layout = Layout(items.offsets * per, asked_offsets, query_times, key_times)
        for number, layer in enumerate(self.layers):
            hidden_TD, key, value = layer(hidden_TD, layout, past, number)
            if made is not None:
                made += [key, value]
        events: Tensor = hidden_TD[per - 1 :: per]
        return events


def _asked_at(batch: SequenceBatch) -> Tensor | None:
    """When each event of the histories is asked about, [T] milliseconds: at the next one, the last at the request."""
    if batch.timestamps is None:
        return None
    own = batch.timestamps.values
    asked = torch.cat([own[1:], own[:1]])
    filled = batch.items.lengths > 0
    ends = batch.items.offsets[1:][filled] - 1
    asked[ends] = own[ends] if batch.request_times is None else batch.request_times[filled]
    return asked
