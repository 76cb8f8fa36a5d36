"""Archive: a folder, an archive or loose files as named members, which are read as streams and never trusted.

No member is unpacked to the path that it declares. An archive with names that point outside of it is refused. A member
that unpacks to more than a limit is refused while it is read, independently of the size that the archive declares.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO

from nextitem.core.errors import UserError

Log = Callable[[str], None]

MAX_LINE = 64 << 20  # maximal number of bytes of one line
MAX_FILES = 100_000  # maximal number of files of a folder: no download has more
SECONDS_BETWEEN_REPORTS = 5.0

# Errors that reading a damaged, truncated, encrypted or unknown archive raises.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
)
_CHUNK = 1 << 20
# First bytes of formats that are not read -> the command that unpacks them.
_UNPACK_COMMANDS = {b"7z\xbc\xaf'\x1c": "7z x", b"Rar!": "unrar x", b"(\xb5/\xfd": "unzstd"}
_POINTER = b"version https://git-lfs"  # first bytes of the file that replaces a large one in a clone without Git LFS
_TAR_ENDS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


@dataclass(frozen=True)
class Member:
    """One file of an archive.

    Attributes:
        name: its path inside the folder or archive, with /.
        where: its name in messages.
        open: opens its stored bytes (of a .gz member: still compressed).
        size: number of stored bytes.
        path: the file itself, if it is on the disk.

    """

    name: str
    where: str
    open: Callable[[], IO[bytes]]
    size: int
    path: Path | None = None

    @property
    def is_gzip(self) -> bool:
        """Tell whether the member is itself compressed by gzip."""
        return self.name.lower().endswith(".gz")

    @property
    def base(self) -> str:
        """Return the name without folders and without .gz, in lower case."""
        return PurePosixPath(self.name).name.lower().removesuffix(".gz")


class Archive:
    """The members of one or more folders, archives (zip, tar) or loose files. Use it with `with`.

    Args:
        paths: the folders, archives or files.
        scratch: an empty folder of the caller for files that must be unpacked.
        max_bytes: maximal number of bytes of one unpacked file.
        log: callback that prints one line of progress.

    Raises:
        UserError: a path does not exist, is damaged, or contains a name that points outside of it.

    """

    def __init__(
        self, paths: Sequence[str | Path], *, scratch: Path, max_bytes: int, log: Log = lambda text: None
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.where = ", ".join(str(path) for path in self.paths)
        self.scratch, self.max_bytes, self.log = scratch, max_bytes, log
        self._open, self._num_copies = ExitStack(), 0
        with ExitStack() as stack:
            stack.callback(self._open.close)
            self.members = tuple(member for path in self.paths for member in self._members(path))
            stack.pop_all()

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    def find(self, *patterns: str) -> list[Member]:
        """Return the members whose base name matches a pattern, by name; patterns that begin with ! exclude."""
        included = [pattern for pattern in patterns if not pattern.startswith("!")]
        excluded = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
        matches = [
            member
            for member in self.members
            if any(fnmatchcase(member.base, pattern) for pattern in included)
            and not any(fnmatchcase(member.base, pattern) for pattern in excluded)
        ]
        return sorted(matches, key=lambda member: member.name)

    def get(self, *patterns: str) -> Member | None:
        """Return the only member that matches the patterns, or None; raise UserError if several match."""
        matches = self.find(*patterns)
        if len(matches) > 1:
            names = ", ".join(member.name for member in matches[:4])
            raise UserError(
                f"{self.where}: contains {len(matches)} files for {patterns[0]} ({names}); give one of them"
            )
        return matches[0] if matches else None

    def require(self, *patterns: str) -> Member:
        """Return the only member that matches the patterns; raise UserError if none or several match."""
        member = self.get(*patterns)
        if member is None:
            raise UserError(f"{self.where}: contains no {patterns[0]}; it contains {self.contents()}")
        return member

    def contents(self) -> str:
        """Return the first names of members, for messages."""
        names = [member.name for member in self.members[:5]]
        more = f" and {len(self.members) - 5:,} more files" if len(self.members) > 5 else ""
        return ", ".join(names) + more if names else "no file"

    def stream(self, member: Member) -> io.BufferedReader:
        """Return the uncompressed bytes of a member; reading raises UserError if it is damaged or exceeds the limit."""
        _refuse_pointer(member)
        with _damage_as_user_error(member.where):
            stored = member.open()
            stream = gzip.GzipFile(fileobj=stored) if member.is_gzip else stored
        return io.BufferedReader(_CheckedStream(stream, stored, member.where, self.max_bytes), _CHUNK)

    def text(self, member: Member, encoding: str) -> io.TextIOWrapper:
        """Return the member as text; line endings of Unix and of Windows are accepted."""
        return io.TextIOWrapper(self.stream(member), encoding=encoding, newline="")

    def lines(self, member: Member) -> Iterator[bytes]:
        """Yield the lines of a member without their endings, and report progress."""
        last_report, count = time.monotonic(), 0
        with self.stream(member) as stream:
            while line := stream.readline(MAX_LINE):
                if len(line) == MAX_LINE:
                    raise UserError(f"{member.where}: line {count + 1} is longer than {MAX_LINE >> 20} MiB")
                count += 1
                if count % 10_000 == 0 and time.monotonic() - last_report > SECONDS_BETWEEN_REPORTS:
                    self.log(f"{member.name}: {count:,} lines")
                    last_report = time.monotonic()
                yield line.rstrip(b"\r\n")

    @contextmanager
    def file(self, member: Member) -> Iterator[Path]:
        """Return the member as an uncompressed file on the disk; remove it at the end if it had to be unpacked."""
        if member.path is not None and not member.is_gzip:
            _refuse_pointer(member)
            yield member.path
            return
        self._num_copies += 1
        copy = self.scratch / f"{self._num_copies}-{member.base}"
        last_report, num_bytes = time.monotonic(), 0
        try:
            with self.stream(member) as stream, copy.open("wb") as out:
                while chunk := stream.read(_CHUNK):
                    out.write(chunk)
                    num_bytes += len(chunk)
                    if time.monotonic() - last_report > SECONDS_BETWEEN_REPORTS:
                        self.log(f"unpacking {member.name}: {num_bytes / 1e6:,.0f} MB")
                        last_report = time.monotonic()
            yield copy
        finally:
            copy.unlink(missing_ok=True)

    def _members(self, path: Path) -> Iterator[Member]:
        """Return the members of a folder, an archive or a file; raise UserError if it cannot be read."""
        if path.is_dir():
            return _folder_members(path)
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        with _damage_as_user_error(str(path)), path.open("rb") as file:
            start = file.read(512)
        if not start:
            raise UserError(f"{path}: the file is empty")
        for first_bytes, program in _UNPACK_COMMANDS.items():
            if start.startswith(first_bytes):
                raise UserError(f"{path}: unpack it first ({program} {path.name}), then give the folder")
        lower = path.name.lower()
        if lower.endswith((".zip", ".gz", ".tgz")) and not start.startswith((b"PK", b"\x1f\x8b")):
            raise UserError(f"{path}: {_no_archive(start)}")
        if lower.endswith(".zip") or (start.startswith(b"PK") and not lower.endswith((".xlsx", ".pt"))):
            return self._zip_members(path)
        if lower.endswith(_TAR_ENDS) or start[257:262] == b"ustar":
            return self._tar_members(path)
        return iter([Member(path.name, str(path), partial(_open_file, path), path.stat().st_size, path)])

    def _zip_members(self, path: Path) -> Iterator[Member]:
        """Yield the files of a zip archive; raise UserError if one is encrypted."""
        with _damage_as_user_error(str(path)):
            archive = self._open.enter_context(zipfile.ZipFile(path))
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        for entry in entries:
            name = _checked_name(entry.filename, path)
            where = f"{path}: {name}"
            if entry.flag_bits & 1:
                raise UserError(f"{where} is encrypted; unpack it with its password, then give the folder")
            if _is_hidden(name):
                continue
            yield Member(name, where, partial(archive.open, entry), entry.file_size)

    def _tar_members(self, path: Path) -> Iterator[Member]:
        """Yield the regular files of a tar archive."""
        with _damage_as_user_error(str(path)):
            archive = self._open.enter_context(tarfile.open(path, "r:*"))  # noqa: SIM115
            entries = archive.getmembers()
        for entry in entries:
            name = _checked_name(entry.name, path)
            if not entry.isfile() or _is_hidden(name):
                continue
            yield Member(name, f"{path}: {name}", partial(_open_tar_member, archive, entry), entry.size)


def _open_file(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_tar_member(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(entry)
    assert stream is not None, "only regular files are members"
    return stream


class _CheckedStream(io.RawIOBase):
    """Stream whose reads raise a UserError that names the file, if it is damaged or exceeds a number of bytes."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, stored: IO[bytes], where: str, max_bytes: int) -> None:
        self._stream, self._stored, self._where = stream, stored, where
        self._num_remaining, self._max = max_bytes, max_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with _damage_as_user_error(self._where):
            data = self._stream.read(len(buffer))
        self._num_remaining -= len(data)
        if self._num_remaining < 0:
            limit = f"{self._max / (1 << 30):.3g} GiB"
            raise UserError(f"{self._where}: unpacks to more than {limit}, which no file of this data set has")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._stored.close()
        super().close()


@contextmanager
def _damage_as_user_error(where: str) -> Iterator[None]:
    """Turn errors of a damaged file into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and error.errno is not None:
            raise UserError(f"{where}: cannot be read ({error.strerror})") from None
        reason = str(error) or type(error).__name__
        raise UserError(f"{where}: cut off or damaged ({reason}); download or copy it again") from None


def _refuse_pointer(member: Member) -> None:
    """Raise UserError if a file of a folder is the pointer that Git LFS puts in the place of the file itself."""
    if member.path is not None and member.size < 1024 and member.path.read_bytes().startswith(_POINTER):
        raise UserError(f"{member.where}: is a pointer of Git LFS, not the file; fetch that with: git lfs pull")


def _folder_members(folder: Path) -> Iterator[Member]:
    """Yield the files of a folder and its folders, without hidden ones, in the order of their paths."""
    count = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in sorted(names):
            path = Path(parent) / name
            name_inside = path.relative_to(folder).as_posix()
            if _is_hidden(name_inside) or not path.is_file():
                continue
            count += 1
            if count > MAX_FILES:
                raise UserError(
                    f"{folder}: contains more than {MAX_FILES:,} files; give the folder of the data set alone"
                )
            yield Member(name_inside, str(path), partial(_open_file, path), path.stat().st_size, path)


def _checked_name(name: str, path: Path) -> str:
    """Return the name of a member with /; raise UserError if it is absolute or points outside of the archive."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or (len(name) > 1 and name[1] == ":") or "\0" in name:
        raise UserError(f"{path}: contains a file named {name!r}, outside of the archive: it is not the published one")
    return parts.as_posix()


def _is_hidden(name: str) -> bool:
    """Tell whether a file is one that operating systems add to folders and archives: .DS_Store, ._x, __MACOSX."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _no_archive(start: bytes) -> str:
    """Return the message for a file with the name of an archive and other contents, which begin with `start`."""
    text = start[:40].decode("utf-8", errors="replace").split("\n")[0]
    return f"is no archive, it begins with {text!r}: perhaps an error page was saved; download it again"
