"""Progress of training: a bar on a terminal, a line an epoch elsewhere, nothing when asked for silence."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from torch import Tensor

REFRESH = 0.1  # seconds between two updates of the bar: reading a loss waits for the device


def batches_a_second(rate: float) -> str:
    """A rate as people write it: three figures below a thousand, whole numbers above."""
    return f"{rate:.3g} batches/s" if rate < 999.5 else f"{rate:,.0f} batches/s"


class Progress(Protocol):
    """What training tells of itself."""

    def start(self, done: int, total: int, *, per_epoch: int) -> None:
        """Training begins, `done` of `total` batches being behind it."""

    def step(self, epoch: int, loss: Tensor) -> None:
        """One batch is done; epochs count from 0."""

    def epoch(self, entry: dict[str, float], *, best_epoch: int) -> None:
        """One epoch is done."""

    def stop(self) -> None:
        """Training has ended."""


class Silent:
    """Tells nothing."""

    def start(self, done: int, total: int, *, per_epoch: int) -> None:
        """Nothing."""

    def step(self, epoch: int, loss: Tensor) -> None:
        """Nothing."""

    def epoch(self, entry: dict[str, float], *, best_epoch: int) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class Lines(Silent):
    """One line an epoch on stderr, for logs."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.done = self.steps = self.total = self.epochs = 0
        self.began = 0.0

    def start(self, done: int, total: int, *, per_epoch: int) -> None:
        """Starts the clock."""
        self.done, self.total, self.epochs, self.began = done, total, total // per_epoch, time.monotonic()

    def step(self, epoch: int, loss: Tensor) -> None:
        """Counts."""
        self.steps += 1

    def epoch(self, entry: dict[str, float], *, best_epoch: int) -> None:
        """Prints loss, validation, rate and the time that all epochs would still take."""
        validation = (
            f" validation {entry['validation']:.4f} (best: epoch {best_epoch})" if "validation" in entry else ""
        )
        rate = max(1, self.steps) / max(1e-9, time.monotonic() - self.began)
        left = round((self.total - self.done - self.steps) / rate)
        print(
            f"{self.label}: epoch {int(entry['epoch'])}/{self.epochs} loss {entry['loss']:.4f}{validation}, "
            f"{batches_a_second(rate)}, {left // 60}:{left % 60:02} left",
            file=sys.stderr,
            flush=True,
        )


class Bar:
    """A bar with rate, loss, validation and time left."""

    def __init__(self, label: str, *, console: Console | None = None) -> None:
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self.task = self.bar.add_task(label, rate="", shown="")
        self.validation = ""
        self.waiting = 0  # batches that the bar does not show yet
        self.updated = 0.0

    def start(self, done: int, total: int, *, per_epoch: int) -> None:
        """Shows the bar."""
        self.bar.update(self.task, total=total, completed=done)
        self.bar.start()

    def step(self, epoch: int, loss: Tensor) -> None:
        """Moves the bar, at most ten times a second."""
        self.waiting += 1
        if time.monotonic() - self.updated < REFRESH:
            return
        speed = self.bar.tasks[0].speed
        rate = batches_a_second(speed) if speed else ""
        shown = f"epoch {epoch + 1} loss {float(loss):.4f}{self.validation}"
        self.bar.update(self.task, advance=self.waiting, rate=rate, shown=shown)
        self.waiting, self.updated = 0, time.monotonic()

    def epoch(self, entry: dict[str, float], *, best_epoch: int) -> None:
        """Shows the epoch's mean loss and its validation, which later updates repeat."""
        if "validation" in entry:
            self.validation = f" validation {entry['validation']:.4f} best epoch {best_epoch}"
        shown = f"epoch {int(entry['epoch'])} loss {entry['loss']:.4f}{self.validation}"
        self.bar.update(self.task, advance=self.waiting, shown=shown)
        self.waiting = 0

    def stop(self) -> None:
        """Leaves the finished bar standing."""
        self.bar.update(self.task, advance=self.waiting)
        self.waiting = 0
        self.bar.stop()


def progress_for(label: str, *, shown: bool) -> Progress:
    """What fits where stderr goes."""
    if not shown:
        return Silent()
    return Bar(label) if sys.stderr.isatty() else Lines(label)
