"""Options that several commands share, and how they speak to the user."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

Out = Annotated[str, typer.Option("--out", help="Folder to write; refused where it is not empty.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")]
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
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, shuffling and sampling.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, for example --set training.max_epochs=5; may be repeated."),
]


def say(text: str) -> None:
    """Prints a line of progress on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)
