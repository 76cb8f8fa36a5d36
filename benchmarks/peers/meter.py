"""What every measured trainer shares: arguments, the meter of batches, the examination after each epoch.

It runs in the interpreter of a peer: standard library and numpy only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, LENGTH = 64, 50  # of vectors; of the histories that are read

Answers = Callable[[], dict[str, Any]]  # `lists` [B, 10], or arrays `users`, `user_vectors`, `items`, `item_vectors`


class Enough(Exception):
    """The measurement has what it needs; raised inside a training loop to leave it."""


def arguments(description: str, *, what: list[str] | None) -> argparse.ArgumentParser:
    """The options of a measured process; `what` names the variants that it offers, None: any."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--what", required=True, choices=what)
    for name, default in (("threads", 2), ("seed", 0), ("warmup", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--max-batches", type=int, help="time so many batches and extrapolate; default: a whole epoch")
    parser.add_argument("--minutes", type=float, help="train for so long, with examinations")
    parser.add_argument("--every", type=float, default=60.0, help="seconds of training between two, within an epoch")
    parser.add_argument("--answers", type=Path, help="with --minutes: the file (.npz) that an examination reads")
    return parser


def peer_arguments(description: str, *, what: list[str], learning_rate: float = 1e-3) -> argparse.ArgumentParser:
    """`arguments`, the log, and the settings that a peer can be given."""
    parser = arguments(description, what=what)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    return parser


def watch_for(chosen: argparse.Namespace) -> Speed | Quality:
    """The watch that the arguments ask for."""
    return Speed(chosen) if chosen.minutes is None else Quality(chosen)


class Speed:
    """Seconds of one epoch: after warm-up batches, one epoch's worth of batches or `max_batches` of them.

    An event is a real target that is learnt from. A shorter measurement is extrapolated by batches, or by events
    where the number of batches is not known beforehand.
    """

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.events = self.done = self.events_done = 0
        self.batches: int | None = None
        self.began = self.ended = 0.0
        self.cpu_began = self.cpu_ended = 0.0

    def __deepcopy__(self, memo: Any) -> Speed:
        return self  # a trainer that copies its callbacks still reports here

    def begin(self, *, events: int, batches: int | None, answers: Answers) -> None:
        """Training begins; an epoch has so many events and batches (None: not known)."""
        self.events, self.batches = events, batches

    def batch(self, events: int) -> None:
        """One batch of so many events is done."""
        now = time.perf_counter()
        self.done += 1
        if self.done == self.chosen.warmup:
            self.began, self.cpu_began = now, time.process_time()
        if self.done <= self.chosen.warmup:
            return
        self.events_done += events
        self.ended, self.cpu_ended = now, time.process_time()
        wanted = self.chosen.max_batches or self.batches
        if self.batches is not None and wanted is not None:
            wanted = min(wanted, self.batches)
        if self.timed == wanted or (wanted is None and self.events_done >= self.events):
            raise Enough

    @property
    def timed(self) -> int:
        """Batches timed so far."""
        return self.done - self.chosen.warmup

    def epoch(self) -> float:
        """An epoch is done."""
        return 0.0

    def report(self, **told: Any) -> None:
        """Prints the JSON line."""
        share = self.timed / self.batches if self.batches is not None else self.events_done / self.events
        seconds = (self.ended - self.began) / share
        line = {
            "what": self.chosen.what,
            "seconds": round(seconds, 3),
            "cpu_seconds": round((self.cpu_ended - self.cpu_began) / share, 3),  # says more where the machine is shared
            "events": self.events,
            "events_per_second": round(self.events / seconds, 1),
            "batches_timed": self.timed,
            "extrapolated": share < 1,
            "peak_mb": round(peak_mb()),
            "threads": self.chosen.threads,
        }
        tell({**line, **told})


class Quality:
    """Training seconds at each examination: the clock stands still while answers are made and judged.

    An examination follows each epoch, and within an epoch every so many seconds of training: the answers are written
    to a file, a JSON line tells the judge so, and one line is awaited on standard input: the value that was found.
    """

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.seconds = 0.0
        self.events = self.done = 0
        self.resumed = 0.0
        self.answers: Answers = dict

    def __deepcopy__(self, memo: Any) -> Quality:
        return self

    def begin(self, *, events: int, batches: int | None, answers: Answers) -> None:
        """Starts the clock; `answers` leaves the model in training mode."""
        self.events, self.answers = events, answers
        self.resumed = time.perf_counter()

    def batch(self, events: int) -> None:
        """One batch is done."""
        self.done += events
        since = time.perf_counter() - self.resumed
        over = self.seconds + since > 60 * self.chosen.minutes
        if over or since > self.chosen.every:
            self.epoch()
        if over:
            raise Enough

    def epoch(self) -> float:
        """Has the model examined; returns the judge's value."""
        self.seconds += time.perf_counter() - self.resumed
        np.savez(self.chosen.answers, **self.answers())
        tell({"epoch": round(self.done / self.events, 2), "seconds": round(self.seconds, 2)})
        value = float(sys.stdin.readline())
        self.resumed = time.perf_counter()
        return value

    def report(self, **told: Any) -> None:
        """Prints the last JSON line."""
        line = {"what": self.chosen.what, "epochs": round(self.done / self.events, 2), "peak_mb": round(peak_mb())}
        tell({**line, "threads": self.chosen.threads, **told})


class WatchedLoader:
    """A data loader that tells the watch of each batch when the next one is asked for, and of each epoch's end."""

    def __init__(self, loader: Any, watch: Speed | Quality) -> None:
        self._loader, self._watch = loader, watch

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield batch
            self._watch.batch(len(batch))
        self._watch.epoch()


def peak_mb() -> float:
    """Largest resident memory of this process in MB, libraries included.

    Where Linux tells the mark of this program alone: getrusage begins with that of the process that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        marks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(marks[0]) / 1024
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def silence() -> None:
    """From here on, what libraries print goes to standard error; standard output is for `tell` alone."""
    global _told
    _told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)


def tell(line: dict[str, Any]) -> None:
    """Writes one JSON line to the process that measures."""
    print(json.dumps(line), file=_told, flush=True)


_told = sys.stdout
