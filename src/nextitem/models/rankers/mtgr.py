"""MTGR: a generative ranker that keeps the hand-made cross features of user and candidate.

Han et al., MTGR: Industrial-Scale Generative Recommendation Framework in Meituan, arXiv 2505.18654. The tokens are the
features of the user (U), the history before the period of the request (S), what the user did and saw since (R), and the
candidates. Each group of tokens has its own weights of the normalisations, and a mask by time stamps says what sees
what: U and S see one another, R and candidates see U, S and what is strictly earlier in R; all see themselves.

Notable
- All requests of a user in one period share U and S, so training reads them once, and a later request of the period
  reads only what came to R since.
- The paper compares time stamps because a sample has candidates of several times. A plain causal mask over such a
  sample would leak later behaviour. `mask = "causal"` does not: it changes what tokens of the history see, and no
  candidate sees anything later than its request.
- The divisor N of the attention is the largest number of tokens, in place of the number of tokens of the sample, which
  contains the other candidates.
- The paper has no bias by time; its items have features of time. Here the attention has one (`time_bias`), which every
  data set with times can use.
- A feature of the user with lists of values is read by the candidates only, as it is no scalar.

Shapes: B requests, P candidates, S streams, T tokens of all streams, U features of a user, A kinds of actions, D width,
F fields, W their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.jagged import offsets_of
from nextitem.models.rankers.deep import deep_part, field_gates, history_width
from nextitem.models.rankers.stream_ranker import MINUTE_MS, StreamConfig, StreamRanker
from nextitem.nn.attention.grouped_layer import GroupedLayer
from nextitem.nn.attention.incremental import Window
from nextitem.nn.attention.stream import PastTokens, StreamLayer, read_stream
from nextitem.nn.fields.fields import FieldVectors
from nextitem.nn.ranking.mlp import mlp
from nextitem.nn.ranking.user_streams import UserStreams
from nextitem.ops.hstu_attention import Layout

USER, HISTORY, RECENT, CANDIDATE = range(4)  # groups of tokens
NUM_GROUPS = 4
CROSS_FIELDS = ("cross.", "shown.")  # first parts of the names of fields that compare a candidate with the user's past


class MTGRConfig(StreamConfig):
    """Settings of MTGR."""

    max_history_length: int = Field(256, ge=1)
    """Number of most recent tokens before the period of the request that the ranker reads, and of events for fields."""
    max_recent_tokens: int = Field(64, ge=1)
    """Number of most recent tokens of the period of the request that the ranker reads."""
    period_hours: float = Field(24.0, gt=0)
    """Length of a period in hours; its requests share all tokens before it. Periods begin at multiples of it (UTC)."""
    action_width: int = Field(8, ge=1)
    """Width of the vector of one kind of action."""
    cross_features: bool = True
    """Whether the candidate's token reads the fields cross.* and shown.*, which compare it with the user's past."""
    group_norm: bool = True
    """Whether each group of tokens has weights of its own in the normalisations; otherwise all share them."""
    mask: Literal["dynamic", "causal"] = "dynamic"
    """What tokens of the history see: by group and time (dynamic), or all tokens before them (causal)."""
    time_bias: bool = True
    """Whether the attention depends on the time between a token and the request, or another token."""


class MTGR(StreamRanker):
    """Ranker whose candidates, with their cross features, attend to the user's features, history and recent acts."""

    Config = MTGRConfig
    config: MTGRConfig

    def __init__(self, config: MTGRConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        width, kinds = config.token_width, self.reader.num_kinds
        step = config.window_step or -(-config.max_recent_tokens // 2)
        recent_window = Window(config.max_recent_tokens, min(step, config.max_recent_tokens))
        self.reader = replace(self.reader, recent_window=recent_window)
        self.period_ms = max(1, round(config.period_hours * 60 * MINUTE_MS))
        self.vectors = FieldVectors(self.fields, config.width, config.table)
        self.user_fields = self.fields.user_names()
        if self.user_fields:
            self.user_weights = nn.Parameter(torch.empty(len(self.user_fields), config.width, width))
            self.user_biases = nn.Parameter(torch.zeros(len(self.user_fields), width))
            nn.init.normal_(self.user_weights, std=config.width**-0.5)
        self.action_vectors = nn.Parameter(torch.randn(kinds, config.action_width) * 0.1)
        self.item_tokens = mlp(history_width(self.vectors) + kinds * config.action_width, (2 * width,), out=width)
        self.candidate_fields = [
            number
            for number, name in enumerate(self.fields.names)
            if config.cross_features or not name.startswith(CROSS_FIELDS)
        ]
        self.gates = field_gates(config, len(self.candidate_fields))
        self.candidate_network = mlp(len(self.candidate_fields) * config.width, (2 * width,), out=width)
        max_tokens = len(self.user_fields) + config.max_history_length + config.max_recent_tokens + 1
        self.layers = nn.ModuleList(
            GroupedLayer(
                width,
                heads=config.heads,
                head_width=config.head_width,
                normaliser=float(max_tokens),
                groups=NUM_GROUPS if config.group_norm else 1,
                dropout=config.stream_dropout,
                has_time_bias=config.time_bias,
            )
            for _ in range(config.layers)
        )
        self.output_norm = nn.LayerNorm(width)
        self.deep = deep_part(config, width, tasks=len(self.all_tasks))

    @property
    def max_read_events(self) -> int:
        """Largest number of recent events of a history that the model reads."""
        return self.config.max_history_length + self.config.max_recent_tokens

    def num_tokens(self, batch: SequenceBatch) -> Tensor:
        """Return an upper bound of the number of tokens of each request's stream, [B]."""
        return self.reader.num_tokens(batch) + len(self.user_fields)

    def streams(self, batch: SequenceBatch, *, is_shared: bool = True) -> UserStreams:
        """Return the token streams of a batch: U, S and R."""
        codes = self.fields.request_codes(batch, self.user_fields)
        return self.reader.read_periods(batch, codes, cast(int, self.period_ms), is_shared=is_shared)

    def active_layers(self) -> list[StreamLayer]:
        """Return all layers."""
        return cast("list[StreamLayer]", list(self.layers))

    def read_tokens(
        self,
        layers: Sequence[StreamLayer],
        streams: UserStreams,
        places: Tensor | None = None,
        past: PastTokens | None = None,
    ) -> Tensor:
        """Return keys and values of all tokens; those at `places` (None: all) are read, `past` has the others."""
        groups, visible = token_groups(streams)
        times, query_times, query_offsets = streams.times, streams.times, None
        if places is not None:
            groups, visible = groups[places], visible[places]
            query_times = None if times is None else times[places]
            rows = streams.items.row_ids()[places]
            query_offsets = offsets_of(torch.bincount(rows, minlength=streams.items.num_rows))
        is_dynamic = self.config.mask == "dynamic"
        layout = Layout(
            streams.items.offsets, query_offsets, query_times, times, visible if is_dynamic else None, "sqrt"
        )
        sees_itself = groups == RECENT if is_dynamic else None  # a static token is one of the keys that it sees
        tokens = self._tokens(streams, places)
        return read_stream(layers, tokens, layout, groups=groups, sees_itself=sees_itself, past=past)

    def _tokens(self, streams: UserStreams, places: Tensor | None = None) -> Tensor:
        """Return the tokens at `places` of the streams (None: all), [places, D]; those of U are read together."""
        items = streams.items.values if places is None else streams.items.values[places]
        actions = streams.actions if places is None else streams.actions[places]
        is_user = items < 0
        kinds = (actions[~is_user][:, :, None] * self.action_vectors).flatten(1)
        history = self.item_tokens(torch.cat([self.vectors.of_items(items[~is_user]), kinds], 1))
        tokens = history.new_empty(len(items), self.config.token_width)
        tokens[~is_user] = history
        if self.user_fields:
            vectors = self.vectors.of_codes(-1 - items[is_user]).view(-1, len(self.user_fields), self.config.width)
            user = torch.einsum("suw,uwd->sud", vectors, self.user_weights) + self.user_biases
            tokens[is_user] = user.flatten(0, 1)
        return F.dropout(tokens, self.config.stream_dropout, self.training)

    def candidate_tokens(self, batch: SequenceBatch, fields: Tensor) -> Tensor:
        """Return the tokens [P, D] of the candidates, from all fields, cross features included."""
        tokens: Tensor = self.candidate_network(self.gates(fields[:, self.candidate_fields]).flatten(1))
        return F.dropout(tokens, self.config.stream_dropout, self.training)

    def candidate_groups(self, tokens: Tensor) -> Tensor:
        """Return the group of the candidates [P]."""
        return torch.full((len(tokens),), CANDIDATE, device=tokens.device)

    def task_logits(self, states: Tensor, fields: Tensor) -> Tensor:
        """Return the logits [P, all tasks] from the last hidden states alone."""
        logits: Tensor = self.deep(self.output_norm(states))
        return logits


def token_groups(streams: UserStreams) -> tuple[Tensor, Tensor]:
    """Return the group of each token [T], and how many first tokens of its stream it sees beside itself [T].

    A static token sees all static ones, itself included; a recent token sees them and all strictly earlier ones.
    """
    assert streams.num_static is not None
    items, rows = streams.items, streams.items.row_ids()
    numbers = torch.arange(len(rows), device=rows.device)
    places, num_static = numbers - items.offsets[rows], streams.num_static[rows]
    is_static = places < num_static
    groups = torch.where(is_static, HISTORY, RECENT).masked_fill(items.values < 0, USER)
    if streams.times is None:
        return groups, num_static
    begins_time = places == num_static
    begins_time[1:] |= (rows[1:] != rows[:-1]) | (streams.times[1:] != streams.times[:-1])
    firsts = torch.where(begins_time, numbers, 0).cummax(0).values
    return groups, torch.where(is_static, num_static, firsts - items.offsets[rows])
