"""Write docs/settings.md: every setting of every part, from the documentation of its fields.

`python docs/settings.py` writes the page; with --check it exits with 1 if the page is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from nextitem.alignment.config import AlignmentConfig
from nextitem.core import registry
from nextitem.core.config import Config
from nextitem.core.settings_reference import settings_of
from nextitem.data.settings import DatasetSettings
from nextitem.data.text import ContentConfig
from nextitem.pipeline.aligning.reward_models import RewardTraining
from nextitem.pipeline.recipe import DataTable
from nextitem.serving.config import ServiceConfig
from nextitem.serving.stores.store import StoreConfig
from nextitem.tokenizers.quality import QualityConfig
from nextitem.training.config import TrainingConfig

PAGE = Path(__file__).parent / "settings.md"
INTRODUCTION = """# Settings

This page is made by `python docs/settings.py` from the documentation of the fields. `nextitem models NAME` prints the
same for one model, tokenizer or re-ranker.

A recipe is a TOML file with these tables. `--set model.width=128` changes one setting on the command line,
`settings={"model.width": 128}` in Python. Text names that have further settings are kinds: `model.objective = "gbce"`
chooses one, `model.objective = { kind = "gbce", num_negatives = 256 }` chooses it with a setting of its own.
"""
TABLES: dict[str, tuple[str, type[Config]]] = {
    "data": ("What a run learns from.", DataTable),
    "training": ("How a model that learns by gradient is trained; the same for `tokenizer_training`.", TrainingConfig),
    "content": ("How content vectors of the items are made from their text.", ContentConfig),
    "quality": ("Limits below which semantic IDs count as collapsed.", QualityConfig),
}
PARTS = {
    "model": "Models: the table `[model]`",
    "tokenizer": "Tokenizers: the table `[tokenizer]`",
    "reranker": "Re-rankers: entries of `[[model.reranking]]` of a cascade",
}


def table_of(config: type[Config]) -> Iterator[str]:
    """Yield the lines of a Markdown table of a config's settings."""
    yield "| setting | type | default | range | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    for setting in settings_of(config):
        cells = (f"`{setting.name}`", setting.type, f"`{setting.default}`", setting.range, setting.meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    """Return the whole page."""
    lines = [INTRODUCTION]
    lines += ["## Tables of a recipe", ""]
    for name, (summary, config) in TABLES.items():
        lines += [f"### [{name}]", "", summary, "", *table_of(config), ""]
    lines += ["## The file dataset.toml", "", "See [data](data.md).", "", *table_of(DatasetSettings), ""]
    lines += ["## A server", "", "`ServiceConfig` of nextitem.serving.config; see [a server](serving/server.md).", ""]
    lines += [*table_of(ServiceConfig), ""]
    lines += ["`StoreConfig` of nextitem.serving.stores; see [event stores](serving/stores.md).", ""]
    lines += [*table_of(StoreConfig), ""]
    lines += ["## Alignment", "", "The table `alignment`; see [align a generator](how_to/align.md).", ""]
    lines += [*table_of(AlignmentConfig), "", "The table `reward`: the reward models that it trains.", ""]
    lines += [*table_of(RewardTraining), ""]
    for kind, title in PARTS.items():
        lines += [f"## {title}", ""]
        for name, entry in registry.KINDS[kind].items():
            summary = entry.summary[0].upper() + entry.summary[1:]
            lines += [f"### {name}", "", f"{summary}.", "", *table_of(entry.load().Config), ""]
    return "\n".join(lines)


def main() -> int:
    """Write the page, or compare it; return the exit code."""
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            print("docs/settings.md is stale: run python docs/settings.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
