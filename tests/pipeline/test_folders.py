"""Output folders: files are overwritten only on request, and folders of other programs never."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nextitem.core.errors import UserError
from nextitem.pipeline.folders import finish_replacing, prepare_out, refuse_existing_file, replace_files


def test_a_new_folder_is_created_and_an_empty_one_accepted(tmp_path: Path) -> None:
    assert prepare_out(tmp_path / "a" / "b").is_dir()
    assert prepare_out(tmp_path / "a" / "b").is_dir()


def test_the_folder_of_a_run_is_refused_unless_resumed_or_overwritten(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(UserError, match="not empty"):
        prepare_out(tmp_path)
    assert (prepare_out(tmp_path, resume=True) / "recipe.toml").is_file()
    assert not list(prepare_out(tmp_path, overwrite=True).iterdir())
    with pytest.raises(UserError, match="exclude each other"):
        prepare_out(tmp_path, resume=True, overwrite=True)


def test_a_folder_that_is_no_run_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(UserError, match="something else"):
        prepare_out(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.doc").is_file()


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "recs.parquet"
    file.write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare_out(file)
    with pytest.raises(UserError, match="--overwrite"):
        refuse_existing_file(file, overwrite=False)
    assert refuse_existing_file(file, overwrite=True) == file


@pytest.mark.parametrize("stop_at", ["writing", "first move", "second move", "nowhere"])
def test_all_files_or_none_are_replaced_wherever_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    names = ("a", "b", "unchanged")
    for name in names:
        (tmp_path / name).write_text("old")

    def write(fresh: Path) -> None:
        (fresh / "a").write_text("new")
        if stop_at == "writing":
            raise KeyboardInterrupt
        (fresh / "b").write_text("new")

    moves = []

    def replace(source: Path, target: Path) -> None:
        moves.append(source)
        if (len(moves), stop_at) in ((1, "first move"), (2, "second move")):
            raise KeyboardInterrupt
        source.rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        if stop_at == "nowhere":
            replace_files(tmp_path, write)
        else:
            with pytest.raises(KeyboardInterrupt):
                replace_files(tmp_path, write)
    finish_replacing(tmp_path)
    expected = "old" if stop_at == "writing" else "new"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a": expected,
        "b": expected,
        "unchanged": "old",
    }
