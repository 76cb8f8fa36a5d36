"""Output folders and files (--out): existing ones are replaced only with --overwrite, and atomically."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nextitem.core.errors import UserError

R = TypeVar("R")

# Files that mark a folder as written by nextitem; --overwrite deletes no other folder.
_MARKS = (
    "recipe.toml",
    "alignment.toml",
    "tune.toml",
    "scale.toml",
    "scoreboard.json",
    "report.html",
    "trie.safetensors",
    "*.item2id",
)

# The subfolder in which new files are staged, and the file in it that marks the staging as complete.
_FRESH, _COMPLETE = ".fresh", "complete"


def prepare_out(out: str | Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Create the folder `out`, or empty it unless resuming. Raises UserError if `check_out` refuses it."""
    folder = check_out(out, resume=resume, overwrite=overwrite)
    if folder.is_dir() and not resume and any(folder.iterdir()):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_out(out: str | Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Return the folder `out`. Raises UserError if it may not be written.

    Args:
        out: a folder, which need not exist.
        resume: the folder may contain files of an interrupted run.
        overwrite: the folder may contain files of nextitem, which will be deleted; other folders are refused.

    """
    folder = Path(out)
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder with --out")
    if folder.is_dir() and any(folder.iterdir()) and not resume:
        if not overwrite:
            raise UserError(f"{folder} is not empty; choose another --out, or add --resume or --overwrite")
        if not any(any(folder.glob(mark)) for mark in _MARKS) and not _is_export(folder):
            raise UserError(
                f"{folder} contains something else than a run, so it is not overwritten; choose another --out"
            )
    return folder


def _is_export(folder: Path) -> bool:
    """Return whether manifest.json says that an export of this package wrote the folder."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and str(manifest.get("format")).startswith("nextitem-")


def refuse_existing_file(path: str | Path, *, overwrite: bool) -> Path:
    """Return the path of a file to write, and create its folder. Raises UserError if it may not be overwritten."""
    file = Path(path)
    if file.exists() and not overwrite:
        raise UserError(f"{file} exists; choose another --out, or add --overwrite")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def replace_files(folder: Path, write: Callable[[Path], None]) -> None:
    """Replace files in `folder` by those of the same name that `write` writes into the folder it is called with.

    The replacement is atomic: if it is interrupted, `finish_replacing` restores either all old or all new files.
    """
    finish_replacing(folder)
    fresh = folder / _FRESH
    fresh.mkdir()
    write(fresh)
    (fresh / _COMPLETE).touch()
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Complete or undo an interrupted `replace_files`; without one, do nothing."""
    fresh = folder / _FRESH
    if (fresh / _COMPLETE).exists():
        for file in sorted(fresh.iterdir()):
            if file.name != _COMPLETE:
                os.replace(file, folder / file.name)
    if fresh.exists():
        shutil.rmtree(fresh)


def read_records(file: Path, make: Callable[..., R], *, way_out: str) -> list[R]:
    """Return the records of a file with one JSON object a line, and remove a last line that was not written completely.

    Args:
        file: the file; if it does not exist, there are no records.
        make: builds a record from the fields of an object.
        way_out: what to do about a damaged file, as the end of a message.

    Raises:
        UserError: the file is damaged.

    """
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    if complete != text:
        file.write_text(complete, encoding="utf-8")
    records = []
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            records.append(make(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{file}, line {number} is damaged ({error}); {way_out}") from None
    return records
