"""The example model of docs/adding_a_model.md passes the contract test of that page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_model.md"


@pytest.mark.slow
def test_the_worked_example_passes_its_own_test(tmp_path: Path) -> None:
    model, test = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (tmp_path / "recency_mean.py").write_text(model, encoding="utf-8")
    (tmp_path / "test_recency_mean.py").write_text(test, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_recency_mean.py"]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-2000:]
