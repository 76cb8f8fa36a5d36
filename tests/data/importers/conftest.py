"""Files for a test, and an import that is loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.layouts import Imported, Layouts

from nextitem.core.dataset import Dataset
from nextitem.data.importers.importing import import_dataset
from nextitem.data.readers import load_dataset


@pytest.fixture
def layouts(tmp_path: Path) -> Layouts:
    """Files for this test."""
    return Layouts(tmp_path)


@pytest.fixture
def imported(tmp_path: Path) -> Imported:
    """Imports paths under a name and loads the result: (data set, everything that was said)."""

    def run(name: str, *paths: Path) -> tuple[Dataset, str]:
        lines: list[str] = []
        folder = import_dataset(name, paths, tmp_path / "data", say=lines.append)
        assert not list(tmp_path.glob(".*")), "nothing is left beside the data set"
        assert {file.suffix for file in folder.iterdir()} <= {".parquet", ".toml", ".md"}
        return load_dataset(folder), "\n".join(lines)

    return run
