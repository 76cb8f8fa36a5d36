"""make_split: what may be learnt from, and what is asked, by one of six protocols."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.interactions import Interactions
from nextitem.data.impression_requests import impression_requests
from nextitem.data.requests import (
    Rows,
    build_requests,
    earlier_items,
    enum_codes,
    is_target,
    single_targets,
    target_sets,
)

Mask = NDArray[np.bool_]


def make_split(dataset: Dataset, protocol: str | None = None, *, seed: int = 0) -> Split:
    """Splits a data set by a protocol; None: `default_protocol`.

    time           learns from events before a cut (80% of events, moved to the nearest border between
                   distinct times); validates on the next 10%, tests on the rest. One request for each user
                   with an earlier item: the target is the user's first positive event from the cut on;
                   `test_later` asks the same with all their positive items from the cut on as a set.
    leave-one-out  the last positive event of each user tests, the one before it validates; what follows the
                   validation target is not learnt from. Users with fewer than three positive events are
                   learnt from whole and never asked.
    session        sessions in order of their start (undated: as they first appear in the file); the last
                   tenth tests, the last tenth of the others validates. One request for every positive event
                   after a session's first item; its history is the session's own. Seen items may recur.
    user-split     80% of users, drawn by `seed`, are learnt from; 10% validate, 10% test: the first half of
                   a user's events (rounded down) is the history, the positive items of the second the set of
                   targets.
    published      learns from rows with split = train; every positive row marked valid or test that has an
                   earlier item is a target. Without valid rows, the last tenth of training sessions or each
                   user's last positive training event validates.
    impressions    learns from impressions (and events) before a cut; asks for the order of what was shown.

    Histories hold every earlier event with an item, positive or not, in the log's strict order: of a basket
    whose lines share one time, the lines before the target are history, so that a request never holds its
    target or what follows it. Only positive events are targets. Requests are dated by their target. Where a
    seen item may not be recommended (`repeats` false), histories are excluded.
    Impressions are learnt from only as far as they precede every request (`time`, dated `session`,
    `impressions`); elsewhere they are left out. UserError where the data does not allow the protocol.
    """
    if protocol is None:
        protocol, _ = default_protocol(dataset)
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    if protocol != "impressions" and not len(dataset.interactions):
        raise UserError(f"{dataset.name}: has impressions only; protocol {protocol} needs interactions")
    split = PROTOCOLS[protocol](dataset, seed)
    for part, requests in (("validation", split.validation), ("test", split.test)):
        if not requests.num_requests:
            raise UserError(
                f"{dataset.name}: protocol {protocol} leaves no {part} requests; "
                f"the log is too small for it, choose another of {', '.join(PROTOCOLS)}"
            )
    if protocol != "impressions" and not is_target(split.train.interactions).any():
        raise UserError(f"{dataset.name}: protocol {protocol} leaves no training events; choose another")
    return split


def default_protocol(dataset: Dataset) -> tuple[str, str]:
    """The protocol for a data set, and the reason in words."""
    if not len(dataset.interactions):
        return "impressions", "there are impressions only"
    if dataset.anonymous:
        return "session", "the log has sessions without users"
    if dataset.interactions.timestamps is not None:
        return "time", "every event is dated"
    return "leave-one-out", "not every event is dated"


def time_cut(values: NDArray[np.int64], share: float) -> int:
    """The border c for which the share of values below c is nearest to `share`; both sides are not empty.

    UserError where all values are equal.
    """
    goal = min(max(round(share * len(values)), 1), len(values) - 1)
    middle = int(np.partition(values, goal)[goal])
    above = values[values > middle]
    borders = [middle] if int(values.min()) < middle else []
    borders += [int(above.min())] if len(above) else []
    if not borders:
        raise UserError(
            f"{len(values)} events carry one timestamp, so there is no border between them to cut at; "
            "choose leave-one-out or user-split"
        )
    return min(borders, key=lambda border: abs(int((values < border).sum()) - goal))


def _two_cuts(times: Rows) -> tuple[int, int]:
    """The borders nearest to 80% and 90%; where ties make them one, the nearest pair around it."""
    first, second = time_cut(times, 0.8), time_cut(times, 0.9)
    if first < second:
        return first, second
    rest = times[times >= second]
    if int(rest.min()) < int(rest.max()):
        return first, time_cut(rest, 0.5)
    return time_cut(times[times < second], 8 / 9), second


def _time(dataset: Dataset, seed: int) -> Split:
    log = dataset.interactions
    times = log.timestamps
    if times is None:
        raise UserError(f"{dataset.name}: protocol time needs a timestamp for every event; use leave-one-out")
    first, second = _two_cuts(times)
    validation, left_early, _ = _after_cut(dataset, first, second)
    test, left, later = _after_cut(dataset, second, None)
    notes = (
        *_note(left_early, "validation: left out {} users without events before the cut"),
        *_note(left, "test: left out {} users without events before the cut"),
        *_unreachable(dataset, test),
    )
    return Split(
        "time",
        _learn(dataset, times < first, before=first),
        validation,
        test,
        lambda: _learn(dataset, times < second, before=second),
        test_later=later,
        notes=notes,
    )


def _after_cut(dataset: Dataset, cut: int, end: int | None) -> tuple[SequenceBatch, int, SequenceBatch]:
    """Requests for the next target from `cut` on, users left out, and the requests for all later targets."""
    log = dataset.interactions
    assert log.timestamps is not None
    wanted = is_target(log) & (log.timestamps >= cut)
    if end is not None:
        wanted &= log.timestamps < end
    rows = np.flatnonzero(wanted)
    users, first = np.unique(log.user_ids[rows], return_index=True)
    starts = log.offsets[users - 1]
    cuts = starts + _count_before(log, cut)[users]
    known = earlier_items(log, starts, cuts) > 0
    users, starts, targets = users[known], starts[known], rows[first[known]]
    requests = build_requests(
        dataset,
        starts,
        targets,
        targets=single_targets(log, targets),
        times=log.timestamps[targets],
        user_ids=None if dataset.anonymous else users,
        exclude_seen=not dataset.repeats,
    )
    asked = np.zeros(log.num_users + 1, dtype=np.bool_)
    asked[users] = True
    later = rows[asked[log.user_ids[rows]]]
    owners = np.searchsorted(users, log.user_ids[later])
    sets = target_sets(log, later, owners, count=len(users))
    return requests, int((~known).sum()), replace(requests, targets=sets)


def _count_before(log: Interactions, cut: int) -> Rows:
    """Events of each user before a time, [U + 1]."""
    assert log.timestamps is not None
    return np.bincount(log.user_ids[log.timestamps < cut], minlength=log.num_users + 1)


def _leave_one_out(dataset: Dataset, seed: int) -> Split:
    log = dataset.interactions
    rows, counts, ends = _targets_by_user(log)
    asked = np.flatnonzero(counts >= 3)
    test, validation = rows[ends[asked] - 1], rows[ends[asked] - 2]
    short = int(((counts > 0) & (counts < 3)).sum())
    requests = _next_events(dataset, test)
    return Split(
        "leave-one-out",
        _learn(dataset, _rows_before(log, asked, validation)),
        _next_events(dataset, validation),
        requests,
        lambda: _learn(dataset, _rows_before(log, asked, test)),
        notes=(
            *_note(short, "{} users with fewer than three positive events are learnt from and not asked"),
            *_unreachable(dataset, requests),
            *_no_impressions(dataset),
        ),
    )


def _targets_by_user(log: Interactions, among: Mask | None = None) -> tuple[Rows, Rows, Rows]:
    """Rows of possible targets, how many each user 0..U - 1 has, and where each user's end among them."""
    wanted = is_target(log) if among is None else is_target(log) & among
    rows = np.flatnonzero(wanted)
    counts = np.bincount(log.user_ids[rows], minlength=log.num_users + 1)[1:]
    return rows, counts, np.cumsum(counts)


def _rows_before(log: Interactions, users: Rows, rows: Rows) -> Mask:
    """All events of the log, but of `users` (0-based) only those before the given row of each."""
    border = log.offsets[1:].copy()
    border[users] = rows
    return np.arange(len(log)) < border[log.user_ids - 1]


def _next_events(dataset: Dataset, targets: Rows) -> SequenceBatch:
    """One request for each target row: everything earlier of the user is history."""
    log = dataset.interactions
    users = log.user_ids[targets]
    return build_requests(
        dataset,
        log.offsets[users - 1],
        targets,
        targets=single_targets(log, targets),
        times=None if log.timestamps is None else log.timestamps[targets],
        user_ids=None if dataset.anonymous else users,
        exclude_seen=not dataset.repeats,
    )


def _session(dataset: Dataset, seed: int) -> Split:
    log = dataset.interactions
    session, order = _sessions(dataset)
    ordered = session[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    if len(first) < 3:
        raise UserError(f"{dataset.name}: protocol session needs three sessions or more, there are {len(first)}")
    dated = log.timestamps is not None
    begins = log.timestamps[order[first]] if log.timestamps is not None else np.arange(len(first))
    second_cut = time_cut(begins, 0.9)
    if len(np.unique(begins[begins < second_cut])) < 2:
        raise UserError(f"{dataset.name}: too few sessions start at distinct times; use leave-one-out")
    first_cut = time_cut(begins[begins < second_cut], 0.9)
    notes: list[str] = []

    def ask(part: Mask, name: str) -> SequenceBatch:
        requests, single = _within_sessions(dataset, ordered, order, first, part)
        notes.extend(_note(single, name + ": left out {} sessions without a next event"))
        return requests

    validation = ask((begins >= first_cut) & (begins < second_cut), "validation")
    test = ask(begins >= second_cut, "test")

    def learn(cut: int) -> Dataset:
        return _learn(dataset, (begins < cut)[session], before=cut if dated else None)

    return Split("session", learn(first_cut), validation, test, lambda: learn(second_cut), notes=tuple(notes))


def _sessions(dataset: Dataset) -> tuple[Rows, Rows]:
    """The session of each event, 0.. in the order of their numbers, and the order that groups sessions."""
    log = dataset.interactions
    if not dataset.anonymous and "session_id" not in log.columns.columns:
        raise UserError(f"{dataset.name}: protocol session needs a column session_id; use time or leave-one-out")
    numbers = log.user_ids if dataset.anonymous else log.columns["session_id"].to_numpy()
    present = np.bincount(numbers) > 0
    session = (np.cumsum(present) - 1)[numbers]
    return session, np.arange(len(log)) if dataset.anonymous else np.argsort(session, kind="stable")


def _within_sessions(
    dataset: Dataset, ordered: Rows, order: Rows, first: Rows, part: Mask
) -> tuple[SequenceBatch, int]:
    """One request for each next event of the sessions in `part`, and how many of these have none."""
    log = dataset.interactions
    places = np.flatnonzero(part[ordered] & is_target(log)[order])
    starts = first[ordered[places]]
    items = np.concatenate([[0], np.cumsum(log.item_ids[order] > 0)])
    kept = items[places] > items[starts]
    places, starts = places[kept], starts[kept]
    in_order_of_log = np.argsort(order[places])
    places, starts = places[in_order_of_log], starts[in_order_of_log]
    rows = order[places]
    requests = build_requests(
        dataset,
        starts,
        places,
        targets=single_targets(log, rows),
        times=None if log.timestamps is None else log.timestamps[rows],
        user_ids=None if dataset.anonymous else log.user_ids[rows],
        order=order,
    )
    return requests, int(part.sum()) - len(np.unique(ordered[places]))


def _user_split(dataset: Dataset, seed: int) -> Split:
    log = dataset.interactions
    active = np.flatnonzero(np.diff(log.offsets) > 0)
    drawn = np.random.default_rng(seed).permutation(active)
    train, held = round(0.8 * len(drawn)), round(0.9 * len(drawn))
    notes: list[str] = []

    def ask(users: Rows, name: str) -> SequenceBatch:
        requests, short = _halves(dataset, np.sort(users))
        notes.extend(_note(short, name + ": left out {} users without a history and a target"))
        return requests

    validation, test = ask(drawn[train:held], "validation"), ask(drawn[held:], "test")

    def learn(users: Rows) -> Dataset:
        chosen = np.zeros(log.num_users, dtype=np.bool_)
        chosen[users] = True
        return _learn(dataset, chosen[log.user_ids - 1])

    notes += _no_impressions(dataset)
    return Split("user-split", learn(drawn[:train]), validation, test, lambda: learn(drawn[:held]), notes=tuple(notes))


def _halves(dataset: Dataset, users: Rows) -> tuple[SequenceBatch, int]:
    """The first half of each user's (0-based) item events as history, the second as targets."""
    log = dataset.interactions
    real = np.flatnonzero(log.item_ids > 0)
    counts = np.bincount(log.user_ids[real], minlength=log.num_users + 1)[1:]
    begins = np.cumsum(counts) - counts
    able = users[counts[users] >= 2]
    middle = real[begins[able] + counts[able] // 2]
    border = log.offsets[1:].copy()
    border[able] = middle
    chosen = np.zeros(log.num_users, dtype=np.bool_)
    chosen[able] = True
    owner = log.user_ids - 1
    rows = np.flatnonzero(is_target(log) & chosen[owner] & (np.arange(len(log)) >= border[owner]))
    asked, place = np.unique(owner[rows], return_inverse=True)
    requests = build_requests(
        dataset,
        log.offsets[asked],
        border[asked],
        targets=target_sets(log, rows, place.astype(np.int64), count=len(asked)),
        times=None if log.timestamps is None else log.timestamps[border[asked]],
        user_ids=None if dataset.anonymous else (asked + 1).astype(np.int32),
        exclude_seen=not dataset.repeats,
    )
    return requests, len(users) - len(asked)


def _published(dataset: Dataset, seed: int) -> Split:
    log = dataset.interactions
    if "split" not in log.columns.columns:
        raise UserError(f"{dataset.name}: protocol published needs a column split (train, valid, test)")
    train, valid, test = (enum_codes(log.columns["split"]) == code for code in (1, 2, 3))
    if valid.any():
        learnt, validation = train, _marked(dataset, valid)
    elif dataset.anonymous:
        held = _last_sessions(log, train)
        learnt, validation = train & ~held, _marked(dataset, train & held)
    else:
        rows, counts, ends = _targets_by_user(log, train)
        asked = np.flatnonzero(counts >= 2)
        targets = rows[ends[asked] - 1]
        learnt, validation = train & _rows_before(log, asked, targets), _next_events(dataset, targets)
    requests = _marked(dataset, test)
    missed = int((test & is_target(log)).sum()) - requests.num_requests
    return Split(
        "published",
        _learn(dataset, learnt),
        validation,
        requests,
        lambda: _learn(dataset, train | valid),
        notes=(
            *_note(missed, "test: {} marked events without an earlier item are history only"),
            *_unreachable(dataset, requests),
            *_no_impressions(dataset),
        ),
    )


def _marked(dataset: Dataset, marked: Mask) -> SequenceBatch:
    log = dataset.interactions
    rows = np.flatnonzero(marked & is_target(log))
    return _next_events(dataset, rows[earlier_items(log, log.offsets[log.user_ids[rows] - 1], rows) > 0])


def _last_sessions(log: Interactions, train: Mask) -> Mask:
    """The events of the last tenth of the training sessions, by start, else as they appear in the file."""
    sessions = np.unique(log.user_ids[train])
    begins = np.arange(len(sessions)) if log.timestamps is None else log.timestamps[log.offsets[sessions - 1]]
    held = np.zeros(log.num_users + 1, dtype=np.bool_)
    held[sessions[begins >= time_cut(begins, 0.9)]] = True
    return held[log.user_ids]


def _impressions(dataset: Dataset, seed: int) -> Split:
    shown = dataset.impressions
    if shown is None or shown.timestamps is None:
        raise UserError(f"{dataset.name}: protocol impressions needs a file of dated impressions")
    if not shown.labels:
        raise UserError(f"{dataset.name}: name the label columns: [impressions] labels = [...] in dataset.toml")
    # Rows shown together stay together: the request has the time of its first row.
    times = np.full(int(shown.request_ids.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(times, shown.request_ids, shown.timestamps)
    first, second = _two_cuts(times)
    log = dataset.interactions
    dated = log.timestamps is not None
    notes = [] if dated or not len(log) else ["interactions are undated, so they are not learnt from"]

    def learn(cut: int) -> Dataset:
        events = np.zeros(len(log), np.bool_) if log.timestamps is None else log.timestamps < cut
        learnt = (times < cut)[shown.request_ids]
        return replace(dataset.with_interactions(log.select(events)), impressions=shown.select(learnt))

    test = impression_requests(dataset, times, times >= second)
    if not _both_labels(test, shown.labels[0]):
        notes.append(f"test: no user (or request of an unknown user) has both values of {shown.labels[0]}: no GAUC")
    return Split(
        "impressions",
        learn(first),
        impression_requests(dataset, times, (times >= first) & (times < second)),
        test,
        lambda: learn(second),
        notes=tuple(notes),
    )


def _both_labels(requests: SequenceBatch, label: str) -> bool:
    """Whether any user, or request of an unknown user, has candidates with and without the label (NaN: not known)."""
    labels = requests.candidate_labels[label]
    request = labels.row_ids().numpy()
    groups = -1 - request
    if requests.user_ids is not None:
        users = requests.user_ids.numpy()[request]
        groups = np.where(users > 0, users, groups)
    values = labels.values.numpy()
    return bool(np.intersect1d(groups[values > 0], groups[values <= 0]).size)


def _learn(dataset: Dataset, rows: Mask, *, before: int | None = None) -> Dataset:
    """The data set with the given events, and impressions before a time (none without one)."""
    shown, earlier = dataset.impressions, None
    if shown is not None and shown.timestamps is not None and before is not None:
        earlier = shown.select(shown.timestamps < before)
    return replace(dataset.with_interactions(dataset.interactions.select(rows)), impressions=earlier)


def _no_impressions(dataset: Dataset) -> list[str]:
    return [] if dataset.impressions is None else ["impressions are not learnt from: they may show targets"]


def _unreachable(dataset: Dataset, requests: SequenceBatch) -> list[str]:
    """A note of targets that the rule of seen items forbids."""
    if dataset.repeats or requests.targets is None or not requests.num_requests:
        return []
    seen = requests.items.values == requests.targets.values[requests.items.row_ids()]
    count = len(np.unique(requests.items.row_ids()[seen].numpy()))
    return _note(count, "test: {} targets were seen before, and repeats = false forbids them")


def _note(count: int, words: str) -> list[str]:
    return [words.format(count)] if count else []


PROTOCOLS: dict[str, Callable[[Dataset, int], Split]] = {
    "time": _time,
    "leave-one-out": _leave_one_out,
    "session": _session,
    "user-split": _user_split,
    "published": _published,
    "impressions": _impressions,
}
