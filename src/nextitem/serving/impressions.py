"""Log of shown lists, in the layout of `impressions.parquet`, so that a list of today can be learned from tomorrow.

Lists are appended to a text file, one JSON object for each. A full file is rewritten as Parquet, with the same number:
`impressions-000001.parquet`. A process that ends at any moment loses no list that was synced: the next start turns the
text files that it finds into Parquet. If there are a text file and a Parquet file with one number, the latter is whole.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from nextitem.core.errors import UserError

SCHEMA = {
    "impression_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Int64,
    "slot": pl.Int32,
    "propensity": pl.Float64,
    "policy": pl.String,
}
MAX_READS = 5  # attempts to read the files of a log that a server rotates meanwhile
NAME = re.compile(r"impressions-(\d{6,})\.(jsonl|parquet)")


class ShownList(NamedTuple):
    """One list that was shown.

    Attributes:
        request_id: id of the answer.
        user_id: id of the user, None for a visitor.
        item_ids: ids of the items, best first.
        timestamp_ms: time of the answer.
        propensities: probability with which each item was chosen for its slot; 1 without exploration.
        policy: name and version of the model, and whether the list is a fallback.

    """

    request_id: str
    user_id: str | None
    item_ids: Sequence[str]
    timestamp_ms: int
    propensities: Sequence[float]
    policy: str


class ImpressionLog:
    """Files of shown lists in one folder, which one process writes. All methods may be called from several threads."""

    def __init__(self, folder: str | Path, *, lists_per_file: int = 50_000, is_synced: bool = False) -> None:
        """Open the folder, create it if it is new, and turn what a former process left into Parquet.

        Args:
            folder: the folder.
            lists_per_file: number of lists after which a file is turned into Parquet.
            is_synced: whether `append` returns only after the lists are on disk.

        Raises:
            UserError: the folder cannot be written, or a text file in it was changed by somebody else.

        """
        self.folder = Path(folder)
        self.lists_per_file, self.is_synced = lists_per_file, is_synced
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for number, file in self._files("jsonl"):
                self._compact(number, file)
            self._open(1 + max((number for number, _ in self._files("parquet")), default=0))
        except OSError as error:
            raise UserError(f"{folder}: impressions cannot be written there ({error.strerror})") from None

    def append(self, lists: Sequence[ShownList]) -> None:
        """Append lists; if `is_synced`, they are on disk when the method returns. Raises OSError if that fails."""
        lines = "".join(json.dumps(shown_list._asdict(), ensure_ascii=False) + "\n" for shown_list in lists)
        with self._lock:
            self._text.write(lines)
            self._text.flush()
            if self.is_synced:
                os.fsync(self._text.fileno())
            self._count += len(lists)
            if self._count >= self.lists_per_file:
                self._rotate()

    def close(self) -> None:
        """Turn the open file into Parquet."""
        with self._lock:
            if not self._text.closed:
                self._text.close()
                self._compact(self._number, self._path)

    def table(self) -> pl.DataFrame:
        """Return all lists, one row for each item, in the layout of impressions.parquet."""
        with self._lock:
            parts = [pl.read_parquet(file) for _, file in self._files("parquet")]
            return pl.concat([pl.DataFrame(schema=SCHEMA), *parts, _table(_lists(self._path))])

    def delete_user(self, user_id: str) -> int:
        """Remove the lists of a user from all files, and return the number of removed items."""
        with self._lock:
            self._rotate()
            removed = 0
            for _, file in self._files("parquet"):
                table = pl.read_parquet(file)
                rest = table.filter(pl.col("user_id").ne_missing(user_id))
                if rest.height < table.height:
                    removed += table.height - rest.height
                    _write(rest, file)
            return removed

    def _open(self, number: int) -> None:
        self._number, self._count = number, 0
        self._path = self.folder / f"impressions-{number:06d}.jsonl"
        self._text = self._path.open("a", encoding="utf-8")

    def _rotate(self) -> None:
        self._text.close()
        self._compact(self._number, self._path)
        self._open(self._number + 1)

    def _compact(self, number: int, text: Path) -> None:
        """Write a Parquet file in place of a text file."""
        target = self.folder / f"impressions-{number:06d}.parquet"
        if not target.exists():
            table = _table(_lists(text))
            if table.height:
                _write(table, target)
        text.unlink()

    def _files(self, ending: str) -> list[tuple[int, Path]]:
        """Return number and path of the files with this ending, in order."""
        matches = [(NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in matches if match and match[2] == ending)


def read_impressions(folder: str | Path) -> pl.DataFrame:
    """Return all lists of a log, one row for each item, also while a server writes the log; nothing is changed.

    Raises:
        UserError: there is no log in the folder, or a file is damaged.

    """
    place = Path(folder)
    if not place.is_dir():
        raise UserError(f"{folder}: no such folder; pass that of nextitem serve --impressions")
    for _ in range(MAX_READS):
        numbers = [(match, path) for path in sorted(place.iterdir()) if (match := NAME.fullmatch(path.name))]
        if not numbers:
            raise UserError(f"{folder}: contains no log of impressions, such as impressions-000001.parquet")
        files = {int(match[1]): path for match, path in numbers if match[2] == "jsonl"}
        files |= {int(match[1]): path for match, path in numbers if match[2] == "parquet"}
        try:
            parts = [_read(files[number]) for number in sorted(files)]
        except FileNotFoundError:  # a text file has become Parquet meanwhile
            continue
        return pl.concat(parts)
    raise UserError(f"{folder}: the files change all the time; copy the folder, and read the copy")


def _read(file: Path) -> pl.DataFrame:
    if file.suffix == ".jsonl":
        return _table(_lists(file))
    try:
        return pl.read_parquet(file).select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{file} is damaged ({str(error).splitlines()[0]}); move it elsewhere") from None


def _lists(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the lists of a text file; a last line that was cut off is no list."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                raise UserError(f"{file} is damaged; move it elsewhere, and start again") from None


def _table(lists: Iterator[dict[str, Any]]) -> pl.DataFrame:
    rows = [
        (each["request_id"], each["user_id"], item, each["timestamp_ms"], slot, propensity, each["policy"])
        for each in lists
        for slot, (item, propensity) in enumerate(zip(each["item_ids"], each["propensities"], strict=True), start=1)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _write(table: pl.DataFrame, target: Path) -> None:
    """Write a Parquet file in one step: at every moment there is the whole former file or the whole new one."""
    temporary = target.with_suffix(".tmp")
    with temporary.open("wb") as file:
        table.write_parquet(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
