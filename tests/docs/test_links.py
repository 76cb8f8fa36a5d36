"""Links between pages lead to existing files, and the README lists every model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nextitem.core.registry import MODELS, RERANKERS

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_targets_of_relative_links_exist(page: Path) -> None:
    targets = re.findall(
        r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    )
    for target in targets:
        if not re.match(r"[a-z]+:", target):
            path = (page.parent / target).resolve()
            assert path.exists(), f"{page.name}: no file {target}"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readme_lists_every_model(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [model for model in (*MODELS, *RERANKERS) if f"`{model}`" not in text] == []
    assert f"{len(MODELS)} " in text
