"""Updates beside a server: from the events of its store, in a process of their own, one at a time."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from nextitem.core.errors import UserError
from nextitem.pipeline.updating.update import TooFewEventsError, UpdateOutcome, update
from nextitem.pipeline.updating.version_store import history, read_card
from nextitem.pipeline.versions import current_version
from nextitem.serving.stores import EventStore, StoreUnavailable, open_store

log = logging.getLogger("nextitem.serving")
PAGE = 10_000  # events that are read from a store at once
SCHEMA = {
    "event_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "action": pl.String,
    "timestamp": pl.Int64,
    "request_id": pl.String,
}
NICENESS = 10  # by which the process of an update gives way to the server


def stored_events(store: EventStore, cursor: int = 0) -> tuple[pl.DataFrame, int]:
    """Return all events of a store after a cursor, as a table of interactions, and the cursor after them.

    Raises StoreUnavailable if the store cannot be reached.
    """
    pages = []
    while True:
        page = store.events_after(cursor, limit=PAGE)
        if not page.events:
            break
        pages.append(pl.DataFrame(page.events, schema=SCHEMA, orient="row"))
        cursor = page.cursor
    frame = pl.concat([pl.DataFrame(schema=SCHEMA), *pages])
    return frame.with_columns(pl.col("timestamp").cast(pl.Datetime("ms"))), cursor


def update_from_store(
    run: str | Path,
    url: str,
    *,
    namespace: str = "default",
    items: str | Path | None = None,
    since: datetime | None = None,
    **options: Any,
) -> UpdateOutcome:
    """Update a run from the events of a store. What the version in use has read already is not read again.

    If there are too few new events, nothing is done, and the outcome says so.

    Args:
        run: folder of the run.
        url: URL of the store.
        namespace: name of the tenant.
        items: dataset folder whose items table has the items that are new; None: events of unknown items are skipped.
        since: as in `update`; all events of the store are read then.
        options: other arguments of `update`.

    Raises:
        UserError: as `update`, or the store cannot be reached.

    """
    with open_store(url, namespace=namespace) as store:
        place = {"store": store.place, "namespace": namespace}
        source = read_card(Path(run), current_version(Path(run))).get("source", {})
        is_same = since is None and "cursor" in source and all(source[name] == value for name, value in place.items())
        try:
            frame, cursor = stored_events(store, int(source["cursor"]) if is_same else 0)
        except StoreUnavailable as error:
            raise UserError(f"the store cannot be read: {error}; start it, or correct its URL") from None
    if not frame.height:
        return _waiting(f"{place['store']} has no new events")
    read = {**place, "cursor": cursor} if since is None else place
    try:
        return update(run, events=frame, items=items, since=since, source=read, **options)
    except TooFewEventsError as error:
        return _waiting(str(error))


def _waiting(reason: str) -> UpdateOutcome:
    return UpdateOutcome({"decision": "waiting", "reason": reason}, None)


@dataclass(frozen=True)
class Updates:
    """What a server updates.

    Attributes:
        runs: folders of the runs, by the names of their models.
        every_seconds: time from the begin of a round of updates to the next.
        options: further options of `nextitem update`.

    """

    runs: Mapping[str, Path]
    every_seconds: float
    options: Sequence[str] = ()

    def updater(self, store_url: str, *, namespace: str) -> Updater:
        """Return the updater from the events of a store."""
        return Updater(
            self.runs, store_url, every_seconds=self.every_seconds, namespace=namespace, options=self.options
        )


class Updater:
    """Runs `nextitem update` for the runs of a server, in turn, every so often; the server goes on meanwhile.

    The server takes a new version into use as soon as RUN/current names it. An update that fails changes nothing; the
    next one begins from the same version.
    """

    def __init__(
        self,
        runs: Mapping[str, Path],
        store_url: str,
        *,
        every_seconds: float,
        namespace: str = "default",
        options: Sequence[str] = (),
        command: Sequence[str] = (sys.executable, "-m", "nextitem"),
    ) -> None:
        """Prepare updates; nothing runs before `start`.

        Args:
            runs: folders of the runs, by the names of their models.
            store_url: URL of the store.
            every_seconds: time from the begin of a round of updates to the next; a longer round delays it.
            namespace: name of the tenant.
            options: further options of `nextitem update`.
            command: the command line of the program.

        """
        self.runs, self.every_seconds = dict(runs), every_seconds
        nice = ("nice", "-n", str(NICENESS)) if shutil.which("nice") else ()
        self._prefix = (*nice, *command, "update")
        self._suffix = ("--store", store_url, "--namespace", namespace, *options)
        self._figures: dict[str, dict[str, float]] = {name: {"update_failures": 0.0} for name in self.runs}
        self._stopping = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="updater", daemon=True)

    def start(self) -> None:
        """Start the first round of updates after `every_seconds`."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End the update that is going on, which leaves the version in use as it is, and start no more."""
        self._stopping.set()
        with self._lock:
            if self._process is not None:
                self._process.send_signal(signal.SIGTERM)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def figures(self) -> dict[str, dict[str, float]]:
        """Return the figures of each model for /metrics, as far as there are any.

        update_time_seconds: when the last update ended, seconds since 1970; update_promoted: whether its version is
        used, 1 or 0; update_gain: difference of the judged figure; update_seconds: how long it took; update_failures:
        number of updates in a row that ended with an error.
        """
        return {name: dict(figures) for name, figures in self._figures.items()}

    def _run(self) -> None:
        wait = self.every_seconds
        while not self._stopping.wait(wait):
            started = time.monotonic()
            for name, run in self.runs.items():
                if not self._stopping.is_set():
                    self._update(name, run)
            wait = max(0.0, self.every_seconds - (time.monotonic() - started))

    def _update(self, name: str, run: Path) -> None:
        num_updates, started = len(history(run)), time.time()
        threads = str(max(1, (os.cpu_count() or 2) // 2))
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        with self._lock:
            if self._stopping.is_set():
                return
            self._process = subprocess.Popen(
                [*self._prefix, str(run), *self._suffix],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment,
            )
        errors = self._process.communicate()[1].strip().splitlines()
        code = self._process.returncode
        with self._lock:
            self._process = None
        if self._stopping.is_set():
            return
        figures = self._figures[name] | {"update_time_seconds": time.time(), "update_seconds": time.time() - started}
        cards = history(run)[num_updates:]
        if code:
            self._figures[name] = figures | {"update_failures": self._figures[name]["update_failures"] + 1}
            log.warning("update of %s failed: %s", name, errors[-1] if errors else f"exit code {code}")
            return
        if not cards:
            self._figures[name] = figures | {"update_failures": 0.0}
            log.info("update of %s: too few new events", name)
            return
        card = cards[-1]
        gain = card.get("difference")
        self._figures[name] = figures | {
            "update_failures": 0.0,
            "update_promoted": float(card["decision"] == "promoted"),
            "update_gain": math.nan if gain is None else float(gain),
        }
        log.info("update of %s: version %s %s: %s", name, card["version"], card["decision"], card["reason"])
