"""Convert downloaded files to a dataset folder that appears only when it is complete.

`nextitem import` and the last step of `nextitem data download` use it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import tomli_w

from nextitem.core.errors import UserError
from nextitem.data.importers.archive import Archive
from nextitem.data.importers.names import DATASETS, Importer, find_importer
from nextitem.data.importers.report import Report

Log = Callable[[str], None]

_CHUNK = 1 << 20
_COMMON = ("*.csv", "*.json", "*.jsonl")  # names that occur in many data sets, so they identify none


def import_dataset(
    name: str,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    log: Log = lambda text: None,
) -> Path:
    """Import downloaded files as a dataset folder, and return the path of the folder.

    Args:
        name: a key of names.DATASETS.
        paths: the files, archives or folders that this importer expects.
        out: the dataset folder, which appears only when the import is complete.
        resume: if `out` is complete already, return without importing.
        overwrite: replace an existing data set in `out`.
        log: callback that prints one line of progress.

    Raises:
        UserError: the files are not those of the data set, are damaged or truncated, or `out` exists and may not be
            replaced.

    """
    find_importer(name)
    folder = Path(out)
    if not paths:
        raise UserError(f"nextitem import {name}: give the file or folder: {DATASETS[name].expects}")
    for path in paths:
        if folder.exists() and Path(path).exists() and Path(path).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} lies in --out {folder}, which would be replaced; choose another --out")
    if is_complete(folder, resume=resume, overwrite=overwrite):
        log(f"{folder} is complete already")
        return folder
    with new_folder(folder) as fresh:
        report = fill_folder(name, paths, fresh, log=log)
        write_readme(fresh, [name, f"Imported from {', '.join(Path(path).name for path in paths)}."], report)
    for note in report.notes:
        log(note)
    return folder


def is_complete(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """Return True if the folder contains a complete data set that `resume` keeps, and False if it may be written.

    Raises UserError if it contains something that may not be replaced.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    is_dataset = (folder / "dataset.toml").is_file()
    if resume and is_dataset:
        return True
    if not overwrite:
        raise UserError(f"{folder} is not empty; choose another --out, or add --overwrite")
    if not is_dataset:
        raise UserError(
            f"{folder} contains something else than a data set: it is not overwritten; choose another --out"
        )
    return False


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Create an empty folder beside `folder`, and move it to that path when the block ends without an error."""
    fresh = folder.with_name(f".{folder.name}.importing")
    if fresh.exists():
        shutil.rmtree(fresh)  # of an import that was interrupted
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    finally:
        if fresh.exists():
            shutil.rmtree(fresh, ignore_errors=True)


def fill_folder(
    name: str, paths: Sequence[str | Path], folder: Path, *, dataset_name: str | None = None, log: Log
) -> Report:
    """Write tables and dataset.toml into an empty folder, and return the report of the import.

    Args:
        name: a key of names.DATASETS.
        paths: the files, archives or folders that this importer expects.
        folder: an empty folder.
        dataset_name: name of the data set in dataset.toml; None: the importer's choice.
        log: callback that prints one line of progress.

    Raises:
        UserError: the files are not those of the importer.

    """
    importer = find_importer(name)
    report = Report(log)
    scratch = folder / ".scratch"
    scratch.mkdir()
    with Archive(paths, scratch=scratch, max_bytes=importer.max_bytes, log=log) as archive:
        _check_files(name, importer, archive)
        _check_md5(importer, archive, report)
        log(f"{name}: reading {archive.where}")
        settings = importer.load()(archive, folder, report, name=name)
    shutil.rmtree(scratch)
    _check_rows(importer, folder, report, where=archive.where)
    settings = {"name": name, **settings} | ({} if dataset_name is None else {"name": dataset_name})
    (folder / "dataset.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    return report


def write_readme(folder: Path, paragraphs: Sequence[str], report: Report) -> None:
    """Write README.md: paragraphs on the origin of the data, and the notes on what the import skipped."""
    lines = "\n".join(f"* {note}" for note in report.notes)
    text = "\n\n".join([*paragraphs, *([lines] if lines else [])])
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


def _check_files(name: str, importer: Importer, archive: Archive) -> None:
    """Raise UserError unless all files that the importer needs exist; it names another importer that they match."""
    missing_groups = [group for group in importer.files if not archive.find(*group)]
    if not missing_groups:
        return
    matches = [
        other
        for other, entry in DATASETS.items()
        if not any(pattern in _COMMON for group in entry.files for pattern in group)
        and all(archive.find(*group) for group in entry.files)
    ]
    hint = f"; it looks like {', '.join(matches)}: nextitem import {matches[0]}" if matches else ""
    archives = [member.where for member in archive.members if member.base.endswith((".zip", ".tar", ".tgz", ".7z"))]
    if archives and not matches:
        hint = f"; give the archive itself: {archives[0]}"
    first_patterns = ", ".join(group[0] for group in missing_groups)
    raise UserError(
        f"{archive.where}: contains no {first_patterns}; {name} expects {importer.expects}; it contains "
        f"{archive.contents()}{hint}"
    )


def _check_md5(importer: Importer, archive: Archive, report: Report) -> None:
    """Compare the MD5 of an archive with the one in the file beside it, or with the published one.

    Raises UserError if it differs from the first, and adds a note if it differs from the second.
    """
    if len(archive.paths) != 1 or not archive.paths[0].is_file():
        return
    file = archive.paths[0]
    md5_file = file.with_name(file.name + ".md5")
    listed_md5 = published_md5(md5_file.read_text(encoding="utf-8", errors="replace")) if md5_file.is_file() else None
    expected = listed_md5 or importer.published_md5
    if expected is None:
        return
    actual = md5(file)
    if actual == expected:
        return
    if listed_md5 is not None:
        raise UserError(f"{file}: its MD5 is {actual}, {md5_file.name} lists {listed_md5}; download it again")
    report.note(f"{file.name} is not the published archive (MD5 {actual}, published {expected})")


def _check_rows(importer: Importer, folder: Path, report: Report, *, where: str) -> None:
    """Raise UserError if no event was imported; add a note if the number of rows differs from the published one."""
    logs = [folder / f"{table}.parquet" for table in ("interactions", "impressions")]
    num_rows = sum(pl.scan_parquet(log).select(pl.len()).collect().item() for log in logs if log.exists())
    if not num_rows:
        raise UserError(f"{where}: contains no usable event")
    if importer.published_rows is not None and report.rows != importer.published_rows:
        report.note(f"{report.rows:,} rows were read; the published log has {importer.published_rows:,}")


def published_md5(text: str) -> str | None:
    """Return the first word of 32 hexadecimal digits: `MD5 (file) = digest` and `digest  file` are both common."""
    for word in text.replace("=", " ").split():
        if len(word) == 32 and all(letter in "0123456789abcdef" for letter in word.lower()):
            return word.lower()
    return None


def md5(file: Path) -> str:
    """Return the MD5 of a file, in hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
