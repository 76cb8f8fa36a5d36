"""Options that several commands share, and how they speak to the user."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Annotated

import typer

from nextitem.core.errors import UserError

Out = Annotated[str, typer.Option("--out", help="Folder to write; refused where it is not empty.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume what was interrupted.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in --out.")]
Data = Annotated[str, typer.Option("--data", help="Dataset folder, or 'shop' for the simulated shop.")]
DropUnknown = Annotated[
    bool, typer.Option("--drop-unknown-items", help="Leave out events of items that the items file lacks.")
]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="time, leave-one-out, session, user-split, published or impressions; default: by the data.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, shuffling and sampling.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, for example --set training.max_epochs=5; may be repeated."),
]


def say(text: str) -> None:
    """Prints a line of progress on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def lines_of(file: str) -> list[str]:
    """The lines of a text file without spaces at their ends; empty lines and a byte-order mark are skipped."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def ids_of(text: str) -> list[str]:
    """Item ids separated by commas; an id that contains a comma stands in double quotes."""
    return [part.strip() for part in next(csv.reader([text], skipinitialspace=True), []) if part.strip()]
