"""nextitem tokenize"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextitem.cli.options import Data, DropUnknown, Overwrite, Protocol, Resume, Seed, Set, say
from nextitem.core.errors import UserError

if TYPE_CHECKING:
    from nextitem.core.identifiers import IdentifierTable

EXAMPLES = (
    "Examples: nextitem tokenize residual-kmeans --data shop --out ids | "
    "nextitem tokenize residual-kmeans --data DIR --out ids --append"
)


def tokenize(
    name: Annotated[str, typer.Argument(help="A tokenizer's name; see: nextitem models --kind tokenizer.")],
    data: Data,
    out: Annotated[str, typer.Option("--out", help="Folder of the semantic IDs.")],
    protocol: Protocol = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add codes for new items to the table in --out; old codes stay.")
    ] = False,
    recipe: Annotated[str | None, typer.Option("--recipe", help="A .toml file, or a shipped recipe.")] = None,
    seed: Seed = None,
    settings: Set = None,
    drop_unknown_items: DropUnknown = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Turns items into semantic IDs and reports their quality."""
    from nextitem.data.protocols import make_split
    from nextitem.data.readers import load_dataset
    from nextitem.evaluation.scoreboard import print_quality
    from nextitem.pipeline import identify
    from nextitem.pipeline.folders import prepare_out
    from nextitem.pipeline.recipe import find, resolve

    if append:
        useless = {"--recipe": recipe, "--seed": seed, "--set": settings or None, "--overwrite": overwrite or None}
        given = [option for option, value in useless.items() if value is not None]
        if given:
            raise UserError(f"--append goes on as the table was made: it does not take {', '.join(given)}")
        dataset = load_dataset(data, drop_unknown_items=drop_unknown_items)
        _tell(out, identify.append(dataset.catalog, Path(out), tokenizer_name=name, say=say))
        return
    dataset = load_dataset(data, drop_unknown_items=drop_unknown_items)
    flags: dict[str, Any] = {"data": {"path": data}, "model": {}, "tokenizer": {"name": name}}
    flags.update({"seed": seed} if seed is not None else {})
    layers = [find(recipe)] if recipe is not None else []
    settled = resolve([*layers, ("the command line", flags)], overrides=settings or [], kind="tokenizer")
    if settled.tokenizer is None or settled.tokenizer["name"] != name:
        raise UserError(f"recipe {recipe} is not for {name}")
    split = make_split(dataset, protocol, seed=settled.seed)
    folder = prepare_out(out, resume=resume, overwrite=overwrite)
    table = identify.tokenize(split.train, settled, out=folder, say=say)
    print_quality(table)
    _tell(out, table)


def _tell(out: str, table: IdentifierTable) -> None:
    sizes = f"{table.num_levels} levels {table.codebook_sizes}"
    print(f"{out}: {table.num_items:,} items, {sizes}, version {table.version}")
