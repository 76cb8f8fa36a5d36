"""nextitem demo"""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_out, load_data
from nextitem.cli.options import DropUnknown, Overwrite, Protocol, Resume, Seed, say

EXAMPLES = "Examples: nextitem demo | nextitem demo --data my-shop/ --out runs/my-shop"


def demo(
    data: Annotated[str, typer.Option("--data", help="Dataset folder; default: the simulated shop.")] = "shop",
    out: Annotated[str, typer.Option("--out", help="Folder to write; refused where it is not empty.")] = "runs/demo",
    protocol: Protocol = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes-per-model", min=0.01, help="Stop training each model after so many minutes."),
    ] = None,
    seed: Seed = None,
    drop_unknown_items: DropUnknown = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """The main job: five recommenders, classic and generative, on one scoreboard, with a report."""
    check_out(out, resume=resume, overwrite=overwrite)
    dataset = load_data(data, drop_unknown_items=drop_unknown_items)
    from nextitem.pipeline.compare import MAIN_JOB
    from nextitem.pipeline.compare import compare as run_comparison
    from nextitem.reporting.scoreboard import print_scoreboard

    comparison = run_comparison(
        dataset, out=out, models=MAIN_JOB, protocol=protocol, minutes_per_model=minutes, seed=seed,
        drop_unknown_items=drop_unknown_items, resume=resume, overwrite=overwrite, log=say,
    )  # fmt: skip
    for customer in comparison.examples:
        print(f"\n{customer.name} had: {_listed(customer.history[-5:])}")
        print(f"  {'took next':<12}{_listed(customer.held_out[:5])}")
        for model, titles in customer.recommended.items():
            marked = [f"[{title}]" if title in customer.held_out else title for title in titles[:5]]
            print(f"  {model:<12}{_listed(marked)}")
    print()
    print_scoreboard(comparison.rows)
    print(f"report: {out}/report.html")


def _listed(titles: list[str]) -> str:
    """Titles on one line, each cut to a readable length."""
    return "; ".join(title if len(title) <= 40 else title[:39] + "…" for title in titles)
