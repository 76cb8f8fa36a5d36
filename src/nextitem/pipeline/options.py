"""Options of a fit that are not part of the recipe: output folder, device, progress and log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Log = Callable[[str], None]  # called with one line of progress for the user


def silent(line: str) -> None:
    """Ignore a line of the log: the default for callers who want no log."""


@dataclass(frozen=True)
class FitOptions:
    """Options of one fit.

    Attributes:
        folder: folder of resume points, TensorBoard events and stages.
        device: where to compute: auto, cpu or cuda.
        resume: continue from the resume points in `folder`.
        progress: show progress bars.
        log: function that is called with each line for the user.
        is_resumable: write resume points and TensorBoard events of training by gradient.

    """

    folder: Path
    device: str = "auto"
    resume: bool = False
    progress: bool = True
    log: Log = silent
    is_resumable: bool = True
