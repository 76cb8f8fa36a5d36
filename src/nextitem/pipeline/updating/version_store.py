"""Versions of a run as an update changes them: one update at a time, whole folders only, a history of all outcomes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nextitem.core.errors import UserError
from nextitem.pipeline.versions import FIRST, current_version, use_version, version_folder, version_names

CARD = "update.json"  # in the folder of a version: what the update did
HISTORY = "updates.jsonl"  # in the folder of the run: the card of each update, promoted or not
LOCK = "update.lock"
STAGING = ".staging"  # no name of a version, so a version that is being made is none


@contextmanager
def one_update(run: Path) -> Iterator[None]:
    """Exclude a second update of a run while the block runs; a process that ends in any way releases the run.

    Raises UserError if another process updates the run.
    """
    with (run / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UserError(f"{run} is being updated by process {owner}; wait until it has ended") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def rollback(run: str | Path, version: str) -> None:
    """Use another version of a run, from now on; a server takes it into use, too.

    Args:
        run: folder of the run.
        version: name of the version: "1" for the run as it was trained, or that of a folder in RUN/versions.

    Raises:
        UserError: the run has no such version, or is being updated.

    """
    root = Path(run)
    if not root.is_dir():
        raise UserError(f"{root}: no such run; make one with: nextitem train")
    with one_update(root):
        use_version(root, version)


@contextmanager
def staging(run: Path) -> Iterator[Path]:
    """Yield an empty folder for a new version; it is removed at the end unless it was adopted."""
    folder = run / "versions" / STAGING
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted update
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def next_name(run: Path) -> str:
    """Return the number of the next version; no number is used twice, not even that of a version that was refused."""
    used = [*version_names(run), *(str(card.get("version")) for card in history(run))]
    return str(1 + max(int(name) for name in used if name.isdigit()))


def adopt(run: Path, folder: Path, name: str) -> None:
    """Make a staged folder the version `name`, and use it. At every moment one whole version is in use."""
    for path in [*(path for path in folder.rglob("*") if path.is_file()), folder]:
        _sync(path)
    target = run / "versions" / name
    os.rename(folder, target)
    _sync(target.parent)
    use_version(run, name)


def remember(run: Path, card: Mapping[str, Any]) -> None:
    """Append the card of an update to the history of the run."""
    with (run / HISTORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps(card) + "\n")
        file.flush()
        os.fsync(file.fileno())


def history(run: Path) -> list[dict[str, Any]]:
    """Return the cards of all updates of a run, oldest first; a last line that was cut off is none."""
    file = run / HISTORY
    cards = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else ():
        if not line.endswith("\n"):
            break
        try:
            cards.append(json.loads(line))
        except ValueError:
            raise UserError(f"{file} is damaged; move it elsewhere, and start again") from None
    return cards


def read_card(run: Path, name: str) -> dict[str, Any]:
    """Return the card of a version; empty for one that no update has made.

    Raises UserError if the run has no such version, or its card is damaged.
    """
    file = version_folder(run, name) / CARD
    if name == FIRST or not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); use another version with --rollback") from None


def prune(run: Path, *, keep: int) -> list[str]:
    """Delete the oldest versions until `keep` are left, and return their names.

    Neither the first version, which is the folder of the run, nor the one in use or that before it is deleted.
    """
    current = current_version(run)
    protected = {FIRST, current, str(read_card(run, current).get("previous", FIRST))}
    names = version_names(run)
    surplus = [name for name in names if name not in protected and name.isdigit()][: max(0, len(names) - keep)]
    for name in surplus:
        shutil.rmtree(run / "versions" / name)
    return surplus


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
