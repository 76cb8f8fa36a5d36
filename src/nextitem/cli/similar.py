"""nextitem similar"""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Device

EXAMPLES = "Examples: nextitem similar runs/sasrec 85123A -k 5 | nextitem similar runs/item-cf 71053 --json"


def similar(
    run: Annotated[str, typer.Argument(help="A run's folder.")],
    item: Annotated[str, typer.Argument(help="An item's id.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Items to return.")] = 10,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the items that are most like an item, by what the model has learnt of items."""
    check_run(run)
    from nextitem.pipeline.runs import load_run

    opened = load_run(run, device=device)
    frame = opened.similar(item, k=k)
    if as_json:
        print(frame.write_json())
        return
    titles = dict(zip(opened.model.catalog.ids.external, opened.model.catalog.titles(), strict=True))
    for other, score, place in frame.iter_rows():
        title = titles[other]
        print(f"{place:3d}  {other}{'' if str(other) == title else '  ' + str(title)}  {score:.4f}")
