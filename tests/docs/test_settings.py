"""docs/settings.md equals the output of docs/settings.py, and has a section for every part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nextitem.core.registry import MODELS, RERANKERS, TOKENIZERS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_settings_is_up_to_date() -> None:
    process = subprocess.run([sys.executable, DOCS / "settings.py", "--check"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_the_page_has_a_section_for_every_part() -> None:
    headings = [line[4:] for line in (DOCS / "settings.md").read_text("utf-8").splitlines() if line.startswith("### ")]
    assert set(MODELS) | set(TOKENIZERS) | set(RERANKERS) <= set(headings)
