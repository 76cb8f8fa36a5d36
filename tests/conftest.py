"""Shared set-up of tests: path of helpers, folder of real data, order of parallel tests, kernels without a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nextitem.core.registry import MODELS

if not torch.cuda.is_available():  # Triton reads it when it is loaded, which torch may do in any test
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent))  # `from support.trained_models import ...`
SHARED_MODELS = {"hstu", "tiger", "user-cf", "multi-behaviour", "cascade", "sasrec"}  # one test uses several of these


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
            prefixes = [entry for entry in MODELS if name == entry or name.startswith(f"{entry}-")]
            model = max(prefixes, key=len, default=None)
            return "shared models" if model is None or model in SHARED_MODELS else model

    return ByFileOrModel(config, log)


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures of reports empty: drawing them takes longer than the rest of a comparison.

    The figures of tests/reporting/test_report.py and of the command in tests/cli/test_cli.py are drawn.
    """
    monkeypatch.setattr("nextitem.reporting.plots._svg", lambda figure, label: f'<svg aria-label="{label}"></svg>')


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data sets; skip the test without one."""
    folder = os.environ.get("NEXTITEM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data: set NEXTITEM_DATA to the folder of the data sets")
    return Path(folder)
