"""Importer of RecBole's atomic files: text with tabs, with the type of every column in the header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from nextitem.core.errors import UserError
from nextitem.data.importers.archive import Archive, Member
from nextitem.data.importers.report import Report
from nextitem.data.importers.tables import (
    collect_rows,
    finite_number,
    scan_text,
    unique_and_complete,
    usable_rows,
    write_lazily,
)

_TYPES = ("token", "token_seq", "float", "float_seq")
_FEATURE_OF = {"token": "categorical", "token_seq": "categorical-list", "float": "numeric"}
_PARTS = ("train", "valid", "test")
_IGNORED = ("*.kg", "*.link", "*.net")
_TITLES = ("title", "name", "movie_title", "product_title", "app_name", "item_name", "news_title")
_TEXTS = (*_TITLES, "description", "abstract", "text")
_SECONDS_BELOW = 10**11  # smaller numbers are seconds
_STANDARD_COLUMNS = ("user_id", "session_id", "item_id", "timestamp", "action", "query", "rating", "label")
# Names that have another meaning in a dataset folder, in the log or as features of items.
_RESERVED = ("position", "split", "slot", "propensity", "id", "popularity", "trend")


def import_recbole(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import a data set of RecBole, and return the settings of dataset.toml.

    Files are NAME.inter, or NAME.train.inter with .valid.inter and .test.inter, and NAME.item and NAME.user. Others are
    left out.
    """
    logs = _logs(archive)
    title = logs[0][1].base.split(".")[0]
    settings: dict[str, Any] = {"name": title, "interactions": _write_log(archive, logs, folder, report)}
    settings["repeats"] = _has_repeats(folder / "interactions.parquet")
    has_users = "user_id" in pl.scan_parquet(folder / "interactions.parquet").collect_schema().names()
    for table, ending, id_column in (("items", "item", "item_id"), ("users", "user", "user_id")):
        member = archive.get(f"*.{ending}")
        if member is not None and ending == "user" and not has_users:
            report.note(f"{member.name} is left out: the log is one of sessions without users")
        elif member is not None:
            settings[table] = _write_features(archive, member, folder / f"{table}.parquet", id_column, report)
    for member in archive.find(*_IGNORED):
        report.note(f"{member.name} is left out: graphs are not imported")
    if len(logs) > 1:
        report.note("the published split is in the column split: use --protocol published")
    return {key: value for key, value in settings.items() if value != {}}


def _logs(archive: Archive) -> list[tuple[str | None, Member]]:
    """Return (part of the split or None, file) of the only log, or of each part of a split."""
    parts = [(part, member) for part in _PARTS for member in archive.find(f"*.{part}.inter")]
    whole = archive.find("*.inter", *(f"!*.{part}.inter" for part in _PARTS))
    if len(whole) > 1 or (whole and parts) or len({member.base.split(".")[0] for _, member in parts}) > 1:
        names = ", ".join(member.name for member in [*whole, *(member for _, member in parts)][:5])
        raise UserError(f"{archive.where}: contains several logs ({names}); give the folder of one of them")
    if whole:
        return [(None, whole[0])]
    if [part for part, _ in parts] not in (["train", "test"], ["train", "valid", "test"]):
        raise UserError(
            f"{archive.where}: a split is .train.inter, .valid.inter and .test.inter (or train and test); there is "
            f"{', '.join(member.name for _, member in parts)}"
        )
    return list(parts)


def _scan(archive: Archive, member: Member, file: Path) -> tuple[pl.LazyFrame, dict[str, str]]:
    """Return the table under plain names, and the type of each column; raise UserError if a header lacks a type."""
    frame = scan_text(file, member, columns=[], separator="\t", quote=None)
    titles = frame.collect_schema().names()
    types: dict[str, str] = {}
    for title in titles:
        column, _, kind = title.strip("\r").rpartition(":")
        if not column or kind not in _TYPES:
            raise UserError(
                f"{member.where}: the header {title!r} is not name:type with a type of {', '.join(_TYPES)}; "
                "is this a file of RecBole?"
            )
        types[_column_name(column)] = kind
    if len(types) < len(titles):
        raise UserError(f"{member.where}: two columns have one name: {', '.join(titles)}")
    frame = frame.rename(dict(zip(titles, types, strict=True)))
    return frame.with_columns(pl.all().str.strip_chars("\r")), types


def _column_name(name: str) -> str:
    """Return the name of a column in a dataset folder; names with another meaning there get the ending _value."""
    plain = name.replace(".", "_")
    return f"{plain}_value" if plain in _RESERVED else plain


def _write_log(archive: Archive, logs: list[tuple[str | None, Member]], folder: Path, report: Report) -> dict[str, Any]:
    """Write interactions.parquet, and return the table [interactions] of dataset.toml: label columns and context."""
    parts: list[Path] = []
    types: dict[str, str] = {}
    for number, (part, member) in enumerate(logs):
        with archive.file(member) as file:
            frame, types = _scan(archive, member, file)
            _check_log(member, types)
            frame = frame.select(_value(column, kind) for column, kind in types.items() if kind != "float_seq")
            if "timestamp" in types:
                frame = frame.with_columns(_milliseconds(frame, member))
            if part is not None:
                frame = frame.with_columns(split=pl.lit(part))
            ids = [column for column in ("user_id", "session_id", "item_id", "timestamp") if column in types]
            what = f"rows of {member.name} without {' or '.join(ids)}"
            is_unusable = pl.any_horizontal(pl.col(ids).is_null())
            frame = usable_rows(frame, is_unusable, report, what=what, member=member)
            if "timestamp" not in types:
                frame = frame.with_row_index("position")
            parts.append(archive.scratch / f"part-{number}.parquet")
            write_lazily(frame, parts[-1], member)
    rows = pl.concat([pl.scan_parquet(part) for part in parts], how="diagonal_relaxed")
    if "timestamp" not in types:
        rows = rows.drop("position").with_row_index("position")
        report.note("there are no times: events are in the order of the files")
    rows.sink_parquet(folder / "interactions.parquet", compression="zstd")
    context = {
        column: _FEATURE_OF[kind]
        for column, kind in types.items()
        if kind in _FEATURE_OF and column not in _STANDARD_COLUMNS
    }
    sequences = [column for column, kind in types.items() if kind == "float_seq"]
    if sequences:
        report.note(f"columns of number lists in the log are left out: {', '.join(sequences)}")
    labels = [column for column in ("label", "rating") if column in types]
    settings: dict[str, Any] = {"labels": labels} if labels else {}
    return settings | ({"context": context} if context else {})


def _check_log(member: Member, types: dict[str, str]) -> None:
    """Raise UserError if a log lacks users (or sessions) or items, or if its rows contain whole histories."""
    if "item_id_list" in types:
        raise UserError(
            f"{member.where}: every row contains a history (item_id_list), which repeats earlier rows; give the .inter "
            "of single events"
        )
    if "item_id" not in types or not {"user_id", "session_id"} & set(types):
        raise UserError(
            f"{member.where}: a log has item_id:token and user_id:token or session_id:token; there are "
            f"{', '.join(types)}"
        )


def _value(column: str, kind: str) -> pl.Expr:
    """Return a column of text as values of its type."""
    value = pl.col(column)
    if kind == "float":
        return finite_number(value).alias(column)
    if kind == "float_seq":
        return value.str.split(" ").list.eval(pl.element().cast(pl.Float32, strict=False))
    return value.str.split(" ") if kind == "token_seq" else value


def _milliseconds(frame: pl.LazyFrame, member: Member) -> pl.Expr:
    """Return times as whole milliseconds; most files contain seconds, as numbers with a decimal point."""
    latest = collect_rows(frame.select(pl.col("timestamp").max()), member)["timestamp"][0]
    factor = 1000 if latest is not None and latest < _SECONDS_BELOW else 1
    return (pl.col("timestamp") * factor).round().cast(pl.Int64)


def _has_repeats(file: Path) -> bool:
    """Tell whether a user has two events with one item; a log of sessions counts as one with such users."""
    rows = pl.scan_parquet(file)
    if "user_id" not in rows.collect_schema().names():
        return True
    pairs = rows.select(pl.struct("user_id", "item_id").hash(seed=0).alias("pair"))
    counts = pairs.select(pl.len().alias("rows"), pl.col("pair").n_unique().alias("pairs")).collect(engine="streaming")
    return bool(counts["rows"][0] > counts["pairs"][0])


def _write_features(archive: Archive, member: Member, target: Path, id_column: str, report: Report) -> dict[str, Any]:
    """Write a table of items or users, and return its table of dataset.toml.

    That contains the features and, for items, the template of the content sentence.
    """
    log = target.with_name("interactions.parquet")
    with archive.file(member) as file:
        frame, types = _scan(archive, member, file)
        if id_column not in types:
            raise UserError(f"{member.where}: has no {id_column}:token; there are {', '.join(types)}")
        texts = [column for column, kind in types.items() if column in _TEXTS and kind.startswith("token")]
        frame = frame.select(
            pl.col(column) if column in texts else _value(column, kind) for column, kind in types.items()
        )
        table = collect_rows(frame, member)
    table = unique_and_complete(table, id_column, log, report, where=member.name)
    table = _content_columns(table, [name for name, kind in types.items() if kind == "float_seq"], report)
    title = next((column for column in texts if column in _TITLES), None)
    if id_column == "item_id" and title is not None and "title" not in types:
        table, types = table.rename({title: "title"}), {("title" if k == title else k): v for k, v in types.items()}
        texts = ["title" if column == title else column for column in texts]
    table.write_parquet(target)
    features = {
        column: _FEATURE_OF[kind]
        for column, kind in types.items()
        if kind in _FEATURE_OF and column != id_column and column not in texts
    }
    settings: dict[str, Any] = {"features": features} if features else {}
    lists = [column for column, kind in features.items() if kind == "categorical-list"]
    if id_column == "item_id" and (texts or lists):
        settings["text"] = ". ".join(f"{{{column}}}" for column in [*texts, *lists])
    return settings


def _content_columns(table: pl.DataFrame, columns: list[str], report: Report) -> pl.DataFrame:
    """Rename number lists to content_<name> if every row has one and all have one length; otherwise drop them."""
    for column in columns:
        lengths = table[column].list.len()
        if table.height and not lengths.null_count() and lengths.n_unique() == 1:
            table = table.rename({column: f"content_{column}"})
        else:
            table = table.drop(column)
            report.note(f"{column} is left out: some rows have none, or its number lists are not of one length")
    return table
