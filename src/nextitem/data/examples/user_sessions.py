"""User sessions: the history before a list of items, and the items of a session that the list should consist of.

OneRec, arXiv 2502.18965, section 3.2: a model generates the items of a session at once. The events of a user are
divided into sessions; a list is the next few distinct items of one. Its history is everything before its first item.

Notable
- Several lists share one history: it is read once, and each list sees the part before it.
- The paper learns lists at the beginning of sessions, of users whose sessions it finds good (`min_items`, `actions`,
  `min_total`). Requests also come in the middle of a session, so by default a list begins at every event.
- What the filters reject is no target, but it stays in the histories.

Shapes: B histories, S lists, m items of a list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.errors import UserError
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged, ranges
from nextitem.data.examples.length_pools import batch_seed, even_batches
from nextitem.data.examples.next_item import windows

SESSION = "session_id"
_MILLISECONDS = 60_000  # of a minute


class SessionsConfig(configs.Config):
    """Settings of sessions as training examples."""

    cut: Literal["auto", "column", "gap"] | None = "auto"
    """What divides a user's events into sessions: the column session_id, or a gap in time; none: nothing. auto: the
    first of these by which some user has several sessions, and a session has two events or more on average.
    """
    max_gap: float = Field(30.0, gt=0)
    """Number of minutes without an event after which a new session begins (gap)."""
    starts: Literal["events", "sessions"] = "events"
    """Where lists begin: at every event of a session but a user's first; or at its first event, with the next list of
    the same session where one ends. Without sessions, always at every event.
    """
    min_items: int = Field(1, ge=1)
    """Smallest number of distinct items of a session whose items are learned; 5 in the paper."""
    actions: tuple[str, ...] = ()
    """Actions of which a session must contain at least one, such as purchase; none: any."""
    total_column: str | None = None
    """Numeric column of the events, such as the watch time, whose total over a session counts."""
    min_total: float = 0.0
    """Smallest total of that column for a session whose items are learned."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return {
            **configs.idle_unless(self.cut in ("auto", "gap"), f"cut is {self.cut or 'none'}", "max_gap"),
            **configs.idle_unless(self.cut is not None, "cut is none", "starts"),
            **configs.idle_unless(self.total_column is not None, "total_column is none", "min_total"),
        }


@dataclass(frozen=True, eq=False)
class UserSessionBatch:
    """Lists of one batch, with the histories that they follow.

    Attributes:
        items: [B] histories, Jagged int64; the last events of a row may follow its last list.
        starts: the number of events before each list of a history, Jagged int64, B rows of numbers from 1 on.
        lists: [S] the items of each list, Jagged int64, 1 to m distinct ones, in the order of `starts`.
        seed: seed of the random samples of this batch.

    """

    items: Jagged
    starts: Jagged
    lists: Jagged
    seed: int

    def to(self, device: torch.device | str) -> UserSessionBatch:
        """Return the same batch on another device."""
        return replace(self, items=self.items.to(device), starts=self.starts.to(device), lists=self.lists.to(device))

    def share(self, rank: int, count: int) -> UserSessionBatch:
        """Return this process's part of the batch: every `count`-th history from history `rank` on, and its lists."""
        rows = torch.arange(rank, self.items.num_rows, count)
        lists = ranges(self.starts.offsets[:-1][rows], self.starts.lengths[rows])
        return replace(
            self, items=self.items.select(rows), starts=self.starts.select(rows), lists=self.lists.select(lists)
        )

    @property
    def loss_count(self) -> int:
        """Return the number of lists, over which the loss is averaged."""
        return self.lists.num_rows

    def sample_lists(self, share: float, generator: torch.Generator) -> UserSessionBatch:
        """Return the batch with a random part of its lists: each one with probability `share`, all histories."""
        if share >= 1:
            return self
        is_selected = (torch.rand(self.lists.num_rows, generator=generator) < share).to(self.lists.offsets.device)
        counts = torch.zeros_like(self.starts.lengths).index_add_(0, self.starts.row_ids(), is_selected.long())
        starts = Jagged.from_lengths(self.starts.values[is_selected], counts)
        return replace(self, starts=starts, lists=self.lists.select(is_selected.nonzero()[:, 0]))

    def next_items(self, weights: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the items of each list as targets before it: the list, the item, and a weight of each, [T] each.

        `weights` are those of the first, second, ... item of a list, divided by the number of lists. The first S
        targets are the first items.
        """
        padded_Sm = self.lists.to_padded()
        columns, lists = (padded_Sm.T[: len(weights)] > 0).nonzero(as_tuple=True)
        factors = torch.tensor(weights, device=padded_Sm.device) / max(1, self.loss_count)
        return lists, padded_Sm[lists, columns], factors[columns]


class UserSessions:
    """Stream of the users' histories with the lists that follow their events, cut into windows from their ends.

    A batch contains histories of similar length, and all batches have about the same number of events; `batch_size` is
    the mean number of histories. The composition and the order of batches depend on (seed, epoch) alone.

    Args:
        log: events of the training part.
        max_length: number of events of a window.
        items_per_list: largest number of items of a list (m).
        config: how sessions are cut, where lists begin, and which sessions are learned.

    Raises:
        UserError: the settings name a column or an action that the log does not have, or no session is left.

    """

    def __init__(self, log: Interactions, *, max_length: int, items_per_list: int, config: SessionsConfig) -> None:
        with_item = log.with_items()
        self.items_per_list = items_per_list
        self.items = torch.from_numpy(with_item.item_ids.astype(np.int64))
        is_first, has_sessions = session_starts(with_item, config)
        session = is_first.cumsum() - 1  # of each event
        places = np.flatnonzero(with_item.is_target() & _good_sessions(with_item, session, config)[session])
        self._places, target_session = places, session[places]
        first = np.searchsorted(target_session, target_session)  # rank of the first target of the same session
        self._ends = np.searchsorted(target_session, target_session, side="right")  # rank after its last one
        is_start = places > with_item.offsets[with_item.user_ids[places] - 1]  # there is an event before it
        if has_sessions and config.starts == "sessions":
            is_start &= self._begins_list(first)
        self._starts = np.flatnonzero(is_start)  # ranks of the targets at which lists begin
        begins, lengths = windows(with_item.offsets, max_length)
        list_places = places[self._starts]
        low = np.searchsorted(list_places, begins, side="right")
        high = np.searchsorted(list_places, begins + lengths, side="right")
        has_list = high > low
        self.starts, self.lengths = begins[has_list], lengths[has_list]
        self._first_list, self._num_lists = low[has_list], (high - low)[has_list]
        if has_sessions and config.starts == "sessions" and not len(self._starts):
            raise UserError(
                "no list of training follows an event: each user has only one short session; set "
                "model.sessions.starts = events"
            )

    @property
    def num_lists(self) -> int:
        """Number of lists of an epoch."""
        return len(self._starts)

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch."""
        return -(-len(self.starts) // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[UserSessionBatch]:
        """Yield the batches `start`, `start + 1`, ... of an epoch."""
        for number, rows in even_batches(self.lengths, batch_size, epoch=epoch, seed=seed, start=start):
            starts, lengths, counts = (
                torch.from_numpy(column[rows]) for column in (self.starts, self.lengths, self._num_lists)
            )
            lists = ranges(torch.from_numpy(self._first_list[rows]), counts)
            ranks = self._starts[lists.numpy()]
            before = torch.from_numpy(self._places[ranks]) - starts.repeat_interleave(counts)
            yield UserSessionBatch(
                Jagged.from_lengths(self.items[ranges(starts, lengths)], lengths),
                Jagged.from_lengths(before, counts),
                self._lists_from(ranks),
                seed=batch_seed(seed, epoch, number),
            )

    def _lists_from(self, ranks: NDArray[np.int64]) -> Jagged:
        """Return the lists that begin at targets of these ranks: the next m distinct items of the session, [S]."""
        items, is_new, _ = self._read(ranks)
        return Jagged.from_lengths(torch.from_numpy(items[is_new]), torch.from_numpy(is_new.sum(1)))

    def _begins_list(self, first: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return at which targets lists begin if each begins where the one before ends, [targets].

        `first` is the rank of the first target of each target's session.
        """
        begins = np.zeros(len(first), np.bool_)
        ranks = np.unique(first)
        while len(ranks):  # once for each list of the longest session
            begins[ranks] = True
            following = ranks + self._read(ranks)[2]
            ranks = following[following < self._ends[ranks]]
        return begins

    def _read(self, ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """Return what lists that begin at targets of these ranks read.

        Returns:
            The items of the next 2 m targets, [S, 2 m], as repeats leave room for further items; which of them belong
            to the list; and how many targets a list reads, repeats of its items included, [S].

        """
        columns = ranks[:, None] + np.arange(2 * self.items_per_list)
        is_inside = columns < self._ends[ranks][:, None]
        items = self.items.numpy()[self._places[columns.clip(max=len(self._places) - 1)]]
        is_repeated = np.tril(items[:, :, None] == items[:, None, :], -1).any(2)
        is_new = is_inside & ~is_repeated
        is_read = is_inside & (is_new.cumsum(1) <= self.items_per_list)
        return items, is_new & is_read, is_read.sum(1)


def session_starts(log: Interactions, config: SessionsConfig) -> tuple[NDArray[np.bool_], bool]:
    """Return which events begin a session of their user, [T], and whether there are sessions besides the users.

    Raises:
        UserError: the log has no column session_id, or no times, and the settings require them.

    """
    is_first = np.ones(len(log), np.bool_)
    is_first[1:] = log.user_ids[1:] != log.user_ids[:-1]
    has_column = SESSION in log.columns.columns
    cut = config.cut
    if cut == "column" and not has_column:
        raise UserError("model.sessions.cut = column, but the log has no column session_id; set gap, none or auto")
    if cut == "gap" and log.timestamps is None:
        raise UserError("model.sessions.cut = gap, but the log has no times; set column, none or auto")
    divisions = []
    if cut in ("auto", "column") and has_column:
        session = log.columns[SESSION]
        divisions.append(is_first | session.ne_missing(session.shift(1)).to_numpy())
    if cut in ("auto", "gap") and log.timestamps is not None:
        gap = np.diff(log.timestamps, prepend=log.timestamps[:1])
        divisions.append(is_first | (gap > config.max_gap * _MILLISECONDS))
    for division in divisions:
        if cut != "auto" or is_first.sum() < division.sum() <= len(log) / 2:
            return division, True
    return is_first, False


def _good_sessions(log: Interactions, session: NDArray[np.int64], config: SessionsConfig) -> NDArray[np.bool_]:
    """Return which sessions pass the filters, [sessions]; `session [T]` is the number of each event's."""
    count = int(session[-1]) + 1 if len(session) else 0
    pairs = np.unique(np.stack([session, log.item_ids.astype(np.int64)]), axis=1)[0]
    is_good = np.bincount(pairs, minlength=count) >= config.min_items
    if config.actions:
        column = _column(log, "action", "actions")
        present = set(column.unique().cast(pl.String).to_list())
        unknown = [action for action in config.actions if action not in present]
        if unknown:
            raise UserError(
                f"model.sessions.actions: no event has the action {', '.join(unknown)}; "
                f"there are {', '.join(sorted(name for name in present if name is not None))}"
            )
        has_action = column.cast(pl.String).is_in(list(config.actions)).fill_null(False).to_numpy()
        is_good &= np.bincount(session[has_action], minlength=count) > 0
    if config.total_column is not None:
        values = _column(log, config.total_column, "total_column")
        if not values.dtype.is_numeric():
            raise UserError(f"model.sessions.total_column = {config.total_column} is {values.dtype}, not a number")
        amounts = values.cast(pl.Float64).fill_null(0.0).fill_nan(0.0).to_numpy()
        is_good &= np.bincount(session, amounts, minlength=count) >= config.min_total
    if count and not is_good.any():
        raise UserError("the filters of [model.sessions] leave no session to learn from; lower them")
    return is_good


def _column(log: Interactions, name: str, setting: str) -> pl.Series:
    """Return a column of the events; UserError if there is none of this name."""
    if name not in log.columns.columns:
        names = ", ".join(log.columns.columns) or "none"
        raise UserError(f"model.sessions.{setting}: the events have no column {name}; their columns are: {names}")
    return log.columns[name]
