"""The rule for every --out: nothing that stands is overwritten unless told so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from nextitem.core.errors import UserError

# What a folder of ours holds; --overwrite deletes no other folder.
_MARKS = ("recipe.toml", "scoreboard.json", "report.html", "trie.safetensors", "*.item2id")

_FRESH, _COMPLETE = ".fresh", "complete"  # a folder within, and the file that says that nothing of it lacks


def prepare_out(out: str | Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Make the folder `out`, empty unless resuming; UserError if `check_out` refuses it."""
    folder = check_out(out, resume=resume, overwrite=overwrite)
    if folder.is_dir() and not resume and any(folder.iterdir()):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_out(out: str | Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Return the folder `out`; UserError if it holds something that may not be replaced."""
    folder = Path(out)
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --out wants a folder")
    if folder.is_dir() and any(folder.iterdir()) and not resume:
        if not overwrite:
            raise UserError(f"{folder} is not empty; choose another --out, or add --resume or --overwrite")
        if not any(any(folder.glob(mark)) for mark in _MARKS):
            raise UserError(f"{folder} holds something else than a run: it is not overwritten; choose another --out")
    return folder


def refuse_existing_file(path: str | Path, *, overwrite: bool) -> Path:
    """`path`, if nothing stands there or it may be overwritten."""
    file = Path(path)
    if file.exists() and not overwrite:
        raise UserError(f"{file} exists; choose another --out, or add --overwrite")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def replace_files(folder: Path, write: Callable[[Path], None]) -> None:
    """The files that `write` puts into a new folder take the place of those of their names in `folder`.

    Where this is cut off, `finish_replacing` leaves either all of the former files or all of the new ones.
    """
    finish_replacing(folder)
    fresh = folder / _FRESH
    fresh.mkdir()
    write(fresh)
    (fresh / _COMPLETE).touch()
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Ends what `replace_files` began, where it was cut off."""
    fresh = folder / _FRESH
    if (fresh / _COMPLETE).exists():
        for file in sorted(fresh.iterdir()):
            if file.name != _COMPLETE:
                os.replace(file, folder / file.name)
    if fresh.exists():
        shutil.rmtree(fresh)
