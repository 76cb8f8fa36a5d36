"""The command `nextitem similar`: the items most similar to an item."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Device

EXAMPLES = "Examples: nextitem similar runs/sasrec 85123A -k 5 | nextitem similar runs/item-cf 71053 --json"


def similar(
    run: Annotated[str, typer.Argument(help="Folder of a run.")],
    item: Annotated[str, typer.Argument(help="Id of an item.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Maximum number of items to return.")] = 10,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the items that are most similar to an item.

    They are compared by the model's item vectors or item similarities.
    """
    check_run(run)
    from nextitem.pipeline.runs import load_run

    opened = load_run(run, device=device)
    frame = opened.similar(item, k=k)
    if as_json:
        print(frame.write_json())
        return
    titles = dict(zip(opened.model.catalog.ids.external, opened.model.catalog.titles(), strict=True))
    for similar_item, score, position in frame.iter_rows():
        title = titles[similar_item]
        name = similar_item if str(similar_item) == title else f"{similar_item}  {title}"
        print(f"{position:3d}  {name}  {score:.4f}")
