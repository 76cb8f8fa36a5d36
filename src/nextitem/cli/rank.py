"""The command `nextitem rank`: candidates in the order of a model."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Device, ids_of, lines_of
from nextitem.core.errors import UserError

EXAMPLES = (
    "Examples: nextitem rank runs/din --user 17850 --candidates 85123A,71053,22423 | "
    "nextitem rank runs/sasrec --history 85123A --candidates-file items.txt --json"
)


def rank(
    run: Annotated[str, typer.Argument(help="Folder of a run.")],
    user: Annotated[str | None, typer.Option("--user", help="Id of a user of the data set.")] = None,
    history: Annotated[
        str | None, typer.Option("--history", help="Item ids, oldest first, separated by commas.")
    ] = None,
    candidates: Annotated[
        str | None, typer.Option("--candidates", help="Item ids to order, separated by commas.")
    ] = None,
    candidates_file: Annotated[
        str | None, typer.Option("--candidates-file", help="File with one item id per line, instead of --candidates.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Dataset folder with the user's history; default: the run's data.")
    ] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Order candidate items for a user or a history, best first."""
    if (candidates is None) == (candidates_file is None):
        raise UserError("give either --candidates or --candidates-file")
    if (user is None) == (history is None):
        raise UserError("give either --user or --history")
    check_run(run)
    from nextitem.pipeline.runs import load_run

    opened = load_run(run, device=device)
    if data is not None:
        opened.use_data(data)
    items = ids_of(candidates) if candidates is not None else lines_of(candidates_file or "")
    frame = opened.rank(candidates=items, user=user, history=None if history is None else ids_of(history))
    if as_json:
        print(frame.select("item_id", "score", "rank").write_json())
        return
    for item, score, position in frame.select("item_id", "score", "rank").iter_rows():
        print(f"{position:3d}  {item}  {score:.4f}")
