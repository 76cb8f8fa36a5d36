"""Where real data is, and how to find helpers beside tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

for folder in ("", "contract"):
    sys.path.insert(0, str(Path(__file__).parent / folder))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; skips without it."""
    folder = os.environ.get("NEXTITEM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data: set NEXTITEM_DATA to the folder that holds the data sets")
    return Path(folder)
