"""The command `nextitem demo`: a comparison of seven recommenders."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_out, load_data
from nextitem.cli.options import DropUnknown, Overwrite, Protocol, Resume, Seed, log

EXAMPLES = "Examples: nextitem demo | nextitem demo --data my-shop/ --out runs/my-shop"


def demo(
    data: Annotated[str, typer.Option("--data", help="Dataset folder, or 'shop' for the simulated shop.")] = "shop",
    out: Annotated[str, typer.Option("--out", help="Folder to write; refused if it is not empty.")] = "runs/demo",
    protocol: Protocol = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes-per-model", min=0.01, help="Maximum training time of each model, in minutes."),
    ] = None,
    seed: Seed = None,
    drop_unknown_items: DropUnknown = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train and compare seven recommenders on one data set.

    They are classic models, a cascade, and generative models: popularity, item-cf, item-graph, sasrec, cascade, tiger,
    and depth-decoder with and without its guide. Prints a scoreboard and writes a report.
    """
    check_out(out, resume=resume, overwrite=overwrite)
    dataset = load_data(data, drop_unknown_items=drop_unknown_items)
    from nextitem.pipeline.compare import MAIN_JOB, main_job_settings
    from nextitem.pipeline.compare import compare as run_comparison
    from nextitem.reporting.scoreboard import print_scoreboard

    comparison = run_comparison(
        dataset, out=out, models=MAIN_JOB, settings=main_job_settings(minutes), protocol=protocol,
        minutes_per_model=minutes, seed=seed, drop_unknown_items=drop_unknown_items, resume=resume,
        overwrite=overwrite, log=log,
    )  # fmt: skip
    width = max(len("held-out items"), *(len(row.name) for row in comparison.rows)) + 2
    for customer in comparison.examples:
        print(f"\n{customer.name}")
        print(f"  {'history':<{width}}{_one_line(customer.history[-5:])}")
        print(f"  {'held-out items':<{width}}{_one_line(customer.held_out[:5])}")
        for model, items in customer.recommended.items():
            marked_titles = [f"[{item.title}]" if item.is_hit else item.title for item in items[:5]]
            print(f"  {model:<{width}}{_one_line(marked_titles)}")
    print()
    print_scoreboard(comparison.rows)
    print(f"report: {out}/report.html")


def _one_line(titles: list[str]) -> str:
    """Return titles on one line, each cut to 40 characters."""
    return "; ".join(title if len(title) <= 40 else title[:39] + "…" for title in titles)
