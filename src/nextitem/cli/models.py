"""nextitem models"""

from __future__ import annotations

import shutil
import textwrap
from typing import Annotated

import typer

from nextitem.core import registry
from nextitem.core.errors import UserError

EXAMPLES = "Examples: nextitem models | nextitem models --kind tokenizer | nextitem models sasrec"
WITH_SETTINGS = ("model", "tokenizer", "reranker")


def models(
    name: Annotated[
        str | None, typer.Argument(help="A model, tokenizer or re-ranker: print its settings.", show_default=False)
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help=f"{', '.join(registry.KINDS)}; default: all.")] = None,
) -> None:
    """List models, tokenizers, losses, metrics and re-rankers with their papers; with NAME, print its settings."""
    if kind is not None and kind not in registry.KINDS:
        raise UserError(f"--kind {kind!r}: choose one of {', '.join(registry.KINDS)}")
    if name is not None:
        _print_settings(name, kind)
        return
    width = max(len(entry_name) for table in registry.KINDS.values() for entry_name in table) + 2
    for each, table in registry.KINDS.items():
        if kind in (None, each):
            for entry_name, entry in table.items():
                paper = "" if entry.paper == "-" else f"  [{entry.paper}]"
                print(f"{each:<10}{entry_name:<{width}}{entry.summary}{paper}")


def _print_settings(name: str, kind: str | None) -> None:
    kinds = [kind] if kind is not None else [each for each in WITH_SETTINGS if name in registry.KINDS[each]]
    if not kinds and ":" not in name:
        names = ", ".join(each for one in WITH_SETTINGS for each in registry.KINDS[one])
        raise UserError(f"nothing with settings is called {name!r}; there are: {names}")
    each = (kinds or ["model"])[0]
    if each not in WITH_SETTINGS:
        raise UserError(f"--kind {each!r} has no settings; choose one of {', '.join(WITH_SETTINGS)}")
    from nextitem.core.settings_reference import settings_of

    entry = registry.entry(each, name)
    print(f"{each} {name}: {entry.summary}" + ("" if entry.paper == "-" else f"  [{entry.paper}]"))
    table = "tokenizer" if each == "tokenizer" else "model"
    print(f"Change one with --set {table}.NAME=VALUE, or settings={{'{table}.NAME': VALUE}} in Python.\n")
    columns = shutil.get_terminal_size((110, 24)).columns
    for setting in settings_of(entry.load().Config):
        bounds = f", {setting.range}" if setting.range else ""
        print(f"{setting.name} = {setting.default}    ({setting.type}{bounds})")
        if setting.meaning:
            print(textwrap.fill(setting.meaning, columns, initial_indent="    ", subsequent_indent="    "))
