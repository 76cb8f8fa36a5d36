"""Progress of training: a bar on a terminal, a line an epoch elsewhere, nothing when asked for silence."""

from __future__ import annotations

import sys
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """What training tells of itself."""

    def start(self, done: int, total: int) -> None:
        """Training begins, `done` of `total` batches being behind it."""

    def step(self, epoch: int, loss: float) -> None:
        """One batch is done; `loss` is the epoch's mean so far."""

    def epoch(self, entry: dict[str, float], *, best_epoch: int) -> None:
        """One epoch is done."""

    def stop(self) -> None:
        """Training has ended."""


class Silent:
    """Tells nothing."""

    def start(self, done: int, total: int) -> None:
        """Nothing."""

    def step(self, epoch: int, loss: float) -> None:
        """Nothing."""

    def epoch(self, entry: dict[str, float], *, best_epoch: int) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class Lines(Silent):
    """One line an epoch on stderr, for logs."""

    def __init__(self, label: str) -> None:
        self.label = label

    def epoch(self, entry: dict[str, float], *, best_epoch: int) -> None:
        """Prints loss and validation."""
        best = "" if best_epoch in (0, int(entry["epoch"])) else f" (best: epoch {best_epoch})"
        print(f"{self.label}: {describe(entry)}{best}", file=sys.stderr, flush=True)


class Bar:
    """A bar with rate, loss, validation and time left."""

    def __init__(self, label: str) -> None:
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task(label, rate="", shown="")
        self.validation = ""

    def start(self, done: int, total: int) -> None:
        """Shows the bar."""
        self.bar.update(self.task, total=total, completed=done)
        self.bar.start()

    def step(self, epoch: int, loss: float) -> None:
        """Moves the bar."""
        speed = self.bar.tasks[0].speed
        rate = f"{speed:.1f} batches/s" if speed else ""
        self.bar.update(self.task, advance=1, rate=rate, shown=f"epoch {epoch + 1} loss {loss:.4f}{self.validation}")

    def epoch(self, entry: dict[str, float], *, best_epoch: int) -> None:
        """Remembers the validation value for the next updates."""
        if "validation" in entry:
            self.validation = f" validation {entry['validation']:.4f} best epoch {best_epoch}"

    def stop(self) -> None:
        """Leaves the finished bar standing."""
        self.bar.stop()


def describe(entry: dict[str, float]) -> str:
    """An epoch in words."""
    text = f"epoch {int(entry['epoch'])} loss {entry['loss']:.4f}"
    return text + (f" validation {entry['validation']:.4f}" if "validation" in entry else "")


def progress_for(label: str, *, shown: bool) -> Progress:
    """What fits where stderr goes."""
    if not shown:
        return Silent()
    return Bar(label) if sys.stderr.isatty() else Lines(label)
