"""Hook of mkdocs: fill the navigation from the files that exist, so that a new page needs no entry of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Replace "folder/*" by the pages of the folder, in order of their names, and drop entries without a file."""
    config.nav = _filled(config.nav, Path(config.docs_dir))
    return config


def _filled(entries: list[Any], docs: Path) -> list[Any]:
    filled: list[Any] = []
    for entry in entries:
        if isinstance(entry, dict):
            for title, target in entry.items():
                if isinstance(target, list):
                    pages = _filled(target, docs)
                    filled += [{title: pages}] if pages else []
                elif (docs / target).is_file():
                    filled.append({title: target})
        elif entry.endswith("/*"):
            folder = docs / entry.removesuffix("/*")
            pages = sorted(page.relative_to(docs).as_posix() for page in folder.glob("*.md"))
            listed = {*_targets(filled), *_targets(entries)}
            filled += [page for page in pages if page not in listed]
        elif (docs / entry).is_file():
            filled.append(entry)
    return filled


def _targets(entries: list[Any]) -> list[str]:
    targets: list[str] = []
    for entry in entries:
        targets += [entry] if isinstance(entry, str) else [each for each in entry.values() if isinstance(each, str)]
    return targets
