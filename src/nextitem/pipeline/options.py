"""Options of a fit that are not part of the recipe: output folder, device, progress and log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nextitem.distributed import processes

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

    @property
    def bundle_folder(self) -> Path | None:
        """Folder to which encoders of items are saved; None if nothing is saved, or another process saves them."""
        return self.folder if self.is_resumable and processes.rank() == 0 else None
