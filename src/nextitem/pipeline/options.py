"""How a fit runs, beside what the recipe says: where it writes, on which device, what it tells the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Log = Callable[[str], None]  # receives one line of progress for the user


def silent(line: str) -> None:
    """A log that keeps nothing."""


@dataclass(frozen=True)
class FitOptions:
    """How one fit runs.

    folder    where resume points, TensorBoard events and stages go
    device    auto, cpu or cuda
    resume    continue from the resume points in `folder`
    progress  show progress bars
    log       receives lines for the user
    """

    folder: Path
    device: str = "auto"
    resume: bool = False
    progress: bool = True
    log: Log = silent
