"""Progress of training: a bar on a terminal, a line for each epoch elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from torch import Tensor

REFRESH = 0.1  # seconds between two updates of the bar, since reading a loss waits for the device


def format_rate(rate: float) -> str:
    """Format a number of batches per second: three digits below a thousand, whole numbers above."""
    return f"{rate:.3g} batches/s" if rate < 999.5 else f"{rate:,.0f} batches/s"


class Progress(Protocol):
    """Display of the progress of training."""

    def start(self, num_done: int, num_batches: int, *, per_epoch: int) -> None:
        """Start the display; `num_done` of all `num_batches` batches were trained in earlier parts of the run."""

    def step(self, epoch: int, loss: Tensor) -> None:
        """Count a trained batch; epochs count from 0."""

    def epoch(self, entry: dict[str, float], *, best_epoch: int) -> None:
        """Display a complete epoch: its entry of the epoch log, and the best epoch so far."""

    def stop(self) -> None:
        """End the display."""


class NoProgress:
    """Progress that displays nothing."""

    def start(self, num_done: int, num_batches: int, *, per_epoch: int) -> None:
        """Do nothing at the start."""

    def step(self, epoch: int, loss: Tensor) -> None:
        """Do nothing at a batch."""

    def epoch(self, entry: dict[str, float], *, best_epoch: int) -> None:
        """Do nothing at the end of an epoch."""

    def stop(self) -> None:
        """Do nothing at the end."""


class ProgressLines(NoProgress):
    """Progress as one line for each epoch on stderr, for logs."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.num_done = self.num_steps = self.num_batches = self.num_epochs = 0
        self.start_time = 0.0

    def start(self, num_done: int, num_batches: int, *, per_epoch: int) -> None:
        """Start the clock."""
        self.num_done, self.num_batches, self.num_epochs = num_done, num_batches, num_batches // per_epoch
        self.start_time = time.monotonic()

    def step(self, epoch: int, loss: Tensor) -> None:
        """Count a trained batch."""
        self.num_steps += 1

    def epoch(self, entry: dict[str, float], *, best_epoch: int) -> None:
        """Print loss, validation, rate and the remaining time if all epochs are trained."""
        validation = (
            f" validation {entry['validation']:.4f} (best: epoch {best_epoch})" if "validation" in entry else ""
        )
        rate = max(1, self.num_steps) / max(1e-9, time.monotonic() - self.start_time)
        remaining = round((self.num_batches - self.num_done - self.num_steps) / rate)
        print(
            f"{self.label}: epoch {int(entry['epoch'])}/{self.num_epochs} loss {entry['loss']:.4f}{validation}, "
            f"{format_rate(rate)}, {remaining // 60}:{remaining % 60:02} left",
            file=sys.stderr,
            flush=True,
        )


class ProgressBar:
    """Progress as a bar with rate, loss, validation and remaining time."""

    def __init__(self, label: str, *, console: Console | None = None) -> None:
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self.task = self.bar.add_task(label, rate="", figures="")
        self.validation = ""
        self.num_pending = 0  # number of trained batches that the bar does not display yet
        self.last_update = 0.0

    def start(self, num_done: int, num_batches: int, *, per_epoch: int) -> None:
        """Display the bar."""
        self.bar.update(self.task, total=num_batches, completed=num_done)
        self.bar.start()

    def step(self, epoch: int, loss: Tensor) -> None:
        """Move the bar, at most ten times a second."""
        self.num_pending += 1
        if time.monotonic() - self.last_update < REFRESH:
            return
        speed = self.bar.tasks[0].speed
        rate = format_rate(speed) if speed else ""
        figures = f"epoch {epoch + 1} loss {float(loss):.4f}{self.validation}"
        self.bar.update(self.task, advance=self.num_pending, rate=rate, figures=figures)
        self.num_pending, self.last_update = 0, time.monotonic()

    def epoch(self, entry: dict[str, float], *, best_epoch: int) -> None:
        """Display the epoch's mean loss and its validation, which later updates repeat."""
        if "validation" in entry:
            self.validation = f" validation {entry['validation']:.4f} best epoch {best_epoch}"
        figures = f"epoch {int(entry['epoch'])} loss {entry['loss']:.4f}{self.validation}"
        self.bar.update(self.task, advance=self.num_pending, figures=figures)
        self.num_pending = 0

    def stop(self) -> None:
        """Complete the bar, which stays on the terminal."""
        self.bar.update(self.task, advance=self.num_pending)
        self.num_pending = 0
        self.bar.stop()


def progress_for(label: str, *, is_enabled: bool) -> Progress:
    """Return a bar if stderr is a terminal, else lines; nothing is displayed if progress is not enabled."""
    if not is_enabled:
        return NoProgress()
    return ProgressBar(label) if sys.stderr.isatty() else ProgressLines(label)
