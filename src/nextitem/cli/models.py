"""nextitem models"""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.core import registry
from nextitem.core.errors import UserError

EXAMPLES = "Examples: nextitem models | nextitem models --kind tokenizer"


def models(
    kind: Annotated[str | None, typer.Option("--kind", help=f"{', '.join(registry.KINDS)}; default: all.")] = None,
) -> None:
    """Lists what there is, one line each, with the paper."""
    if kind is not None and kind not in registry.KINDS:
        raise UserError(f"--kind {kind!r}: choose one of {', '.join(registry.KINDS)}")
    width = max(len(entry_name) for table in registry.KINDS.values() for entry_name in table) + 2
    for name, table in registry.KINDS.items():
        if kind in (None, name):
            for entry_name, entry in table.items():
                paper = "" if entry.paper == "-" else f"  [{entry.paper}]"
                print(f"{name:<10}{entry_name:<{width}}{entry.summary}{paper}")
