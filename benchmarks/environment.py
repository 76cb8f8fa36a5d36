"""What do models do to customers in the long term, in a world whose best list is known?

    python benchmarks/environment.py [--models item-graph sasrec | --runs RUN ...] [--seeds 0 1 2]
        [--customers 1000] [--days 60] [--explore 0] [--set churn=0.3]

Trains the models on the simulated shop with their default recipes (or takes --runs), and lets each of them, and the
baselines popularity, optimal and random, serve the same customers: `nextitem simulate`, for each seed of the world. All
policies of a seed meet the same customers with the same chance. Prints for each policy and seed the long-term measures,
and what each has more than the first run, as means over the seeds with the intervals of all customers of all seeds.
--keep FOLDER keeps the folders of the simulations.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import torch
from measure import Results, Stopwatch, parser

import nextitem as ni
from nextitem.core.config import apply_overrides
from nextitem.evaluation.intervals import interval, paired_difference
from nextitem.pipeline.simulating.simulate import BASELINES, policy_names, simulate
from nextitem.pipeline.simulating.worlds import world_of
from nextitem.simulation.measures import MEASURES


def runs_of(arguments: argparse.Namespace, folder: Path) -> list[Any]:
    """Return the runs: those of --runs, or new ones of the models."""
    if arguments.runs:
        return [ni.load_run(run) for run in arguments.runs]
    return [ni.train(model, "shop", out=folder / model, progress=False) for model in arguments.models]


def measure(arguments: argparse.Namespace, folder: Path, results: Results) -> None:
    """Simulate each seed, and add the rows."""
    runs = runs_of(arguments, folder)
    names = [*policy_names(runs), *arguments.baselines]
    tables: dict[str, list[pl.DataFrame]] = {name: [] for name in names}
    for seed in arguments.seeds:
        settings = {"customers": arguments.customers, "days": arguments.days, "seed": seed}
        make_world, about = world_of(runs[0], apply_overrides(settings, arguments.overrides))
        out = folder / f"seed-{seed}"
        with Stopwatch() as watch:
            policies = simulate(
                runs,
                make_world,
                out=out,
                about=about,
                baselines=arguments.baselines,
                temperature=arguments.explore,
                regret_customers=arguments.regret_customers,
                resume=arguments.keep is not None,
            )
        for policy in policies:
            tables[policy.name].append(pl.read_parquet(out / "policies" / policy.name / "customers.parquet"))
            figures = {name: round(figure["value"], 4) for name, figure in policy.measures.items()}
            row = {"policy": policy.name, "seed": seed, **figures, "visits": policy.visits}
            row |= {"bound_gap": round(policy.bound_gap, 4), "seconds": policy.seconds}
            results.add_printed("policy", row)
        results.add_printed("seed", {"seed": seed, "seconds": round(watch.seconds, 1)})
    first = pl.concat(tables[names[0]])
    for name in names:
        table = pl.concat(tables[name])
        for measure_name in MEASURES:
            own, theirs = (torch.from_numpy(part[measure_name].to_numpy().copy()) for part in (table, first))
            row = {"policy": name, "measure": measure_name, "value": round(float(own.nanmean()), 4)}
            row["interval"] = [round(bound, 4) for bound in interval(own)]
            if name != names[0]:
                difference = paired_difference(own, theirs)
                row["more"] = [round(bound, 4) for bound in (difference.mean, difference.low, difference.high)]
            results.add_printed("all seeds", row)


def main() -> None:
    options = parser(__doc__, customers=1000, regret_customers=250)
    options.add_argument("--models", nargs="+", default=["item-graph", "sasrec"], help="models to train")
    options.add_argument("--runs", nargs="+", help="runs on --data shop, instead; others are compared with the first")
    options.add_argument("--baselines", nargs="*", default=list(BASELINES))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the world")
    options.add_argument("--days", type=float, default=60.0)
    options.add_argument("--explore", type=float, default=0.0, help="temperature of the lists")
    options.add_argument("--set", dest="overrides", nargs="+", default=[], help="settings of the customers")
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="folder that keeps all files, and is resumed")
    arguments = options.parse_args()
    results = Results(arguments)
    if arguments.keep is not None:
        measure(arguments, arguments.keep, results)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder), results)


if __name__ == "__main__":
    main()
