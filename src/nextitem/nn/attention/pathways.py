"""Pathways: a user as a few hundred vectors of four time scales, which one encoder reads together.

OneRec technical report, arXiv 2506.13695, section 2.2:

    static      features of the user and a bucket of the user's key                                       1 vector
    short       the latest events                                                            up to `short_length`
    positive    the latest events with named actions or labels, such as purchases         up to `positive_length`
    lifelong    all events before the short ones: clusters of similar items, summarised by learned queries
                                                                                               `lifelong_queries`

Notable
- Every event is the vector of its item plus a network (dense, LeakyReLU, dense) of that vector and of the event's
  columns. The report's network has no such residual; with it, an untrained network loses nothing of the item.
- The lifelong pathway reads the events before the short ones, so no event is read twice, and a history that the short
  pathway covers costs nothing more.
- Ages of lifelong events count from the last of them. So the summary depends on these events alone, and stays valid
  while further events move into the short pathway (`window_step`).
- A missing pathway (no positive event, a short history) is padding. Without features and buckets, the static vector is
  a learned constant.

Shapes: B requests, T events of all histories, L vectors of a request, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.nn.attention.incremental import Window
from nextitem.nn.attention.query_transformer import QueryTransformer
from nextitem.nn.attention.t5 import EncoderLayer
from nextitem.nn.byte_dropout import use_byte_dropout
from nextitem.nn.fields.event_columns import EventColumns, PositiveEvents
from nextitem.nn.fields.fields import Fields, FieldVectors
from nextitem.nn.quantisation.history_clusters import cluster_histories

Embed = Callable[[Tensor], Tensor]  # item ids [...] -> vectors [..., D]
FIELD_WIDTH = 64  # width of the vector of a user feature


class PathwaysConfig(configs.Config):
    """Settings of the pathways and of the encoder over them."""

    width: int = Field(64, ge=1)
    """Width of the vectors (D)."""
    heads: int = Field(2, ge=1)
    """Number of attention heads; must divide width."""
    ff_width: int = Field(128, ge=1)
    """Hidden units of the feed-forward layers."""
    encoder_layers: int = Field(2, ge=1)
    """Number of blocks of the encoder."""
    dropout: float = Field(0.15, ge=0, lt=1)
    """Dropout rate of inputs, outputs of attention, and feed-forward layers."""
    max_history_length: int = Field(2000, ge=1)
    """Maximum number of most recent events that the model reads, the lifelong ones included."""
    short_length: int = Field(20, ge=1)
    """Maximum number of latest events that are read one by one."""
    window_step: int = Field(1, ge=1)
    """Number of events by which the short pathway advances at once if it is full; above 1, the summary of the events
    before it stays valid in between.
    """
    positive: tuple[str, ...] = ()
    """Actions, and labels that count if they are above 0, of the events of the positive pathway; none: no pathway."""
    positive_length: int = Field(64, ge=1)
    """Maximum number of latest positive events that are read."""
    lifelong_clusters: int = Field(100, ge=0)
    """Maximum number of clusters of a lifelong history; 0: no such pathway."""
    cluster_size: int = Field(4, ge=1)
    """Number of distinct items up to which a cluster is not split further."""
    lifelong_queries: int = Field(16, ge=1)
    """Number of learned queries that summarise the clusters."""
    lifelong_layers: int = Field(2, ge=1)
    """Number of blocks of these queries."""
    user_buckets: int = Field(0, ge=0)
    """Number of hash buckets of the user's key in the static vector; 0: none."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        names = ("cluster_size", "lifelong_queries", "lifelong_layers")
        return {
            **configs.idle_unless(bool(self.positive), "positive names nothing", "positive_length"),
            **configs.idle_unless(self.lifelong_clusters > 0, "lifelong_clusters is 0", *names),
        }


class StaticVector(nn.Module):
    """One vector of each user: from the features of users and a bucket of the key, by a network."""

    def __init__(self, catalog: Catalog, width: int, *, buckets: int) -> None:
        super().__init__()
        names = [name for name in catalog.requests if name.startswith("user.")]
        self.fields = Fields(catalog, names) if names else None
        self.vectors = None if self.fields is None else FieldVectors(self.fields, FIELD_WIDTH)
        self.buckets = nn.Embedding(buckets + 1, FIELD_WIDTH) if buckets else None  # bucket 0: an unknown user
        num_parts = len(names) + bool(buckets)
        self.layers = None
        if num_parts:
            inner = nn.Linear(num_parts * FIELD_WIDTH, 2 * width)
            self.layers = nn.Sequential(inner, nn.LeakyReLU(), nn.Linear(2 * width, width))
        self.constant = nn.Parameter(torch.zeros(1, width))

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Compute quantiles and vocabularies of the features from training requests."""
        if self.fields is not None:
            self.fields.fit(requests, log)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Return the vectors of the users, [B, D]."""
        parts = []
        if self.fields is not None and self.vectors is not None:
            nothing = Jagged.from_lengths(batch.items.values[:0], torch.zeros_like(batch.items.lengths))
            codes = self.fields(replace(batch, candidates=nothing, candidate_features={}))
            parts.append(self.vectors.of_requests(codes).flatten(1))
        if self.buckets is not None:
            users = torch.zeros_like(batch.items.lengths) if batch.user_ids is None else batch.user_ids
            parts.append(self.buckets(torch.where(users > 0, users % (self.buckets.num_embeddings - 1) + 1, 0)))
        constant = self.constant.expand(batch.num_requests, -1)
        return constant if self.layers is None else constant + self.layers(torch.cat(parts, 1))


class EventVectors(nn.Module):
    """Vectors of events from the vectors of their items and the events' columns."""

    def __init__(self, width: int, num_columns: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width + num_columns, width), nn.LeakyReLU(), nn.Linear(width, width))

    def forward(self, vectors: Tensor, columns: Tensor) -> Tensor:
        """Return the vectors of events, [..., D]; `columns` are [..., F]."""
        out: Tensor = vectors + self.layers(torch.cat([vectors, columns], -1))
        return out


class Pathways(nn.Module):
    """The pathways of a request, a learned position for each of their vectors, and the encoder.

    Args:
        config: settings.
        catalog: catalogue, which decides what columns users and events have.
        similarity: vectors by which lifelong events are clustered, [N + 1, any width].

    """

    similarity: Tensor

    def __init__(self, config: PathwaysConfig, catalog: Catalog, similarity: Tensor) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        if width % heads:
            raise ValueError(f"heads = {heads} must divide width = {width}")
        self.config = config
        self.window = Window(min(config.short_length, config.max_history_length), config.window_step)
        self.lifelong_length = config.max_history_length - self.window.length  # events before those of the window
        has_lifelong = config.lifelong_clusters > 0 and self.lifelong_length > 0
        self.register_buffer("similarity", similarity, persistent=False)
        self.columns, self.positive = EventColumns(catalog), PositiveEvents(catalog, config.positive)
        self.static = StaticVector(catalog, width, buckets=config.user_buckets)
        lengths = {"short": self.window.length}
        lengths |= {"positive": config.positive_length} if config.positive else {}
        if has_lifelong:
            sizes = {"heads": heads, "inner": config.ff_width, "layers": config.lifelong_layers}
            self.summary = QueryTransformer(width, queries=config.lifelong_queries, **sizes, dropout=config.dropout)
        names = [*lengths, *(["lifelong"] if has_lifelong else [])]
        self.events = nn.ModuleDict({name: EventVectors(width, self.columns.width) for name in names})
        lengths |= {"lifelong": config.lifelong_queries} if has_lifelong else {}
        self.positions = nn.ParameterDict({name: torch.zeros(count, width) for name, count in lengths.items()})
        layer = {"heads": heads, "head_width": width // heads, "inner": config.ff_width, "hidden_layers": 1}
        self.layers = nn.ModuleList(
            EncoderLayer(width, **layer, dropout=config.dropout, attention_dropout=0.0)
            for _ in range(config.encoder_layers)
        )
        self.norm, self.dropout = nn.RMSNorm(width, eps=1e-6), nn.Dropout(config.dropout)
        use_byte_dropout(self)

    def forward(self, batch: SequenceBatch, embed: Embed, *, lifelong: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the encoded vectors [B, L, D], and the bias [B, 1, 1, L] of attention to them, -inf at padding.

        Args:
            batch: the requests.
            embed: returns the vectors of items.
            lifelong: summaries of the events before the short ones, `summaries(batch)`, if they are cached; a cache may
                have padded them to more than Q vectors.

        """
        config, lengths = self.config, batch.items.lengths
        vectors = [self.static(batch)[:, None]]
        is_read = [torch.ones_like(vectors[0][..., 0], dtype=torch.bool)]
        until = _last_times(batch) if batch.request_times is None else batch.request_times
        short = batch.last(self.window.lengths(lengths))
        parts = [("short", short.items, self.columns(short, until))]
        if "positive" in self.events:
            positive, columns = self._latest_positive(batch.last(config.max_history_length), until)
            parts.append(("positive", positive, columns))
        for name, items, columns in parts:
            padded = items.to_padded()
            if not padded.shape[1]:
                continue
            column = torch.arange(padded.shape[1], device=padded.device)
            place = (items.lengths[:, None] - 1 - column).clamp(min=0)  # number of later events
            event_vectors = self.events[name](embed(padded), items.with_values(columns).to_padded())
            vectors.append(event_vectors + self.positions[name][place])
            is_read.append(column < items.lengths[:, None])
        if "lifelong" in self.events:
            has_lifelong = self.window.starts(lengths) > 0
            if bool(has_lifelong.any()):
                summary = self.summaries(batch, embed) if lifelong is None else lifelong[:, : config.lifelong_queries]
                vectors.append(summary + self.positions["lifelong"])
                is_read.append(has_lifelong[:, None].expand(-1, summary.shape[1]))
        bias = torch.where(torch.cat(is_read, 1), 0.0, -torch.inf)[:, None, None]
        hidden_BLD = self.dropout(torch.cat(vectors, 1))
        for layer in self.layers:
            hidden_BLD = cast(EncoderLayer, layer)(hidden_BLD, bias)
        return self.dropout(self.norm(hidden_BLD)), bias

    def summaries(self, batch: SequenceBatch, embed: Embed) -> Tensor:
        """Return the summary of the events before the short ones of each request, [B, Q, D]; zeros without any."""
        config, num_short = self.config, self.window.lengths(batch.items.lengths)
        earlier = _drop_last(batch.last(num_short + self.lifelong_length), num_short)
        clusters = cluster_histories(
            earlier.items, self.similarity, cluster_size=config.cluster_size, max_clusters=config.lifelong_clusters
        )
        columns = clusters.means(self.columns(earlier, _last_times(earlier)))
        columns = clusters.items.with_values(self.columns.with_counts(columns, clusters.counts)).to_padded()
        items = clusters.items.to_padded()
        vectors = self.events["lifelong"](embed(items), columns)
        summary: Tensor = self.summary(vectors, clusters.items.lengths)
        return summary

    def _latest_positive(self, batch: SequenceBatch, until: Tensor | None) -> tuple[Jagged, Tensor]:
        """Return the latest positive events of each request, and their columns [T, F]."""
        is_positive, rows = self.positive(batch), batch.items.row_ids()
        later = Jagged(is_positive.flip(0).long().cumsum(0).flip(0), batch.items.offsets)  # from each event to the end
        after = torch.cat([later.values, later.values.new_zeros(1)])[batch.items.offsets[1:]]
        is_latest = is_positive & (later.values - after[rows] <= self.config.positive_length)
        lengths = torch.bincount(rows[is_latest], minlength=batch.num_requests)
        return Jagged.from_lengths(batch.items.values[is_latest], lengths), self.columns(batch, until)[is_latest]


def _drop_last(batch: SequenceBatch, counts: Tensor) -> SequenceBatch:
    """Return the requests without the last `counts [B]` events of each history."""
    lengths = (batch.items.lengths - counts).clamp(min=0)
    place = torch.arange(len(batch.items.values), device=lengths.device)
    is_earlier = place < (batch.items.offsets[:-1] + lengths)[batch.items.row_ids()]

    def shorten(column: Jagged) -> Jagged:
        return Jagged.from_lengths(column.values[is_earlier], lengths)

    return replace(
        batch,
        items=shorten(batch.items),
        actions=None if batch.actions is None else shorten(batch.actions),
        timestamps=None if batch.timestamps is None else shorten(batch.timestamps),
        features={name: shorten(column) for name, column in batch.features.items()},
    )


def _last_times(batch: SequenceBatch) -> Tensor | None:
    """Return the time of the last event of each history, [B] milliseconds; None without times, 0 without events."""
    if batch.timestamps is None:
        return None
    times = torch.cat([batch.timestamps.values.new_zeros(1), batch.timestamps.values])
    return torch.where(batch.items.lengths > 0, times[batch.items.offsets[1:]], 0)
