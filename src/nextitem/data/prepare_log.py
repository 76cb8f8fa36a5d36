"""Sort a log that is larger than memory by users, on many machines, into a data set that reads as the original does.

Each piece of the log (a row group of a Parquet file) is checked by itself. Then what all pieces say is checked: one
unit of times, positive actions that occur, items that the items table has. A second pass sends each event to the part
of its user. Parts are ranges of user ids with about equally many events, so all events of a user are in one part,
in order. `load_dataset` then reads users, items and events with the same numbers as before, without sorting, and other
programs can read one part alone.

Ray Data reads, checks and exchanges the events; what does not fit in its shared memory it spills to disk.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.data import validation
from nextitem.data.settings import TABLES, DatasetSettings, read_settings
from nextitem.data.tables import Table, find_table, frame_table
from nextitem.data.times import SECONDS_BELOW, time_ticks
from nextitem.distributed.ray_cluster import check_ray, raised_mistake, ray_cluster

PART_ROWS = 2_000_000  # number of events of a part, which one process sorts in memory
SAMPLES = 64  # user ids of a piece, by which the ranges of users are chosen
LOG = "interactions.parquet"
PART, ORDER, USER, TICKS, POSITION = "#part", "#order", "#user", "#ticks", "#position"
SORTED_BY = [USER, TICKS, POSITION, ORDER]


@dataclass(frozen=True)
class Piece:
    """A row group of a file of the log.

    Attributes:
        path: path of the file.
        group: number of the row group in the file.
        first: number of rows before it in the file.
        order: number of rows before it in the whole log.
        rows: number of its rows.

    """

    path: str
    group: int
    first: int
    order: int
    rows: int


@dataclass(frozen=True)
class Summary:
    """What one piece says about the log, for the checks of all pieces together.

    Attributes:
        users: ids of users at equal distances in the sorted piece.
        rows: number of its rows.
        low: lowest time as a number, None without numbers.
        high: highest time as a number.
        actions: actions that occur.
        unknown_item: an item that the items table lacks, or None.

    """

    users: list[Any]
    rows: int
    low: float | None
    high: float | None
    actions: list[str]
    unknown_item: str | None


@dataclass(frozen=True)
class _PieceTable(Table):
    """Table of a piece, whose messages count the rows of the file."""

    first: int = 0

    def problem(self, column: str, what: str, remedy: str, *, row: int | None = None) -> UserError:
        """Return the error for a column, or for one row of the file."""
        return super().problem(column, what, remedy, row=None if row is None else row + self.first)


@dataclass(frozen=True)
class PieceReader:
    """Reader of the pieces of a log.

    Attributes:
        settings: settings of the data set.
        items: ids of the items table; None: every item is known.
        boundaries: first user of each part but the first.

    """

    settings: DatasetSettings
    items: pl.Series | None = None
    boundaries: list[Any] = field(default_factory=list)

    def table(self, piece: Piece) -> Table:
        """Return the rows of a piece under their standard names."""
        frame = pl.from_arrow(pq.ParquetFile(piece.path).read_row_group(piece.group))
        assert isinstance(frame, pl.DataFrame)
        table = frame_table(piece.path, frame, rename=self.settings.interactions.rename)
        return _PieceTable(table.where, table.frame, renamed=table.renamed, first=piece.first)

    def checked(self, piece: Piece) -> pl.DataFrame:
        """Return the rows of a piece with the columns by which they are sorted.

        Raises UserError for the first mistake in it.
        """
        table = self.table(piece)
        columns = self._columns(table)
        order = pl.int_range(piece.order, piece.order + piece.rows, dtype=pl.Int64).alias(ORDER)
        return table.frame.with_columns(*columns, order).collect()

    def _columns(self, table: Table) -> list[pl.Expr]:
        if "timestamp" in table and table.schema["timestamp"] == pl.String:
            raise table.problem("timestamp", "times are text", "write them as numbers or datetimes of Parquet")
        searches = validation.check_searches(table)
        validation.id_column(table, "item_id", optional=searches)
        user = validation.id_column(table, "user_id" if "user_id" in table else "session_id").alias(USER)
        position = validation.position_column(table) if "position" in table else pl.lit(0, pl.Int64)
        ticks, per_ms = pl.lit(0, pl.Int64), 1000
        if "timestamp" in table:
            ticks, per_ms = time_ticks(table, "timestamp", nulls="position" in table)
        return [user, (ticks * (1000 // per_ms)).fill_null(-1).alias(TICKS), position.alias(POSITION)]

    def summary(self, piece: Piece) -> Summary:
        """Check a piece and return what it says about the log."""
        frame = self.checked(piece)
        users = frame[USER].sort()
        places = [place * (len(users) - 1) // max(1, SAMPLES - 1) for place in range(SAMPLES)] if len(users) else []
        times = frame["timestamp"] if "timestamp" in frame.columns else pl.Series([], dtype=pl.Null)
        is_number = times.dtype.is_numeric() and times.count() > 0
        low, high = (float(times.min()), float(times.max())) if is_number else (None, None)  # type: ignore[arg-type]
        actions = frame["action"].cast(pl.String).drop_nulls().unique().to_list() if "action" in frame.columns else []
        unknown = None
        if self.items is not None:
            ids = frame["item_id"].drop_nulls().unique()
            missing = ids.filter(pl.Series(IdMap(self.items).encode(_text_stripped(ids)) == 0))
            unknown = str(missing[0]) if len(missing) else None
        return Summary(users.gather(places).to_list(), len(frame), low, high, actions, unknown)

    def assigned(self, piece: Piece) -> pl.DataFrame:
        """Return the rows of a piece with the part of each, under the names of the file."""
        frame = self.checked(piece)
        bounds = pl.Series(self.boundaries, dtype=frame[USER].dtype)
        frame = frame.with_columns(bounds.search_sorted(frame[USER], side="right").cast(pl.Int64).alias(PART))
        return frame.rename(self.settings.interactions.rename)


def pieces_of(log: Path) -> list[Piece]:
    """Return the pieces of a log in the order of its rows. Raises UserError if it is no Parquet."""
    files = [log] if log.is_file() else sorted(file for file in log.rglob("*.parquet") if not _is_hidden(file, log))
    if not files:
        raise UserError(f"{log}: is no Parquet file and no folder of Parquet files; only Parquet can be prepared")
    pieces, order = [], 0
    for file in files:
        if any("=" in part for part in file.relative_to(log).parts[:-1]):
            raise UserError(f"{log}: folders key=value are not prepared; write these columns into the files")
        try:
            metadata = pq.read_metadata(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file}: cannot be read ({str(error).splitlines()[0]}); write it again") from None
        first = 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            pieces.append(Piece(str(file.resolve()), group, first, order, rows))
            first, order = first + rows, order + rows
    if not order:
        raise UserError(f"{log}: contains no events")
    return pieces


def prepare_log(
    source: str | Path,
    out: str | Path,
    *,
    part_rows: int = PART_ROWS,
    workers: int | None = None,
    drop_unknown_items: bool = False,
) -> int:
    """Write a data set whose log is checked and sorted by users, in parts, and return the number of parts.

    Args:
        source: a dataset folder with a log in Parquet.
        out: a new folder. The other tables and dataset.toml are copied.
        part_rows: number of events of a part, about.
        workers: number of processes on this machine; None: all cores.
        drop_unknown_items: events of items that are not in the items table are no mistake; they stay in the log.

    Raises:
        UserError: there is a mistake in the log, `out` exists, or Ray is not installed.

    """
    check_ray()
    folder, target = Path(source), Path(out)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one with {LOG}")
    if target.exists():
        raise UserError(f"{target} exists; choose another --out")
    settings = read_settings(folder / "dataset.toml")
    pieces = pieces_of(folder / LOG)
    items = find_table(folder, "items", rename=settings.items.rename)
    ids = None
    if items is not None and not drop_unknown_items:
        ids = items.collect(validation.id_column(items, "item_id").alias("id"))["id"]
    names = pq.read_schema(pieces[0].path).names
    renames = settings.interactions.rename
    if not {renames.get("user_id", "user_id"), renames.get("timestamp", "timestamp")} & set(names):
        raise UserError(f"{folder / LOG}: sessions without users and times are numbered by their rows; add a timestamp")
    reader = PieceReader(settings, ids)
    with ray_cluster(num_cpus=workers) as ray:
        try:
            summaries = _summaries(reader, pieces)
            check_together(summaries, settings, str(folder / LOG))
            boundaries = boundaries_of(summaries, max(1, round(sum(piece.rows for piece in pieces) / part_rows)))
            unfinished = target.resolve().with_name(f".{target.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
            (unfinished / LOG).mkdir(parents=True)
            num_parts = _write(PieceReader(settings, None, boundaries), pieces, unfinished / LOG)
        except ray.exceptions.RayError as error:
            raise raised_mistake(error) or error from None
    _copy_tables(folder, unfinished)
    unfinished.rename(target)
    return num_parts


def check_together(summaries: Sequence[Summary], settings: DatasetSettings, where: str) -> None:
    """Raise UserError if pieces that are right by themselves contradict each other or the settings."""
    lows = [summary.low for summary in summaries if summary.low is not None]
    highs = [summary.high for summary in summaries if summary.high is not None]
    if lows and min(lows) < SECONDS_BELOW <= max(highs):
        raise UserError(
            f"{where}: column 'timestamp': {min(lows):.0f} looks like seconds while others, up to {max(highs):.0f}, "
            "are milliseconds; write all times in one unit"
        )
    occurring = Counter(action for summary in summaries for action in summary.actions)
    for action in settings.interactions.positive_actions or ():
        if action not in occurring:
            raise UserError(
                f"{where}: column 'action': never contains {action!r}, which positive_actions names; it contains "
                f"{', '.join(sorted(occurring))}; correct positive_actions in dataset.toml"
            )
    for summary in summaries:
        if summary.unknown_item is not None:
            raise UserError(
                f"{where}: column 'item_id': {summary.unknown_item!r} is not in the items table; add the items, or "
                "skip such rows with --drop-unknown-items"
            )


def boundaries_of(summaries: Sequence[Summary], num_parts: int) -> list[Any]:
    """Return the first user of each part but the first, so that parts have about equally many events."""
    weights = [(user, summary.rows / len(summary.users)) for summary in summaries for user in summary.users]
    weights.sort(key=lambda pair: pair[0])
    total, cumulated = sum(weight for _, weight in weights), 0.0
    boundaries: list[Any] = []
    for user, weight in weights:
        cumulated += weight
        if cumulated > total * (len(boundaries) + 1) / num_parts and len(boundaries) < num_parts - 1:
            boundaries.append(user)
    return sorted(set(boundaries))


def write_part(frame: pl.DataFrame, folder: Path) -> tuple[int, int]:
    """Write the events of one part in order, in one step, and return number and size of the part."""
    part = int(frame[PART][0])
    name = f"part-{part:06d}.parquet"
    temporary = folder / f".{name}.{os.getpid()}"
    frame.sort(SORTED_BY, maintain_order=True).drop(PART, *SORTED_BY).write_parquet(temporary)
    temporary.replace(folder / name)
    return part, frame.height


def _summaries(reader: PieceReader, pieces: Sequence[Piece]) -> list[Summary]:
    """Return the summaries of all pieces, by Ray."""
    import ray

    task = ray.remote(num_cpus=1)(PieceReader.summary)
    shared = ray.put(reader)
    return list(ray.get([task.remote(shared, piece) for piece in pieces]))


def _write(reader: PieceReader, pieces: Sequence[Piece], folder: Path) -> int:
    """Send the events to their parts and write these, by Ray Data, and return the number of parts."""
    import ray.data as ray_data

    ray_data.DataContext.get_current().enable_progress_bars = False

    def assigned(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for number in batch["piece"]:
            yield reader.assigned(pieces[int(number)]).to_arrow(compat_level=pl.CompatLevel.oldest())

    def written(group: pa.Table) -> pa.Table:
        frame = pl.from_arrow(group)
        assert isinstance(frame, pl.DataFrame)
        part, rows = write_part(frame, folder)
        return pa.table({"part": [part], "rows": [rows]})

    numbers = ray_data.from_items([{"piece": number} for number in range(len(pieces))], override_num_blocks=len(pieces))
    parts = numbers.map_batches(assigned, batch_size=1).groupby(PART).map_groups(written, batch_format="pyarrow")
    rows = list(parts.iter_rows())
    assert sum(row["rows"] for row in rows) == sum(piece.rows for piece in pieces), "events were lost"
    return len(rows)


def _copy_tables(folder: Path, target: Path) -> None:
    """Copy dataset.toml and all tables but the log."""
    names = [
        "dataset.toml",
        *(f"{name}.{end}" for name in TABLES if name != "interactions" for end in ("parquet", "csv")),
    ]
    for name in names:
        if (folder / name).is_dir():
            shutil.copytree(folder / name, target / name)
        elif (folder / name).exists():
            shutil.copy2(folder / name, target / name)


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(("_", ".")) for part in file.relative_to(folder).parts)


def _text_stripped(ids: pl.Series) -> pl.Series:
    return ids.str.strip_chars() if ids.dtype == pl.String else ids
