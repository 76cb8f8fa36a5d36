"""docs/settings.md equals the output of docs/settings.py, and has a section for every part."""

from __future__ import annotations

import runpy
from pathlib import Path

from nextitem.core.registry import MODELS, RERANKERS, TOKENIZERS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_settings_is_up_to_date() -> None:
    script = runpy.run_path(str(DOCS / "settings.py"))
    assert script["page"]() == (DOCS / "settings.md").read_text(encoding="utf-8"), "run python docs/settings.py"


def test_the_page_has_a_section_for_every_part() -> None:
    headings = [line[4:] for line in (DOCS / "settings.md").read_text("utf-8").splitlines() if line.startswith("### ")]
    assert set(MODELS) | set(TOKENIZERS) | set(RERANKERS) <= set(headings)
