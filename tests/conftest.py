"""Where real data is, how to find helpers beside tests, and how kernels run without a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nextitem.core.registry import MODELS

if not torch.cuda.is_available():  # read when Triton is loaded, which torch may do in any test
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent))  # `from support.trained_models import ...`
SHARED_MODELS = {"hstu", "tiger", "user-cf", "multi-behaviour", "cascade", "sasrec"}  # one test reads several of these


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Send all tests of a file to one worker, and all contract tests of a model, so that each model is trained once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFileOrModel(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            name = test.partition("[")[2].rstrip("]")
            if not file.startswith("tests/contract/"):
                return file
            model = max((each for each in MODELS if name == each or name.startswith(f"{each}-")), key=len, default=None)
            return "shared models" if model is None or model in SHARED_MODELS else model

    return ByFileOrModel(config, log)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; skips without it."""
    folder = os.environ.get("NEXTITEM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data: set NEXTITEM_DATA to the folder that holds the data sets")
    return Path(folder)
