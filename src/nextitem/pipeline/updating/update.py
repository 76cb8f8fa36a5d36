"""Update of a run: learn new events into a new version, judge it, and use it if it is not worse."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.errors import UserError
from nextitem.data.last_time import last_time
from nextitem.data.protocols.cuts import time_cut
from nextitem.data.protocols.training_part import training_part
from nextitem.data.requests import Rows
from nextitem.evaluation.evaluate import ACCURACY
from nextitem.pipeline.bundle import load_recipe
from nextitem.pipeline.evaluate import split_for
from nextitem.pipeline.options import FitOptions, Log, silent
from nextitem.pipeline.runs import load_run
from nextitem.pipeline.train import IN_MEMORY
from nextitem.pipeline.updating.deletions import clean_version, deletions_locked, read_deletions
from nextitem.pipeline.updating.judge import Judgement, from_lists, judge, popular_items, target_rows, user_figures
from nextitem.pipeline.updating.learn import learned_before
from nextitem.pipeline.updating.merge import Merger, Tables, frame_tables, merge, read_tables
from nextitem.pipeline.updating.new_version import (
    NewVersion,
    Period,
    UpdateConfig,
    UpdateTask,
    learn_version,
    learn_window,
    write_version,
)
from nextitem.pipeline.updating.version_store import adopt, next_name, one_update, prune, read_card, remember, staging
from nextitem.pipeline.versions import current_version, version_folder

VALIDATION_SHARE = 0.1  # newest events before the window, on which a model that is trained from scratch is validated
WINDOW_SHARE = 0.2  # newest share of the new events, on which both versions are judged unless a window is given
EARLIER_SHARE = 0.1  # newest share of the former events, if the version in use has learned all of them


class TooFewEventsError(UserError):
    """There are too few new events to learn from; later there may be enough."""


@dataclass(frozen=True)
class UpdateOutcome:
    """What an update did.

    Attributes:
        card: the facts as JSON values: events, new items, figures, decision.
        judgement: the figures; None if nothing was trained (dry run).

    """

    card: dict[str, Any]
    judgement: Judgement | None

    @property
    def is_promoted(self) -> bool:
        """Whether the new version is in use."""
        return self.judgement is not None and self.judgement.is_promoted


def update(
    run: str | Path,
    *,
    events: str | Path | pl.DataFrame | None = None,
    items: str | Path | None = None,
    since: datetime | None = None,
    window: float | None = None,
    settings: UpdateConfig | None = None,
    dry_run: bool = False,
    source: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: bool = True,
    log: Log = silent,
) -> UpdateOutcome:
    """Train the version of a run that is in use on from new events, and use the new version if it is not worse.

    Args:
        run: folder of the run.
        events: folder of new events in the layout of a data set, with the items that are new in `items`; or a frame
            with the columns user_id, item_id, timestamp and, if available, action and event_id. None: events that were
            added to the data of the run.
        items: folder of a data set whose items table has the items that are new; None: that of `events`, if it has one.
        since: new events from this time on; None: all that the version in use has not learned.
        window: length of the newest period, on which both versions are judged, in seconds; None: the newest fifth of
            the new events.
        settings: settings; None: the defaults.
        dry_run: only read and count; nothing is trained or written.
        source: JSON values that are stored in the card, such as how far a store was read.
        device: where to compute: auto, cpu or cuda.
        progress: show progress: a bar on a terminal, otherwise one line for each epoch.
        log: function that is called with each other message and note.

    Returns:
        The facts, figures and decision, which RUN/updates.jsonl and the folder of the version contain too.

    Raises:
        UserError: the run cannot be updated, the events have a mistake, or another update of the run is going on.

    Examples:
        >>> outcome = ni.update("runs/sasrec", events="yesterday/")
        >>> outcome.card["decision"]

    """
    root, settings = Path(run), settings or UpdateConfig()
    if not root.is_dir():
        raise UserError(f"{root}: no such run; make one with: nextitem train")
    if settings.metric.partition("@")[0] not in ACCURACY or not settings.metric.partition("@")[2].isdigit():
        raise UserError(f"metric {settings.metric!r}: write one of {', '.join(ACCURACY)}, with a length: ndcg@10")
    load_recipe(root)
    with one_update(root):
        name = current_version(root)
        folder = version_folder(root, name)
        task = UpdateTask(
            root,
            load_run(folder),
            name,
            read_card(root, name),
            settings,
            FitOptions(root, device=device, progress=progress, log=log),
        )
        deletions = read_deletions(root)
        base, new = (
            replace(tables, frames=deletions.without_deleted(tables.frames)) for tables in _read(task, events, items)
        )
        return _update(task, base, new, since=since, window=window, dry_run=dry_run, source=source or {})


def _update(
    task: UpdateTask,
    base: Tables,
    new: Tables,
    *,
    since: datetime | None,
    window: float | None,
    dry_run: bool,
    source: Mapping[str, Any],
) -> UpdateOutcome:
    log, start_time = task.options.log, time.perf_counter()
    since_ms = None if since is None else int(since.timestamp() * 1000)
    merged = merge(base, new, since_ms=since_ms)
    learned_ms = _learned_before(task)
    since_ms = learned_ms if since_ms is None else since_ms
    times = merged.times_ms().to_numpy()
    valid_from, test_from = _cuts(times, since_ms=since_ms, learned_ms=learned_ms, window=window)
    card: dict[str, Any] = {
        "version": next_name(task.root),
        "previous": task.former_name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "events": {"new": merged.num_new, "known": merged.num_known, "unknown_items": merged.num_unknown},
        "since": _iso(since_ms),
        "window_from": _iso(test_from),
        "source": dict(source),
    }
    log(
        f"{merged.num_new:,} new events, {merged.num_known:,} that the run has already, {merged.num_unknown:,} of "
        f"unknown items; new since {_iso(since_ms)}, judged from {_iso(test_from)}"
    )
    if dry_run:
        return UpdateOutcome(card | {"decision": "dry run", "reason": "nothing was trained"}, None)
    with staging(task.root) as folder:
        period = Period(since_ms, valid_from, test_from)
        version = learn_version(task, merged, period, folder=folder, name=str(card["version"]))
        rows = _judged_rows(task, version, test_from, merged)
        judgement = _judged(task, version, test_from, rows, _former_skill(task, learned_ms))
        card |= {
            "decision": "promoted" if judgement.is_promoted else "not promoted",
            "reason": judgement.reason,
            "way": version.way,
            "new_items": version.model.num_items - task.former.model.num_items,
            **judgement.to_json(),
            "first_items": version.num_first_items,
            "learned_before": test_from,
        }
        if judgement.is_promoted and task.settings.refit and learn_window(task, version, period):
            card["learned_before"] = int(merged.times_ms()[-1]) + 1
        card["seconds"] = round(time.perf_counter() - start_time, 1)
        if judgement.is_promoted:
            write_version(task, version, card, folder=folder)
            with deletions_locked(task.root):
                clean_version(folder, read_deletions(task.root))
                adopt(task.root, folder, str(card["version"]))
        remember(task.root, card)
    pruned = prune(task.root, keep=task.settings.keep) if judgement.is_promoted else []
    log(f"version {card['version']} {card['decision']}: {judgement.reason} ({judgement.figures})")
    if pruned:
        log(f"deleted versions {', '.join(pruned)}")
    return UpdateOutcome(card, judgement)


def _read(
    task: UpdateTask, events: str | Path | pl.DataFrame | None, items: str | Path | None
) -> tuple[Tables, Tables]:
    """Return the tables of the version in use, and those of the new events and items."""
    path = task.former.recipe.data.path
    if path.startswith(IN_MEMORY):
        raise UserError(
            f"{task.root} was trained on a data set in memory, which cannot be merged with new events; train it on a "
            "folder: nextitem train --data DIR"
        )
    base = read_tables(path)
    new = Tables({"interactions": base.frames["interactions"].head(0)}, base.settings, base.where)
    if isinstance(events, pl.DataFrame):
        new = frame_tables(events, where="events") if events.height else new
    elif events is not None:
        new = read_tables(events, like=base.settings)
    elif (first := load_recipe(task.root).data.path) != path:
        new = read_tables(first)
    if items is None:
        return base, new
    others = read_tables(items, like=base.settings, needs_events=False)
    if "items" not in others.frames:
        raise UserError(f"{items}: has no items; add items.parquet or items.csv")
    return base, Tables({**new.frames, "items": others.frames["items"]}, new.settings, new.where)


def _learned_before(task: UpdateTask) -> int:
    """Return the time, in milliseconds, from which on the version in use has learned no event."""
    if "learned_before" in task.card:
        return int(task.card["learned_before"])
    recipe = task.former.recipe
    split = split_for(task.former.dataset, recipe.data.protocol, models=[task.former.name], seed=recipe.seed)
    return learned_before(recipe, split)


def _cuts(times: NDArray[np.int64], *, since_ms: int, learned_ms: int, window: float | None) -> tuple[int, int]:
    """Return the begins of the periods of validation and of the judgement, in milliseconds.

    The judgement begins after whatever the version in use has learned: otherwise it would have an advantage.

    Args:
        times: times of all events [T], ascending.
        since_ms: begin of the new events.
        learned_ms: time from which on the version in use has learned no event.
        window: length of the period of the judgement in seconds; None: by WINDOW_SHARE.

    """
    new = times[times >= since_ms]
    if not len(new) or new[0] == new[-1]:
        raise TooFewEventsError(
            f"there are {len(new)} events since {_iso(since_ms)}, too few to learn from; wait, or set --since"
        )
    test_from = time_cut(new, 1 - WINDOW_SHARE) if window is None else last_time(times) + 1 - round(window * 1000)
    test_from = max(test_from, learned_ms)
    if not new[0] < test_from <= new[-1]:
        raise TooFewEventsError(
            f"of {len(new):,} events since {_iso(since_ms)}, none is left to learn or to judge by, as those from "
            f"{_iso(test_from)} on are held out; set another --window or --since"
        )
    return time_cut(times[times < test_from], 1 - VALIDATION_SHARE), test_from


def _former_skill(task: UpdateTask, learned_ms: int) -> float | None:
    """Return by how much the version in use exceeds the most popular items on events of its own data.

    They are those that it has not learned. If there are too few, it is the newest tenth of all, on which its figure is
    higher. None: there are too few of these, too.
    """
    dataset, settings = task.former.dataset, task.settings
    log, limit = dataset.interactions, settings.max_requests
    assert log.timestamps is not None
    start = learned_ms
    rows = target_rows(dataset, start_ms=start, limit=limit)
    if len(np.unique(log.user_ids[rows])) < settings.min_users:
        start = int(np.quantile(log.timestamps, 1 - EARLIER_SHARE, method="higher"))
        rows = target_rows(dataset, start_ms=start, limit=limit)
    if len(np.unique(log.user_ids[rows])) < settings.min_users:
        task.options.log("note: the data of the run have too few users to tell whether the new events are plausible")
        return None
    popular = popular_items(training_part(dataset, log.timestamps < start))
    former, without_knowledge = (
        user_figures(model, dataset, rows, metric=settings.metric) for model in (task.former.model, popular)
    )
    return float(former.mean() - without_knowledge.mean())


def _judged_rows(task: UpdateTask, version: NewVersion, test_from: int, merged: Merger) -> Rows:
    """Return the events on which both versions are judged: those that no list led to, if there are enough."""
    settings, dataset = task.settings, version.dataset
    listed = from_lists(dataset, merged.tables.frames["interactions"])
    rows = target_rows(dataset, start_ms=test_from, limit=settings.max_requests, left_out=listed)
    if not listed.any() or len(np.unique(dataset.interactions.user_ids[rows])) >= settings.min_users:
        return rows
    task.options.log("note: judged on events of recommended lists, too, as there are too few others")
    return target_rows(dataset, start_ms=test_from, limit=settings.max_requests)


def _judged(task: UpdateTask, version: NewVersion, test_from: int, rows: Rows, former_skill: float | None) -> Judgement:
    """Compare the new version with the one in use on the newest events."""
    settings, dataset = task.settings, version.dataset
    times = dataset.interactions.timestamps
    assert times is not None
    models = (task.former.model, version.model, popular_items(training_part(dataset, times < test_from)))
    former, new, popular = (user_figures(model, dataset, rows, metric=settings.metric) for model in models)
    return judge(
        former,
        new,
        popular=popular,
        num_requests=len(rows),
        metric=settings.metric,
        former_skill=former_skill,
        margin=settings.margin,
        skill_share=settings.skill_share,
        min_users=settings.min_users,
    )


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
