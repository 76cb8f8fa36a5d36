"""The command `nextitem import`: dataset folders and semantic IDs from files of other projects."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.options import DropUnknown, Overwrite, Resume, log
from nextitem.core.errors import UserError
from nextitem.data.importers.names import DATASETS, IDENTIFIERS

EXAMPLES = (
    "Examples: nextitem import ml-1m ml-1m.zip --out data/ml-1m | nextitem import amazon14 reviews_Beauty_5.json.gz "
    "meta_Beauty.json.gz --out data/beauty | nextitem import letter-ids Beauty.index.json --data data/beauty --out ids"
)


def import_data(
    name: Annotated[
        str | None, typer.Argument(help="Name of the data set or format; see: nextitem import --list.")
    ] = None,
    files: Annotated[
        list[str] | None, typer.Argument(help="The files as downloaded, an archive of them, or their folder.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="Folder to write; refused if it is not empty.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="For semantic IDs: the dataset folder with the items that they belong to."),
    ] = None,
    item_ids: Annotated[
        str | None,
        typer.Option("--item-ids", help="For semantic IDs by item number: a file with lines of item id, tab, number."),
    ] = None,
    drop_unknown_items: DropUnknown = False,
    show_list: Annotated[
        bool, typer.Option("--list", help="List the names, and the files that each of them needs.")
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert files of other projects to a dataset folder.

    Semantic IDs become a folder for train --ids. Needs no network.
    """
    if show_list or name is None:
        print(_listing())
        return
    if out is None:
        raise UserError(f"nextitem import {name}: say where to write it with --out DIR")
    if name in IDENTIFIERS:
        _import_identifiers(name, files or [], out, data, item_ids, drop_unknown_items, resume, overwrite)
        return
    if data is not None or item_ids is not None:
        raise UserError(f"--data and --item-ids are for semantic IDs ({', '.join(IDENTIFIERS)}), not for {name}")
    from nextitem.data.importers.importing import import_dataset

    print(import_dataset(name, files or [], out, resume=resume, overwrite=overwrite, log=log))


def _import_identifiers(
    name: str,
    files: list[str],
    out: str,
    data: str | None,
    item_ids: str | None,
    drop_unknown_items: bool,
    resume: bool,
    overwrite: bool,
) -> None:
    """Import semantic IDs and print their quality."""
    if len(files) != 1:
        raise UserError(f"nextitem import {name}: give one file: {IDENTIFIERS[name].expects}")
    if data is None:
        raise UserError(f"nextitem import {name}: say whose items they are with --data DIR")
    from nextitem.data.readers import load_dataset
    from nextitem.pipeline.foreign_ids import import_identifiers
    from nextitem.reporting.scoreboard import print_quality

    table = import_identifiers(
        files[0],
        load_dataset(data, drop_unknown_items=drop_unknown_items),
        out,
        form=name.removesuffix("-ids"),
        item_ids=item_ids,
        resume=resume,
        overwrite=overwrite,
        log=log,
    )
    print_quality(table)
    print(f"{out}: {table.num_items:,} items, {table.num_levels} levels {table.codebook_sizes}")


def _listing() -> str:
    """Return two lines for each name: the files that it needs, and what they are converted to."""
    rows = [(name, entry.expects, entry.becomes) for name, entry in (DATASETS | IDENTIFIERS).items()]
    width = max(len(name) for name, _, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{expects}\n{'':<{width}}-> {becomes}" for name, expects, becomes in rows)
