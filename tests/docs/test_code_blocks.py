"""Every complete Python block of README and docs runs unchanged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    (page.relative_to(ROOT), number, block)
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S), start=1)
    # A block that loads an exported model needs one first; tests/pipeline/test_export.py tests the same steps.
    if "nextitem" in block and "from_pretrained" not in block and "..." not in block
]


def test_the_readme_has_a_python_block() -> None:
    assert any(str(page) == "README.md" for page, _, _ in BLOCKS)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number", "block"), BLOCKS, ids=[f"{page}-{number}" for page, number, _ in BLOCKS])
def test_a_python_block_runs(page: Path, number: int, block: str, tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
