"""nextitem data describe | diagnose | download"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from nextitem.cli.options import DropUnknown, Overwrite, Resume, say

app = typer.Typer(
    help="Validate, summarise and diagnose a data set; download a public one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Folder = Annotated[str, typer.Argument(help="Dataset folder, or 'shop'.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog="Example: nextitem data describe my-shop/")
def describe(folder: Folder, as_json: AsJson = False, drop_unknown_items: DropUnknown = False) -> None:
    """Validates a data set and summarises it."""
    from nextitem.data.describe import describe as summarise
    from nextitem.data.readers import load_dataset

    facts = summarise(load_dataset(folder, drop_unknown_items=drop_unknown_items))
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False, default=str))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        shown = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else value
        print(f"{name.replace('_', ' '):<{width + 2}}{shown}")


@app.command(epilog="Example: nextitem data diagnose my-shop/")
def diagnose(folder: Folder, as_json: AsJson = False, drop_unknown_items: DropUnknown = False) -> None:
    """Says what this log can show: which comparisons of models on it mean something."""
    from nextitem.data.readers import load_dataset
    from nextitem.evaluation.diagnose import diagnose as examine

    found = examine(load_dataset(folder, drop_unknown_items=drop_unknown_items))
    print(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if as_json else found.text())


@app.command(epilog="Example: nextitem data download ml-100k --out data/ml-100k")
def download(
    name: Annotated[
        str,
        typer.Argument(
            help="ml-100k, ml-1m, ml-10m, ml-20m, ml-25m, ml-32m, amazon14-beauty, amazon14-sports, amazon14-toys or "
            "online-retail."
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="Dataset folder to write.")],
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Downloads a public data set from its official address; for files that you have, see nextitem import."""
    from nextitem.data.download import download as fetch

    fetch(name, out, resume=resume, overwrite=overwrite, say=say)
    print(out)
