"""Where real data is, how to find helpers beside tests, and how kernels run without a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # read when Triton is loaded, which torch may do in any test
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent))  # `from nextitem.testing.known_answers import ...`


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; skips without it."""
    folder = os.environ.get("NEXTITEM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data: set NEXTITEM_DATA to the folder that holds the data sets")
    return Path(folder)
