"""The command `nextitem models`: what is available, and its settings."""

from __future__ import annotations

import shutil
import textwrap
from typing import Annotated

import typer

from nextitem.core import registry
from nextitem.core.errors import UserError

EXAMPLES = "Examples: nextitem models | nextitem models --kind tokenizer | nextitem models sasrec"
WITH_SETTINGS = ("model", "tokenizer", "reranker")  # kinds that have settings


def models(
    name: Annotated[
        str | None, typer.Argument(help="Model, tokenizer or re-ranker whose settings to print.", show_default=False)
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help=f"Kind to list: {', '.join(registry.KINDS)}; default: all.")
    ] = None,
) -> None:
    """List models and other parts, or print settings.

    Without NAME, lists models, tokenizers, losses, metrics and re-rankers with their papers. With NAME, prints the
    settings of that model, tokenizer or re-ranker.
    """
    if kind is not None and kind not in registry.KINDS:
        raise UserError(f"--kind {kind!r}: choose one of {', '.join(registry.KINDS)}")
    if name is not None:
        _print_settings(name, kind)
        return
    width = max(len(entry_name) for table in registry.KINDS.values() for entry_name in table) + 2
    for kind_name, table in registry.KINDS.items():
        if kind in (None, kind_name):
            for entry_name, entry in table.items():
                paper = "" if entry.paper == "-" else f"  [{entry.paper}]"
                print(f"{kind_name:<10}{entry_name:<{width}}{entry.summary}{paper}")


def _print_settings(name: str, kind: str | None) -> None:
    """Print all settings of a model, tokenizer or re-ranker; without a kind, it is found by its name."""
    kinds = [kind] if kind is not None else [option for option in WITH_SETTINGS if name in registry.KINDS[option]]
    if not kinds and ":" not in name:
        names = ", ".join(entry_name for option in WITH_SETTINGS for entry_name in registry.KINDS[option])
        raise UserError(f"nothing with settings is called {name!r}; there are: {names}")
    entry_kind = (kinds or ["model"])[0]
    if entry_kind not in WITH_SETTINGS:
        raise UserError(f"--kind {entry_kind!r} has no settings; choose one of {', '.join(WITH_SETTINGS)}")
    from nextitem.core.settings_reference import settings_of

    entry = registry.entry(entry_kind, name)
    print(f"{entry_kind} {name}: {entry.summary}" + ("" if entry.paper == "-" else f"  [{entry.paper}]"))
    table = "tokenizer" if entry_kind == "tokenizer" else "model"
    print(f"Change a setting with --set {table}.NAME=VALUE, or settings={{'{table}.NAME': VALUE}} in Python.\n")
    columns = shutil.get_terminal_size((110, 24)).columns
    for setting in settings_of(entry.load().Config):
        bounds = f", {setting.range}" if setting.range else ""
        print(f"{setting.name} = {setting.default}    ({setting.type}{bounds})")
        if setting.meaning:
            print(textwrap.fill(setting.meaning, columns, initial_indent="    ", subsequent_indent="    "))
