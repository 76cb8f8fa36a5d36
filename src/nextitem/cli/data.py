"""The commands `nextitem data describe`, `diagnose`, `prepare` and `download`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from nextitem.cli.options import DropUnknown, Overwrite, Resume, log

app = typer.Typer(
    help="Check, diagnose or download a data set.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Folder = Annotated[str, typer.Argument(help="Dataset folder, or 'shop'.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog="Example: nextitem data describe my-shop/")
def describe(folder: Folder, as_json: AsJson = False, drop_unknown_items: DropUnknown = False) -> None:
    """Validate a data set and print a summary of it."""
    from nextitem.data.describe import describe as summarise
    from nextitem.data.readers import load_dataset

    facts = summarise(load_dataset(folder, drop_unknown_items=drop_unknown_items))
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False, default=str))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        text = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else value
        print(f"{name.replace('_', ' '):<{width + 2}}{text}")


@app.command(epilog="Example: nextitem data diagnose my-shop/")
def diagnose(folder: Folder, as_json: AsJson = False, drop_unknown_items: DropUnknown = False) -> None:
    """Measure which comparisons of models the data support."""
    from nextitem.data.readers import load_dataset
    from nextitem.evaluation.diagnose import diagnose as run_diagnosis

    diagnosis = run_diagnosis(load_dataset(folder, drop_unknown_items=drop_unknown_items))
    print(json.dumps(diagnosis.to_json(), indent=2, ensure_ascii=False) if as_json else diagnosis.text())


@app.command(epilog="Example: nextitem data prepare huge-log/ --out sorted-log/")
def prepare(
    folder: Annotated[str, typer.Argument(help="Dataset folder with a log in Parquet.")],
    out: Annotated[str, typer.Option("--out", help="Dataset folder to write; refused if it exists.")],
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Number of processes on this machine; default: all cores.")
    ] = None,
    drop_unknown_items: DropUnknown = False,
) -> None:
    """Check a log that is larger than memory and sort it by users, in parts, with Ray (extra `ray`)."""
    from nextitem.data.prepare_log import prepare_log

    num_parts = prepare_log(folder, out, workers=workers, drop_unknown_items=drop_unknown_items)
    print(f"{out}: the log in {num_parts:,} parts, sorted by users")


@app.command(epilog="Example: nextitem data download ml-100k --out data/ml-100k")
def download(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of the data set: ml-100k, ml-1m, ml-10m, ml-20m, ml-25m, ml-32m, amazon14-beauty, "
            "amazon14-sports, amazon14-toys or online-retail."
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="Dataset folder to write; refused if it is not empty.")],
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Download a public data set.

    Files come from its official address. For files that you already have, see nextitem import.
    """
    from nextitem.data.download import download as fetch

    fetch(name, out, resume=resume, overwrite=overwrite, log=log)
    print(out)
