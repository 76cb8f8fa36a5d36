"""Deletions of users end with a test, as many tests share trained runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.trained_models import RUNS

from nextitem.pipeline.updating.deletions import FILE


@pytest.fixture(autouse=True)
def deletions_end() -> Iterator[None]:
    """Remove the notes of deleted users from the shared runs."""
    yield
    for note in Path(RUNS.name).glob(f"*/{FILE}"):
        note.unlink()
