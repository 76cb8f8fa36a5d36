"""Report of an import: what it has read and skipped, in words."""

from __future__ import annotations

from collections.abc import Callable


class Report:
    """Notes and counts that an importer collects.

    log    callback that prints one line of progress at once
    notes  sentences that are printed at the end and written into the data set's README
    rows   number of rows of the log before anything was left out, to be compared with the published number
    """

    def __init__(self, log: Callable[[str], None] = lambda text: None) -> None:
        self.log = log
        self.notes: list[str] = []
        self.rows = 0

    def note(self, text: str) -> None:
        """Add a note: a sentence without a full stop."""
        self.notes.append(text)

    def note_left_out(self, count: int, what: str) -> None:
        """Add a note that `count` of `what` (a plural) were left out; add nothing if the count is 0."""
        if count:
            self.note(f"left out {count:,} {what}")
