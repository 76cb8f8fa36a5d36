"""Fixtures of importer tests: a folder for files, and a function that imports files and loads the result."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.layouts import Imported, Layouts

from nextitem.core.dataset import Dataset
from nextitem.data.importers.importing import import_dataset
from nextitem.data.readers import load_dataset


@pytest.fixture
def layouts(tmp_path: Path) -> Layouts:
    """Return a builder of files for this test."""
    return Layouts(tmp_path)


@pytest.fixture
def imported(tmp_path: Path) -> Imported:
    """Return a function that imports paths under a name, and returns the data set and all logged messages."""

    def run(name: str, *paths: Path) -> tuple[Dataset, str]:
        lines: list[str] = []
        folder = import_dataset(name, paths, tmp_path / "data", log=lines.append)
        assert not list(tmp_path.glob(".*")), "no temporary file remains beside the data set"
        assert {file.suffix for file in folder.iterdir()} <= {".parquet", ".toml", ".md"}
        return load_dataset(folder), "\n".join(lines)

    return run
