"""Options, clock and examination of every measured trainer.

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


def trainer_parser(description: str, *, what: list[str] | None) -> argparse.ArgumentParser:
    """Return the options of a measured process; `what` names the variants that it offers, None: any."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--what", required=True, choices=what)
    for name, default in (("threads", 2), ("seed", 0), ("warmup", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--max-batches", type=int, help="number of batches to time, extrapolated to an epoch; default: a whole epoch"
    )
    parser.add_argument("--minutes", type=float, help="train for so long, with examinations")
    parser.add_argument("--every", type=float, default=60.0, help="seconds of training between two, within an epoch")
    parser.add_argument("--answers", type=Path, help="with --minutes: the file (.npz) that an examination reads")
    return parser


def peer_parser(description: str, *, what: list[str], learning_rate: float = 1e-3) -> argparse.ArgumentParser:
    """Return `trainer_parser` with the log and the settings of a peer."""
    parser = trainer_parser(description, what=what)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    return parser


def watch_for(arguments: argparse.Namespace) -> Speed | Quality:
    """Return the clock of the measurement that the arguments name: speed, or quality over time."""
    return Speed(arguments) if arguments.minutes is None else Quality(arguments)


class Speed:
    """Seconds of one epoch: after warm-up batches, one epoch's worth of batches or `max_batches` of them.

    An event is a real target that a trainer learns from. A shorter measurement is extrapolated by batches,
    or by events if the number of batches is not known beforehand.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.events = self.num_batches = self.num_timed_events = 0
        self.batches: int | None = None
        self.began = self.ended = 0.0
        self.cpu_began = self.cpu_ended = 0.0

    def __deepcopy__(self, memo: Any) -> Speed:
        return self  # a trainer that copies its callbacks still reports here

    def begin(self, *, events: int, batches: int | None, answers: Answers) -> None:
        """Begin training; `events` and `batches` are those of an epoch (None: unknown)."""
        self.events, self.batches = events, batches

    def batch(self, events: int) -> None:
        """Count a batch of `events` events; end the measurement if it was the last one."""
        now = time.perf_counter()
        self.num_batches += 1
        if self.num_batches == self.arguments.warmup:
            self.began, self.cpu_began = now, time.process_time()
        if self.num_batches <= self.arguments.warmup:
            return
        self.num_timed_events += events
        self.ended, self.cpu_ended = now, time.process_time()
        limit = self.arguments.max_batches or self.batches
        if self.batches is not None and limit is not None:
            limit = min(limit, self.batches)
        if self.num_timed_batches == limit or (limit is None and self.num_timed_events >= self.events):
            raise Enough

    @property
    def num_timed_batches(self) -> int:
        """The number of batches timed so far."""
        warmup: int = self.arguments.warmup
        return self.num_batches - warmup

    def epoch(self) -> float:
        """End an epoch; this measurement examines nothing."""
        return 0.0

    def report(self, **more: Any) -> None:
        """Print the JSON line."""
        share = (
            self.num_timed_batches / self.batches if self.batches is not None else self.num_timed_events / self.events
        )
        seconds = (self.ended - self.began) / share
        line = {
            "what": self.arguments.what,
            "seconds": round(seconds, 3),
            "cpu_seconds": round((self.cpu_ended - self.cpu_began) / share, 3),  # steadier if the machine is shared
            "events": self.events,
            "events_per_second": round(self.events / seconds, 1),
            "batches_timed": self.num_timed_batches,
            "extrapolated": share < 1,
            "peak_mb": round(peak_mb()),
            "threads": self.arguments.threads,
        }
        write_line({**line, **more})


class Quality:
    """Training seconds at each examination: the clock is stopped while answers are computed and evaluated.

    An examination follows each epoch, and within an epoch a fixed number of training seconds: the answers are written
    to a file, a JSON line announces it, and the judge writes the value as one line on standard input.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.seconds = 0.0
        self.events = self.num_events = 0
        self.resumed = 0.0
        self.answers: Answers = dict

    def __deepcopy__(self, memo: Any) -> Quality:
        return self

    def begin(self, *, events: int, batches: int | None, answers: Answers) -> None:
        """Start the clock; `answers` leaves the model in training mode."""
        self.events, self.answers = events, answers
        self.resumed = time.perf_counter()

    def batch(self, events: int) -> None:
        """Count a batch; examine the model if it is time."""
        self.num_events += events
        since = time.perf_counter() - self.resumed
        over = self.seconds + since > 60 * self.arguments.minutes
        if over or since > self.arguments.every:
            self.epoch()
        if over:
            raise Enough

    def epoch(self) -> float:
        """Write the model's answers and return the judge's value of them."""
        self.seconds += time.perf_counter() - self.resumed
        np.savez(self.arguments.answers, **self.answers())
        write_line({"epoch": round(self.num_events / self.events, 2), "seconds": round(self.seconds, 2)})
        value = float(sys.stdin.readline())
        self.resumed = time.perf_counter()
        return value

    def report(self, **more: Any) -> None:
        """Print the last JSON line."""
        line = {
            "what": self.arguments.what,
            "epochs": round(self.num_events / self.events, 2),
            "peak_mb": round(peak_mb()),
        }
        write_line({**line, "threads": self.arguments.threads, **more})


class WatchedLoader:
    """A data loader that reports each batch to the watch before it returns the next, and each epoch's end."""

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


def memory_mb(field: str) -> float:
    """Return a field of this process's status on Linux in MiB: VmRSS (resident now) or VmHWM (its peak)."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def peak_mb() -> float:
    """Return the largest resident memory of this process in MiB, libraries included.

    Linux reports the peak of this program alone; that of getrusage includes the process that started it.
    """
    if sys.platform == "linux":
        return memory_mb("VmHWM")
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def silence() -> None:
    """Send what libraries print to standard error from here on; standard output is for `write_line` alone."""
    global _lines
    _lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)


def write_line(line: dict[str, Any]) -> None:
    """Write one JSON line to the process that measures."""
    print(json.dumps(line), file=_lines, flush=True)


_lines = sys.stdout
