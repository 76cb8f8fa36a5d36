"""Versions of a run: names, the current one, and what a damaged file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextitem.core.errors import UserError
from nextitem.pipeline.versions import current_folder, current_version, use_version, version_folder, version_names


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in ("2", "10", "before-sale"):
        (folder / "versions" / name).mkdir(parents=True)
    return folder


def test_a_run_without_versions_is_its_own_first_version(tmp_path: Path) -> None:
    assert version_names(tmp_path) == ["1"]
    assert current_version(tmp_path) == "1"
    assert current_folder(tmp_path) == tmp_path


def test_versions_are_used_and_given_up_by_name(run: Path) -> None:
    assert version_names(run) == ["1", "2", "10", "before-sale"]
    use_version(run, "10")
    assert current_folder(run) == run / "versions" / "10"
    use_version(run, "1")
    assert current_folder(run) == run
    assert not list(run.glob(".current*"))


@pytest.mark.parametrize("name", ["3", "", "..", "../run", "/etc", "2/../10", "a" * 65])
def test_an_unknown_version_is_refused_and_changes_nothing(run: Path, name: str) -> None:
    use_version(run, "2")
    with pytest.raises(UserError, match=r"has no version .*; it has 1, 2, 10, before-sale"):
        use_version(run, name)
    assert current_version(run) == "2"
    with pytest.raises(UserError, match="has no version"):
        version_folder(run, name)


@pytest.mark.parametrize("content", [b"3\n", b"", b"../..\n", b"\xff\xfe"])
def test_a_damaged_file_of_the_current_version_is_said(run: Path, content: bytes) -> None:
    (run / "current").write_bytes(content)
    with pytest.raises(UserError, match=r"has no version|cannot be read"):
        current_version(run)
