"""User streams: events and impressions of a user, merged by time, as one stream for all requests of the user.

What a request may read are the first tokens of its user's stream: events before the request, and impressions that were
shown so long before it that their labels had come. So the requests of a user share one stream, and each has the number
of tokens that it sees. Nothing later than a request is ever among them.

A stream can also have static first tokens: features of the user, and what happened before the period of the request.

Shapes: B requests, S streams, T tokens of all streams, A kinds of actions, U features of a user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged, offsets_of, ranges
from nextitem.nn.attention.incremental import Window

UNDATED = -(2**60)  # time of the tokens of features: so long ago that they are in the last time bucket of every query
HASH_FACTORS = (0x2545F4914F6CDD1D, 0x1B873593CC9E2D51, 0x6A09E667F3BCC909)  # odd


@dataclass(frozen=True, eq=False)
class UserStreams:
    """Token streams, and which of their tokens each request sees.

    Attributes:
        items: items of the tokens, S rows; a feature of the user with the code c has -1 - c.
        actions: [T, A] float32: what the user did with the item of each token: 1 or 0 for each kind of action.
        times: [T] int64, milliseconds: time from which the token may be read; None: undated.
        starts: [S] int64: number of tokens of the history before the first one of the stream.
        streams: [B] int64: stream of each request.
        visible: [B] int64: number of first tokens of its stream that each request sees.
        num_static: [S] int64: number of static first tokens of each stream; None: no token is static.

    """

    items: Jagged
    actions: Tensor
    times: Tensor | None
    starts: Tensor
    streams: Tensor
    visible: Tensor
    num_static: Tensor | None = None

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
        recent_window: which tokens of the period of a request are read (`read_periods`).

    """

    window: Window
    num_actions: int
    labels: tuple[str, ...]
    label_delay_ms: int
    reads_impressions: bool
    recent_window: Window | None = None

    @property
    def num_kinds(self) -> int:
        """Number of kinds of actions (A): an unknown action, the action codes, being shown, and the labels."""
        return self.num_actions + 2 + len(self.labels)

    def num_tokens(self, batch: SequenceBatch) -> Tensor:
        """Return an upper bound of the number of tokens that are read of each request's history, [B]."""
        lengths = batch.items.lengths
        if self.reads_impressions and batch.shown_items is not None:
            lengths = lengths + batch.shown_items.lengths
        recent_length = 0 if self.recent_window is None else self.recent_window.length
        return lengths.clamp(max=self.window.length + recent_length)

    def read(self, batch: SequenceBatch, groups: Tensor | None = None) -> UserStreams:
        """Return the streams of a batch.

        Args:
            batch: the requests.
            groups: [B] int64: requests of different groups never share a stream, and those of group 0 share none; None:
                users are the groups.

        """
        tokens = self._tokens(batch)
        starts = self.window.starts(tokens.items.lengths)
        tokens = tokens.last(tokens.items.lengths - starts)
        firsts, streams = self._shared(batch, tokens, starts[:, None], groups)
        shared = tokens.select(firsts)
        return UserStreams(shared.items, shared.actions, shared.times, starts[firsts], streams, tokens.items.lengths)

    def read_periods(
        self, batch: SequenceBatch, codes: Tensor, period_ms: int, *, is_shared: bool = True
    ) -> UserStreams:
        """Return the streams of a batch, with static first tokens: the user's features, and what precedes the period.

        Periods begin at the multiples of `period_ms`. Static tokens can see one another, so requests share a stream
        only if all of their static tokens are equal. What happened since the period began, strictly before the request,
        has a window of its own. Without times, all tokens are static.

        Args:
            batch: the requests.
            codes: [B, U] int64: codes of the features of the users.
            period_ms: length of a period, milliseconds.
            is_shared: whether requests of a user may share a stream.

        """
        assert self.recent_window is not None
        tokens = self._tokens(batch)
        rows = tokens.items.row_ids()
        is_static, is_read = torch.ones_like(rows, dtype=torch.bool), torch.ones_like(rows, dtype=torch.bool)
        if tokens.times is not None and batch.request_times is not None:
            is_static = tokens.times < (batch.request_times.div(period_ms, rounding_mode="floor") * period_ms)[rows]
            is_read = tokens.times < batch.request_times[rows]
        num_static, num_recent = (
            torch.bincount(rows[mask], minlength=batch.num_requests) for mask in (is_static, is_read & ~is_static)
        )
        starts, recent_starts = self.window.starts(num_static), self.recent_window.starts(num_recent)
        places = torch.arange(len(rows), device=rows.device) - tokens.items.offsets[rows]
        is_read &= places >= torch.where(is_static, starts[rows], (num_static + recent_starts)[rows])
        tokens = tokens.where(is_read).after(codes)
        num_static = num_static - starts + codes.shape[1]
        keys = torch.cat([torch.stack([num_static, starts, recent_starts], 1), codes], 1)
        nobody = None if is_shared else torch.zeros_like(starts)
        firsts, streams = self._shared(batch, tokens, keys, nobody)
        shared, visible = tokens.select(firsts), tokens.items.lengths
        return UserStreams(
            shared.items, shared.actions, shared.times, starts[firsts], streams, visible, num_static[firsts]
        )

    def _tokens(self, batch: SequenceBatch) -> _Tokens:
        """Return the tokens of each request, by time."""
        events = batch.items
        codes = torch.zeros_like(events.values) if batch.actions is None else batch.actions.values
        actions = torch.zeros(len(codes), self.num_kinds, device=codes.device)
        actions[torch.arange(len(codes), device=codes.device), codes.clamp(0, self.num_actions)] = 1
        if batch.timestamps is None or batch.request_times is None:
            return _Tokens(events, actions, None)
        items, times, owners = events.values, batch.timestamps.values, events.row_ids()
        pages = batch.shown_items
        if self.reads_impressions and pages is not None and batch.shown_times is not None and len(pages.values):
            rows = pages.row_ids()
            ready = batch.shown_times.values + self.label_delay_ms
            is_ready = ready <= batch.request_times[rows]
            page_actions = torch.zeros(int(is_ready.sum()), self.num_kinds, device=codes.device)
            page_actions[:, self.num_actions + 1] = 1
            for number, name in enumerate(self.labels, start=self.num_actions + 2):
                if name in batch.shown_labels:
                    page_actions[:, number] = (batch.shown_labels[name].values[is_ready] > 0).float()
            items = torch.cat([items, pages.values[is_ready]])
            actions = torch.cat([actions, page_actions])
            times = torch.cat([times, ready[is_ready]])
            owners = torch.cat([owners, rows[is_ready]])
        by_time = times.argsort(stable=True)
        order = by_time[owners[by_time].argsort(stable=True)]
        lengths = torch.bincount(owners, minlength=batch.num_requests)
        return _Tokens(Jagged.from_lengths(items[order], lengths), actions[order], times[order])

    def _shared(
        self, batch: SequenceBatch, tokens: _Tokens, keys: Tensor, groups: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the requests whose tokens become a stream [S], and the stream of each request [B].

        Requests share a stream if they have equal `keys [B, any]`, one group, and tokens that begin alike.
        """
        rows = torch.arange(batch.num_requests, device=keys.device)
        users = groups if groups is not None else batch.user_ids
        if users is None or len(rows) < 2:
            return rows, rows
        _, group = torch.unique(torch.cat([users[:, None], keys], 1), dim=0, return_inverse=True)
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

    def where(self, is_read: Tensor) -> _Tokens:
        """Return the tokens of the mask `is_read [tokens]`."""
        lengths = torch.bincount(self.items.row_ids()[is_read], minlength=self.items.num_rows)
        times = None if self.times is None else self.times[is_read]
        return _Tokens(Jagged.from_lengths(self.items.values[is_read], lengths), self.actions[is_read], times)

    def after(self, codes: Tensor) -> _Tokens:
        """Return the tokens of each request after those of its features with the codes [B, U]."""
        offsets = torch.arange(len(codes) + 1, device=codes.device) * codes.shape[1]
        count = codes.numel()
        features = _Tokens(
            Jagged(-1 - codes.flatten(), offsets),
            self.actions.new_zeros(count, self.actions.shape[1]),
            None if self.times is None else self.times.new_full((count,), UNDATED),
        )

        def joined(first: Tensor, second: Tensor) -> Jagged:
            return Jagged(first, offsets).append(self.items.with_values(second))

        times = None
        if features.times is not None and self.times is not None:
            times = joined(features.times, self.times).values
        items = joined(features.items.values, self.items.values)
        return _Tokens(items, joined(features.actions, self.actions).values, times)

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
