"""User streams: events and impressions of a user, merged by time, as one stream for all requests of the user.

What a request may read are the first tokens of its user's stream: events before the request, and impressions that were
shown so long before it that their labels had come. So the requests of a user share one stream, and each has the number
of tokens that it sees. Nothing later than a request is ever among them.

Shapes: B requests, S streams, T tokens of all streams, A kinds of actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged, offsets_of, ranges
from nextitem.nn.attention.incremental import Window

HASH_FACTORS = (0x2545F4914F6CDD1D, 0x1B873593CC9E2D51, 0x6A09E667F3BCC909)  # odd


@dataclass(frozen=True, eq=False)
class UserStreams:
    """Token streams, and which of their tokens each request sees.

    Attributes:
        items: items of the tokens, S rows.
        actions: [T, A] float32: what the user did with the item of each token: 1 or 0 for each kind of action.
        times: [T] int64, milliseconds: time from which the token may be read; None: undated.
        starts: [S] int64: number of tokens of the history before the first one of the stream.
        streams: [B] int64: stream of each request.
        visible: [B] int64: number of first tokens of its stream that each request sees.

    """

    items: Jagged
    actions: Tensor
    times: Tensor | None
    starts: Tensor
    streams: Tensor
    visible: Tensor

    def digests(self) -> Tensor:
        """Return a hash of each token [T] int64: its item, its time, and its actions."""
        digest = self.items.values * HASH_FACTORS[0]
        if self.times is not None:
            digest = digest + self.times * HASH_FACTORS[1]
        bits = 1 << torch.arange(self.actions.shape[1], device=digest.device).remainder(62)
        return digest + (self.actions.long() * bits).sum(1) * HASH_FACTORS[2]

    def select(self, is_read: Tensor) -> UserStreams:
        """Return the streams with the tokens of the mask `is_read [T]`."""
        rows, before = self.items.row_ids(), offsets_of(is_read.long())
        firsts = self.items.offsets[self.streams]
        return replace(
            self,
            items=Jagged.from_lengths(
                self.items.values[is_read], torch.bincount(rows[is_read], minlength=self.items.num_rows)
            ),
            actions=self.actions[is_read],
            times=None if self.times is None else self.times[is_read],
            visible=before[firsts + self.visible] - before[firsts],
        )


@dataclass(frozen=True)
class StreamReader:
    """Reader of the streams of a batch.

    Attributes:
        window: which tokens of a history are read.
        num_actions: number of action codes of events; higher codes count as the last one.
        labels: names of the labels of impressions, each of which is a kind of action.
        label_delay_ms: time after which the labels of an impression are read; it is no token before.
        reads_impressions: whether impressions are tokens, too.

    """

    window: Window
    num_actions: int
    labels: tuple[str, ...]
    label_delay_ms: int
    reads_impressions: bool

    @property
    def num_kinds(self) -> int:
        """Number of kinds of actions (A): an unknown action, the action codes, being shown, and the labels."""
        return self.num_actions + 2 + len(self.labels)

    def num_tokens(self, batch: SequenceBatch) -> Tensor:
        """Return an upper bound of the number of tokens that are read of each request's history, [B]."""
        lengths = batch.items.lengths
        if self.reads_impressions and batch.shown_items is not None:
            lengths = lengths + batch.shown_items.lengths
        return lengths.clamp(max=self.window.length)

    def read(self, batch: SequenceBatch, groups: Tensor | None = None) -> UserStreams:
        """Return the streams of a batch.

        Args:
            batch: the requests.
            groups: [B] int64: requests of different groups never share a stream, and those of group 0 share none; None:
                users are the groups.

        """
        items, actions, times = self._tokens(batch)
        starts = self.window.starts(items.lengths)
        tokens = _Tokens(items, actions, times).last(items.lengths - starts)
        firsts, streams = self._shared(batch, tokens, starts, groups)
        stream_tokens = tokens.select(firsts)
        return UserStreams(
            stream_tokens.items,
            stream_tokens.actions,
            stream_tokens.times,
            starts[firsts],
            streams,
            tokens.items.lengths,
        )

    def _tokens(self, batch: SequenceBatch) -> tuple[Jagged, Tensor, Tensor | None]:
        """Return the tokens of each request: items, kinds of actions [tokens, A], and times [tokens]."""
        events = batch.items
        codes = torch.zeros_like(events.values) if batch.actions is None else batch.actions.values
        actions = torch.zeros(len(codes), self.num_kinds, device=codes.device)
        actions[torch.arange(len(codes), device=codes.device), codes.clamp(0, self.num_actions)] = 1
        if batch.timestamps is None or batch.request_times is None:
            return events, actions, None
        times, pages = batch.timestamps.values, batch.shown_items
        if not self.reads_impressions or pages is None or batch.shown_times is None or not len(pages.values):
            return events, actions, times
        rows = pages.row_ids()
        ready = batch.shown_times.values + self.label_delay_ms
        is_ready = ready <= batch.request_times[rows]
        page_actions = torch.zeros(int(is_ready.sum()), self.num_kinds, device=codes.device)
        page_actions[:, self.num_actions + 1] = 1
        for number, name in enumerate(self.labels, start=self.num_actions + 2):
            if name in batch.shown_labels:
                page_actions[:, number] = (batch.shown_labels[name].values[is_ready] > 0).float()
        owners = torch.cat([events.row_ids(), rows[is_ready]])
        all_times = torch.cat([times, ready[is_ready]])
        by_time = all_times.argsort(stable=True)
        order = by_time[owners[by_time].argsort(stable=True)]
        merged = torch.cat([events.values, pages.values[is_ready]])[order]
        lengths = torch.bincount(owners, minlength=batch.num_requests)
        return Jagged.from_lengths(merged, lengths), torch.cat([actions, page_actions])[order], all_times[order]

    def _shared(
        self, batch: SequenceBatch, tokens: _Tokens, starts: Tensor, groups: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the requests whose tokens become a stream [S], and the stream of each request [B]."""
        rows = torch.arange(batch.num_requests, device=starts.device)
        users = groups if groups is not None else batch.user_ids
        if users is None or len(rows) < 2:
            return rows, rows
        keys = torch.stack([users, starts], 1)
        _, group = torch.unique(keys, dim=0, return_inverse=True)
        group = torch.where(users == 0, len(rows) + rows, group)  # a visitor is nobody who asked before
        ranks = tokens.items.lengths * len(rows) + rows  # the longest first, of equal ones the last
        longest = torch.zeros(2 * len(rows), dtype=torch.int64, device=rows.device)
        longest = longest.scatter_reduce(0, group, ranks, "amax") % len(rows)
        leaders = longest[group]
        leaders = torch.where(tokens.begin_with(leaders), leaders, rows)
        firsts, streams = torch.unique(leaders, return_inverse=True)
        return firsts, streams


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Tokens of requests: items, kinds of actions [tokens, A], and times [tokens]."""

    items: Jagged
    actions: Tensor
    times: Tensor | None

    def last(self, counts: Tensor) -> _Tokens:
        """Return the last `counts [B]` tokens of each request."""
        return self._slice(self.items.offsets[1:] - counts, counts)

    def select(self, rows: Tensor) -> _Tokens:
        """Return the tokens of the requests at the indices `rows [R]`."""
        return self._slice(self.items.offsets[:-1][rows], self.items.lengths[rows])

    def begin_with(self, others: Tensor) -> Tensor:
        """Return for each request whether its tokens are the first ones of the request `others[b]`, bool [B]."""
        lengths = self.items.lengths
        other_lengths = lengths[others]
        fits = lengths <= other_lengths
        own = ranges(self.items.offsets[:-1], lengths)
        other = ranges(self.items.offsets[:-1][others], lengths.minimum(other_lengths))
        own = own if bool(fits.all()) else ranges(self.items.offsets[:-1], lengths.minimum(other_lengths))
        columns: Sequence[Tensor | None] = (self.items.values, self.times)
        is_equal = (self.actions[own] == self.actions[other]).all(1)
        for column in columns:
            if column is not None:
                is_equal = is_equal & (column[own] == column[other])
        rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths.minimum(other_lengths))
        num_different = torch.bincount(rows[~is_equal], minlength=len(lengths))
        return fits & (num_different == 0)

    def _slice(self, starts: Tensor, lengths: Tensor) -> _Tokens:
        places = ranges(starts, lengths)
        items = Jagged(self.items.values[places], offsets_of(lengths))
        return _Tokens(items, self.actions[places], None if self.times is None else self.times[places])
