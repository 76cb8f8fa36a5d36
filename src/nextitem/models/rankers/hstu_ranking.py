"""HSTU as a ranker: candidates are appended to the stream of what a user saw and did.

Zhai et al., Actions Speak Louder than Words, arXiv 2402.17152, section 2 (ranking) and 3.3 (M-FALCON), with the layer,
the tokens and the head of the authors' later code (DLRM-v3).

Notable
- A token is the item plus what the user did with it: one vector for each kind of action, zero if it was not done. The
  action of a candidate is a learnt vector, so its label cannot leak. `actions = "interleaved"` is the sequence of the
  paper instead: item, action, item, action.
- Position and time are biases of the attention, counted back from the request, not vectors of the input counted back
  from the last event: the latter change every token with each event, and no cache would be valid
  (docs/decisions/134-streams-of-rankers.md).
- The divisor of the attention is the largest number of tokens, not that of the batch: no score depends on other
  requests.
- The time of a candidate is that of its request. The authors' code measures from the last candidate of a sample, which
  earlier candidates of the sample never see when they are served.
- L2STU cuts the sequence before the deep layers. The cut moves with each event, and no cache would be valid. With
  `deep_window`, each token and candidate has a window of its own.
- The head multiplies the last hidden state by a network over the candidate's fields.

Shapes: B requests, P candidates, S streams, T tokens of all streams, D width, A kinds of actions, F fields, W their
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.jagged import offsets_of
from nextitem.data.examples.stochastic_length import sampled_events
from nextitem.models.rankers.deep import history_width
from nextitem.models.rankers.stream_ranker import StreamConfig, StreamRanker
from nextitem.nn.attention.stream import PastTokens, StreamLayer, read_stream
from nextitem.nn.attention.stu import STULayer
from nextitem.nn.fields.fields import FieldVectors
from nextitem.nn.ranking.mlp import mlp
from nextitem.nn.ranking.user_streams import UserStreams
from nextitem.ops.hstu_attention import Layout


class HSTURankingConfig(StreamConfig):
    """Settings of HSTU as a ranker."""

    actions: Literal["summed", "interleaved", "ignored"] = "summed"
    """Actions of the history: part of the item's token (summed), a token of their own (interleaved), or ignored."""
    action_width: int = Field(8, ge=1)
    """Width of the vector of one kind of action."""
    time_bias: bool = True
    """Whether the attention depends on the time between a token and the request, or another token."""
    mixture_norm: Literal["layer", "group"] = "layer"
    """Normalisation of what the attention has summed: of all heads together (layer), or of each head (group)."""
    token_fields: bool = True
    """Whether the candidate's token, too, reads its fields, crosses with the history included, as the head does."""
    stochastic_length: float | None = Field(None, gt=1, le=2)
    """Alpha of stochastic length: training reads length ** (alpha / 2) tokens of a history; None: all tokens."""
    layer_drop: float = Field(0.0, ge=0, lt=1)
    """Probability that training skips a layer for a batch (SDSTU of the authors' code)."""
    deep_window: int | None = Field(None, ge=1)
    """Number of last events that deep layers read, as L2STU of the authors' code does; none: all."""
    deep_window_from: int = Field(2, ge=1)
    """Number of the first layer, from 1, that reads only those events."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        is_read = self.actions != "ignored"
        return {
            **super().idle_fields(),
            **configs.idle_unless(is_read, "actions are ignored", "action_width"),
            **configs.idle_unless(self.deep_window is not None, "deep_window is none", "deep_window_from"),
        }


class SwishNorm(nn.Module):
    """Activation x * sigmoid(LN(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, values: Tensor) -> Tensor:
        """Return the activated values [..., width]."""
        return values * torch.sigmoid(self.norm(values))


class HSTURanking(StreamRanker):
    """Ranker whose candidates attend to what the user saw and did, through all layers."""

    Config = HSTURankingConfig
    config: HSTURankingConfig

    def __init__(self, config: HSTURankingConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        width, kinds = config.token_width, self.reader.num_kinds
        self.tokens_per_event = 2 if config.actions == "interleaved" else 1
        self.vectors = FieldVectors(self.fields, config.width, config.table)
        self.item_tokens = mlp(history_width(self.vectors), (width,), out=width)
        all_fields = len(self.fields) * config.width
        self.field_tokens = mlp(all_fields, (width,), out=width) if config.token_fields else None
        if config.actions != "ignored":
            self.action_vectors = nn.Parameter(torch.randn(kinds, config.action_width) * 0.1)
            self.action_tokens = nn.Linear(kinds * config.action_width, width)
            self.candidate_action = nn.Parameter(torch.randn(width) * 0.1)
        deep_window = None if config.deep_window is None else config.deep_window * self.tokens_per_event
        self.layers = nn.ModuleList(
            STULayer(
                width,
                heads=config.heads,
                head_width=config.head_width,
                max_length=config.max_history_length * self.tokens_per_event,
                dropout=config.stream_dropout,
                has_time_bias=config.time_bias,
                norm=config.mixture_norm,
                window=deep_window if number >= config.deep_window_from else None,
            )
            for number in range(1, config.layers + 1)
        )
        self.output_norm = nn.LayerNorm(width)
        self.factor = mlp(all_fields, config.hidden, activation=config.activation, dropout=config.dropout, out=width)
        self.head = nn.Sequential(nn.Linear(2 * width, 2 * width), SwishNorm(2 * width))
        self.towers = nn.Linear(2 * width, len(self.all_tasks))

    def streams(self, batch: SequenceBatch, *, is_shared: bool = True) -> UserStreams:
        """Return the token streams of a batch; in training only a part of their tokens, by stochastic length."""
        streams = self.reader.read(batch, None if is_shared else torch.zeros_like(batch.items.lengths))
        if not self.training or self.config.stochastic_length is None:
            return streams
        is_read = sampled_events(
            streams.items,
            streams.times,
            max_length=self.config.max_history_length,
            alpha=self.config.stochastic_length,
        )
        return streams.select(is_read)

    def read_tokens(
        self,
        layers: Sequence[StreamLayer],
        streams: UserStreams,
        places: Tensor | None = None,
        past: PastTokens | None = None,
    ) -> Tensor:
        """Return keys and values of all tokens; those at `places` (None: all) are read, `past` has the others."""
        tokens, layout = self._tokens(streams, places), self._layout(streams, places)
        return read_stream(layers, tokens, layout, past=past)

    def active_layers(self) -> list[StreamLayer]:
        """Return the layers that are used: in training some are skipped at random, never all."""
        layers = cast("list[StreamLayer]", list(self.layers))
        if not self.training or not self.config.layer_drop:
            return layers
        is_used = torch.rand(len(layers)) >= self.config.layer_drop
        is_used[int(torch.randint(len(layers), ()))] |= not bool(is_used.any())
        return [layer for layer, used in zip(layers, is_used.tolist(), strict=True) if used]

    def _tokens(self, streams: UserStreams, places: Tensor | None = None) -> Tensor:
        """Return the tokens at `places` of the streams (None: all), [places x tokens per event, D]."""
        items = streams.items.values if places is None else streams.items.values[places]
        tokens = self.item_tokens(self.vectors.of_items(items))
        if self.config.actions != "ignored":
            kinds = streams.actions if places is None else streams.actions[places]
            actions = self.action_tokens((kinds[:, :, None] * self.action_vectors).flatten(1))
            is_summed = self.tokens_per_event == 1
            tokens = tokens + actions if is_summed else torch.stack([tokens, actions], 1).flatten(0, 1)
        return F.dropout(tokens, self.config.stream_dropout, self.training)

    def _layout(self, streams: UserStreams, places: Tensor | None = None) -> Layout:
        """Return the layout of the tokens; those at `places`, the last ones of each stream, are queries (None: all)."""
        factor = self.tokens_per_event
        times = None if streams.times is None else streams.times.repeat_interleave(factor)
        query_times, query_offsets = times, None
        if places is not None:
            num_queries = torch.bincount(streams.items.row_ids()[places], minlength=streams.items.num_rows)
            query_offsets = offsets_of(num_queries * factor)
            if streams.times is not None:
                query_times = streams.times[places].repeat_interleave(factor)
        return Layout(streams.items.offsets * factor, query_offsets, query_times, times, time_scale="sqrt")

    def candidate_tokens(self, batch: SequenceBatch, fields: Tensor) -> Tensor:
        """Return the tokens [P, D] of the candidates: items with a learnt action, and their fields."""
        assert batch.candidates is not None
        tokens: Tensor = self.item_tokens(self.vectors.of_items(batch.candidates.values))
        if self.config.actions == "summed":
            tokens = tokens + self.candidate_action
        if self.field_tokens is not None:
            tokens = tokens + self.field_tokens(fields.flatten(1))
        return F.dropout(tokens, self.config.stream_dropout, self.training)

    def task_logits(self, states: Tensor, fields: Tensor) -> Tensor:
        """Return the logits [P, all tasks]: the state times a network over the candidate's fields, and that network."""
        factor = self.factor(fields.flatten(1))
        logits: Tensor = self.towers(self.head(torch.cat([self.output_norm(states) * factor, factor], 1)))
        return logits
