"""Damaged or missing files of a run, and errors of the operating system: the message is one line with the file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.trained_models import few_epochs, rich_run

from nextitem.core.errors import UserError
from nextitem.pipeline.runs import load_run
from nextitem.pipeline.train import train
from nextitem.testing.rich_log import rich_log

FILES = [
    "recipe.toml",
    "weights.safetensors",
    "catalog.parquet",
    "requests.json",
    "events.json",
    "identifiers.json",
    "identifiers.safetensors",
    "metrics.json",
]
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "garbage": lambda content: b"\xff\x00" * 50,
    "another file": lambda content: b"[]",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(name: str, damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(rich_run("tiger").folder, folder, ignore=shutil.ignore_patterns("tokenizer", "checkpoints"))
    file = folder / name
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with pytest.raises(UserError) as error:
        load_run(folder)
    message = str(error.value)
    assert str(file) in message or str(folder) in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["weights.safetensors", "catalog.parquet", "identifiers.safetensors"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(rich_run("tiger").folder, folder, ignore=shutil.ignore_patterns("tokenizer", "checkpoints"))
    (folder / name).unlink()
    with pytest.raises(UserError, match=r"missing|no identifiers"):
        load_run(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\x00" * 50])
def test_a_damaged_resume_point_is_named(content: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(rich_run("sasrec").folder, folder)
    (folder / "metrics.json").unlink()
    checkpoint = folder / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.ckpt"):
        train(
            "sasrec",
            rich_log(),
            out=folder,
            recipe="debug/sasrec",
            overrides=few_epochs("sasrec", 4),  # as the run was trained
            protocol="leave-one-out",
            resume=True,
            progress=False,
        )


@pytest.mark.skipif(os.name != "posix", reason="other systems limit file names differently")
def test_a_file_name_that_is_too_long_raises_an_error_of_the_system() -> None:
    with pytest.raises((OSError, UserError)):
        train("popularity", rich_log(), out="x" * 300, progress=False)
