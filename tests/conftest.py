"""Where real data is, how to find helpers beside tests, and how kernels run without a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from nextitem.core.registry import MODELS

if not torch.cuda.is_available():  # read when Triton is loaded, which torch may do in any test
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent))  # `from support.trained_models import ...`
SHARED_MODELS = {"hstu", "tiger", "user-cf", "multi-behaviour", "cascade", "sasrec"}  # one test reads several of these


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Send all contract tests of a model to one worker, so that the model is trained once."""
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")
        if isinstance(name, str) and name in MODELS and "contract" in item.path.parts:
            item.add_marker(pytest.mark.xdist_group("shared models" if name in SHARED_MODELS else name))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; skips without it."""
    folder = os.environ.get("NEXTITEM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data: set NEXTITEM_DATA to the folder that holds the data sets")
    return Path(folder)
