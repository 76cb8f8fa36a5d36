"""Report: what an import has read and left out, in words."""

from __future__ import annotations

from collections.abc import Callable


class Report:
    """Collects what is to be said about an import.

    `say` prints progress at once; `notes` are said at the end and written into the data set's README. `rows` counts the
    rows of the log as they were read, before anything was left out: it is compared with the published number.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self.say = say
        self.notes: list[str] = []
        self.rows = 0

    def note(self, text: str) -> None:
        """Add a sentence, without a full stop."""
        self.notes.append(text)

    def left_out(self, count: int, what: str) -> None:
        """Add how many of `what` (in the plural) were left out; nothing if there were none."""
        if count:
            self.note(f"left out {count:,} {what}")
