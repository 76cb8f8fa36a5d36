"""Versions of a run: the folder of the run is version 1, and each later one is a run folder in RUN/versions.

The file RUN/current contains the name of the version that is used; if it is missing, version 1 is. Whoever opens the
run, opens that version, so that a new one is taken into use, and given up again, by replacing one small file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from nextitem.core.errors import UserError

FIRST = "1"
CURRENT = "current"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def version_names(run: Path) -> list[str]:
    """Return the names of the versions of a run, numbers first and in order."""
    folder = run / "versions"
    names = (
        [path.name for path in folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name)]
        if folder.is_dir()
        else []
    )
    return [FIRST, *sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))]


def current_version(run: Path) -> str:
    """Return the name of the version that is used.

    Raises UserError if RUN/current names no version of the run.
    """
    file = run / CURRENT
    try:
        name = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return FIRST
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    version_folder(run, name)
    return name


def version_folder(run: Path, name: str) -> Path:
    """Return the folder of a version.

    Raises UserError if the run has no version of this name.
    """
    if name == FIRST:
        return run
    folder = run / "versions" / name
    if not NAME.fullmatch(name) or not folder.is_dir():
        raise UserError(f"{run} has no version {name!r}; it has {', '.join(version_names(run))}")
    return folder


def current_folder(run: Path) -> Path:
    """Return the folder of the version that is used.

    Raises UserError if RUN/current names no version of the run.
    """
    return version_folder(run, current_version(run))


def use_version(run: Path, name: str) -> None:
    """Use a version from now on. The change is atomic, and on disk when this returns.

    Raises UserError if the run has no version of this name.
    """
    version_folder(run, name)
    temporary = run / f".{CURRENT}-{os.getpid()}"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(f"{name}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, run / CURRENT)
    handle = os.open(run, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
