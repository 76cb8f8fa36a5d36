"""Options that several commands share, and helpers to read values and to log."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nextitem.core.errors import UserError

Out = Annotated[str, typer.Option("--out", help="Folder to write; refused if it is not empty.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted command.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Overwrite the contents of --out.")]
Data = Annotated[str, typer.Option("--data", help="Dataset folder, or 'shop' for the simulated shop.")]
DropUnknown = Annotated[
    bool, typer.Option("--drop-unknown-items", help="Skip events of items that are not in the items file.")
]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="How to split the data: time, leave-one-out, session, user-split, published or impressions; default: "
        "that of the data (see: nextitem data describe).",
    ),
]
Device = Annotated[str, typer.Option("--device", help="Where to compute: auto, cpu or cuda.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of initial weights, shuffling and sampling.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting, for example --set training.max_epochs=5; may be repeated."),
]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}  # seconds


def log(text: str) -> None:
    """Print a line of progress or a note on stderr, as stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def write_json(values: Any, file: str | None) -> bool:
    """Print values as JSON if `file` is "-", otherwise write them to that file, and return whether they were printed.

    Nothing is done if `file` is None.
    """
    if file is None:
        return False
    text = json.dumps(values, indent=2, ensure_ascii=False)
    if file == "-":
        print(text)
        return True
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(text + "\n", encoding="utf-8")
    return False


def lines_of(file: str) -> list[str]:
    """Return the lines of a text file, stripped; empty lines and a byte-order mark are skipped.

    Raises UserError if the file is not UTF-8.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def ids_of(text: str) -> list[str]:
    """Return item ids that are separated by commas; an id that contains a comma is in double quotes."""
    return [part.strip() for part in next(csv.reader([text], skipinitialspace=True), []) if part.strip()]


def seconds_of(text: str) -> float:
    """Return a period such as 90s, 30m, 12h, 7d or 2w in seconds. Raises UserError if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UserError(f"period {text!r}: write a number and a unit, such as 30m, 12h or 7d")
    return float(match[1]) * UNITS[match[2]]
