"""Archives are read and never trusted: names, sizes, damage, and files that are not archives."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.layouts import Files, Layouts

from nextitem.core.errors import UserError
from nextitem.data.importers.archive import Archive

FILES: Files = {"a/x.csv": "1,2\n", "a/sub/y.csv": "3\n", "a/.DS_Store": "junk", "__MACOSX/a/._x.csv": "junk"}


def open_archive(*paths: Path, max_bytes: int = 1 << 20) -> Archive:
    scratch = paths[0].parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return Archive(paths, scratch=scratch, max_bytes=max_bytes)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_members_of_every_kind(layouts: Layouts, kind: str) -> None:
    with open_archive(getattr(layouts, kind)(FILES)) as archive:
        assert sorted(member.name for member in archive.members) == ["a/sub/y.csv", "a/x.csv"]
        member = archive.require("x.csv")
        assert list(archive.lines(member)) == [b"1,2"]
        with archive.file(member) as file:
            assert file.read_text() == "1,2\n"
        assert not list(archive.scratch.iterdir()), "unpacked files are removed"
        assert archive.get("z.csv") is None
        with pytest.raises(UserError, match=r"contains no z\.csv; it contains a/"):
            archive.require("z.csv")
        with pytest.raises(UserError, match=r"contains 2 files for \*\.csv"):
            archive.require("*.csv")
        assert [member.base for member in archive.find("*.csv", "!y*")] == ["x.csv"]


def test_compressed_members_and_loose_files(layouts: Layouts) -> None:
    inner = gzip.compress(b"inside\n")
    with open_archive(layouts.zip({"b/Z.json.gz": inner}), layouts.gz("loose\r\n", "l.json.gz")) as archive:
        assert [list(archive.lines(member)) for member in archive.find("*.json")] == [[b"inside"], [b"loose"]]
        with archive.file(archive.require("z.json")) as file:
            assert file.read_bytes() == b"inside\n"


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "C:\\evil.txt", "..\\evil.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_point_outside_are_refused(layouts: Layouts, kind: str, name: str) -> None:
    archive = getattr(layouts, kind)({"a/x.csv": "1", name: "evil"})
    with pytest.raises(UserError, match="outside of the archive: it is not the published one"):
        open_archive(archive)
    assert not list(layouts.root.parent.glob("**/evil.txt"))


def test_links_in_an_archive_are_not_members(layouts: Layouts) -> None:
    path = layouts.root / "links.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("ratings.csv")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with open_archive(path) as members:
        assert not members.members


@pytest.mark.parametrize("kind", ["zip", "tar", "gz"])
def test_a_file_that_unpacks_to_too_many_bytes_is_refused_while_it_is_read(layouts: Layouts, kind: str) -> None:
    bomb = bytes(1 << 22)
    path = layouts.gz(bomb, "x.csv.gz") if kind == "gz" else getattr(layouts, kind)({"x.csv": bomb})
    with open_archive(path, max_bytes=1 << 20) as archive:
        member = archive.require("x.csv")
        with pytest.raises(UserError, match=r"x\.csv.*: unpacks to more than 0\.000977 GiB"), archive.file(member):
            pass
        assert not list(archive.scratch.iterdir())


def test_a_line_that_is_too_long_is_refused(layouts: Layouts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextitem.data.importers.archive.MAX_LINE", 100)
    with (
        open_archive(layouts.folder({"x.json": "a\n" + "b" * 200})) as archive,
        pytest.raises(UserError, match="line 2"),
    ):
        list(archive.lines(archive.require("x.json")))


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_truncated_archive_is_named(layouts: Layouts, kind: str, share: float) -> None:
    content = "".join(f"{number * 7919 % 104729}\n" for number in range(20_000))
    path: Path = getattr(layouts, kind)({"x.csv": content})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with (
        pytest.raises(UserError, match=rf"{path.name}.*(cut off or damaged)"),
        open_archive(path) as archive,
        archive.file(archive.require("x.csv")),
    ):
        pass


def test_a_changed_byte_is_detected(layouts: Layouts) -> None:
    path = layouts.zip({"x.csv": "".join(f"{number}\n" for number in range(5000))})
    whole = bytearray(path.read_bytes())
    whole[2000] ^= 255
    path.write_bytes(whole)
    with open_archive(path) as archive, pytest.raises(UserError, match="cut off or damaged"):
        list(archive.lines(archive.require("x.csv")))


@pytest.mark.parametrize("name", ["page.zip", "page.json.gz", "page.tar.gz"])
def test_a_saved_error_page_is_not_an_archive(layouts: Layouts, name: str) -> None:
    path = layouts.root / name
    path.write_text("<html><body>404</body></html>")
    with pytest.raises(UserError, match=r"is no archive, it begins with '<html>.*perhaps an error page was saved"):
        open_archive(path)


def test_a_path_that_cannot_be_opened_is_named(layouts: Layouts) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        open_archive(layouts.root / "absent.zip")
    (layouts.root / "empty.zip").write_bytes(b"")
    with pytest.raises(UserError, match="the file is empty"):
        open_archive(layouts.root / "empty.zip")
    with zipfile.ZipFile(layouts.root / "nothing.zip", "w"):
        pass
    with open_archive(layouts.root / "nothing.zip") as archive, pytest.raises(UserError, match="it contains no file"):
        archive.require("x.csv")
    for start, program in ((b"Rar!\x1a\x07", "unrar x"), (b"(\xb5/\xfd", "unzstd")):
        (layouts.root / "other").write_bytes(start + bytes(10))
        with pytest.raises(UserError, match=f"unpack it first \\({program} other\\)"):
            open_archive(layouts.root / "other")


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.zip"])
def test_a_pointer_of_git_lfs_is_named(layouts: Layouts, name: str) -> None:
    folder = layouts.folder({name: "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"})
    with open_archive(folder) as archive, pytest.raises(UserError, match="is a pointer of Git LFS, not the file"):
        list(archive.lines(archive.require("x.*")))
    with (
        pytest.raises(
            UserError, match=r"is a pointer of Git LFS|is no archive, it begins with 'version https://git-lfs"
        ),
        open_archive(folder / name) as archive,
        archive.file(archive.require("x.*")),
    ):
        pass


def test_an_encrypted_archive_is_named(layouts: Layouts) -> None:
    path = layouts.zip({"x.csv": "1\n"})
    whole = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole[whole.index(mark) + offset] |= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match="is encrypted"):
        open_archive(path)
