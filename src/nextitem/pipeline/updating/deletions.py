"""Deleted users: all versions of a run lose their events at once, and no later update learns them again.

RUN/deleted-users names them by a keyed hash, as the file would otherwise be a trace of its own, with the time up to
which their events are left out. A user who comes back later is a new user. The lock orders deletions and the adoption
of a new version, so that a version that was being made meanwhile has lost the user before anybody can open it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.pipeline.versions import FIRST, version_names

FILE = "deleted-users"  # no suffix of a bundle, so that a server does not take it for a new version
LOCK = "deleted-users.lock"
STAGING = ".staging"  # of a version that is being made
FUTURE_MS = 5 * 60_000  # by which the clock of whoever sent an event may be ahead
DATED = ("interactions", "impressions")


@dataclass(frozen=True)
class Deletions:
    """The deleted users of a run.

    Attributes:
        key: key of the hashes.
        until_ms: time up to which events of a user are left out, in milliseconds since 1970, by the hash of the user.

    """

    key: str = ""
    until_ms: Mapping[str, int] | None = None

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.until_ms or {})

    def hash_of(self, user_id: str) -> str:
        """Return the hash of a user."""
        return hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), key=self.key.encode()[:64]).hexdigest()[:32]

    def times_of(self, ids: pl.Series) -> dict[str, int]:
        """Return the times of those of the ids, as text, that are deleted users."""
        until = self.until_ms or {}
        hashes = {str(user): self.hash_of(str(user)) for user in ids.unique().drop_nulls()} if until else {}
        return {user: until[digest] for user, digest in hashes.items() if digest in until}

    def user_numbers(self, users: IdMap) -> frozenset[int]:
        """Return the internal numbers of the deleted users among the users of a data set."""
        times = self.times_of(users.external)
        return frozenset(users.encode(pl.Series(list(times), dtype=pl.String)).tolist()) if times else frozenset()

    def without_deleted(self, frames: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """Return tables of a data set without the events of deleted users up to their deletion.

        A user without any event left is no row of the users table either.
        """
        result = dict(frames)
        for name in DATED:
            if name in result and (owner := _owner(result[name])) is not None:
                result[name] = self._without(result[name], owner)
        if len(self) and "users" in result:
            owner = _owner(result["interactions"])
            events = (
                result["interactions"][owner].cast(pl.String) if owner is not None else pl.Series([], dtype=pl.String)
            )
            gone = [user for user in self.times_of(result["users"]["user_id"]) if user not in set(events)]
            result["users"] = result["users"].filter(~pl.col("user_id").cast(pl.String).is_in(gone))
        return result

    def _without(self, frame: pl.DataFrame, owner: str) -> pl.DataFrame:
        times = self.times_of(frame[owner])
        if not times:
            return frame
        until = pl.col(owner).cast(pl.String).replace_strict(times, default=None, return_dtype=pl.Int64)
        if "timestamp" not in frame.columns:
            return frame.filter(until.is_null())
        return frame.filter(until.is_null() | (pl.col("timestamp").dt.epoch("ms") > until))


def read_deletions(run: Path) -> Deletions:
    """Return the deleted users of a run. Raises UserError if the file is damaged."""
    file = run / FILE
    if not file.is_file():
        return Deletions()
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Deletions(str(values["key"]), {str(user): int(until) for user, until in values["users"].items()})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} is damaged ({error}); restore it, as it says whose events must not be learned"
        ) from None


@contextmanager
def deletions_locked(run: Path) -> Iterator[None]:
    """Exclude deletions of users, and the adoption of a version by another process, while the block runs."""
    with (run / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def delete_user(run: str | Path, user_id: str) -> int:
    """Delete a user from the data of all versions of a run, and return the number of events.

    The events that the run was first trained on are in a folder of their own, which is not changed; updates leave the
    user's out from now on. What a version has learned stays in its weights.

    Raises:
        UserError: the note of former deletions is damaged.
        OSError: the folder cannot be written.

    """
    root, num_events = Path(run), 0
    with deletions_locked(root):
        former = read_deletions(root)
        noted = Deletions(former.key or secrets.token_hex(32), dict(former.until_ms or {}))
        folders = [root / "versions" / name / "data" for name in (*version_names(root), STAGING) if name != FIRST]
        until = int(time.time() * 1000) + FUTURE_MS
        users = {**(noted.until_ms or {}), noted.hash_of(user_id): until}
        _write(root / FILE, json.dumps({"key": noted.key, "users": users}).encode())
        for folder in folders:
            for name in ("interactions", "impressions", "users"):
                removed = _delete_rows(folder / f"{name}.parquet", user_id)
                num_events += removed if name == "interactions" else 0
    return num_events


def clean_version(folder: Path, deletions: Deletions) -> None:
    """Remove the deleted users from the data of a version that nobody uses yet."""
    files = {name: folder / "data" / f"{name}.parquet" for name in (*DATED, "users")}
    frames = {name: pl.read_parquet(file) for name, file in files.items() if file.is_file()}
    for name, frame in deletions.without_deleted(frames).items():
        if frame.height < frames[name].height:
            _write_table(files[name], frame)


def _owner(frame: pl.DataFrame) -> str | None:
    """Return the column with whose rows these are: users, or sessions if the data are anonymous."""
    return next((name for name in ("user_id", "session_id") if name in frame.columns), None)


def _delete_rows(file: Path, user_id: str) -> int:
    """Remove the rows of a user from a table, and return their number."""
    if not file.is_file() or (owner := _owner(frame := pl.read_parquet(file))) is None:
        return 0
    rest = frame.filter(pl.col(owner).cast(pl.String).ne_missing(user_id))
    if rest.height < frame.height:
        _write_table(file, rest)
    return frame.height - rest.height


def _write_table(file: Path, frame: pl.DataFrame) -> None:
    temporary = file.with_suffix(".tmp")
    frame.write_parquet(temporary, compression="zstd")
    _replace(temporary, file)


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_bytes(content)
    _replace(temporary, file)


def _replace(temporary: Path, file: Path) -> None:
    """Put a file in the place of another in one step; both the file and the change of its name are on disk then."""
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
