"""Let runs and baselines serve the same simulated customers, and compare them in the long term.

Every policy meets an own copy of one world: the same customers with the same chance. Differences are paired by
customer. The folder of a simulation has settings.json, simulation.json, report.html, for each policy
policies/NAME/{visits,shown,customers}.parquet, and log, the data set that the logging policy has left behind.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from nextitem.core.errors import UserError
from nextitem.evaluation.intervals import interval, paired_difference
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.runs import Run
from nextitem.pipeline.simulating.run_policy import RunPolicy
from nextitem.reporting.simulation_report import SimulatedPolicy, write_simulation_report
from nextitem.simulation.answers import DAY, CustomerWorld
from nextitem.simulation.log import write_log
from nextitem.simulation.measures import MEASURES, bound_gap, measure_table
from nextitem.simulation.policies import OptimalLists, Policy, PopularItems, RandomItems
from nextitem.simulation.rollout import Rollout, roll_out

BASELINES = ("popularity", "optimal", "random")
MakeWorld = Callable[[], CustomerWorld]


def policy_names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: that of its folder, with a number if it is not the only one."""
    names: list[str] = []
    for run in runs:
        name = base = run.root.resolve().name or run.name
        count = 1
        while name in (*BASELINES, *names):
            count += 1
            name = f"{base}-{count}"
        names.append(name)
    return names


def simulate(
    runs: Sequence[Run],
    make_world: MakeWorld,
    *,
    out: str | Path,
    about: Mapping[str, Any],
    baselines: Sequence[str] = BASELINES,
    temperature: float = 0.0,
    logging_policy: str | None = None,
    regret_customers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> list[SimulatedPolicy]:
    """Let each run and baseline serve the customers of one world, and write what happened.

    Args:
        runs: the runs; the others are compared with the first one.
        make_world: makes the world, the same each time.
        out: folder to write.
        about: settings of the simulation, to recognise it when resuming, and for simulation.json.
        baselines: which of BASELINES serve, too.
        temperature: how much of the lists of runs and popularity is left to chance; 0: nothing.
        logging_policy: the policy whose log is written as a data set; None: the first one.
        regret_customers: number of customers whose best lists are searched; None: all.
        resume: continue an interrupted simulation; policies that were finished stay.
        overwrite: replace the contents of the folder.
        log: is called with lines of progress.

    Raises:
        UserError: a run was trained on other data, there is no such policy, or the folder may not be written.

    """
    names = [*policy_names(runs), *baselines]
    logged = logging_policy or names[0]
    if logged not in names:
        raise UserError(f"--log {logged}: no such policy; there are {', '.join(names)}")
    first_world = make_world()
    for name, run in zip(names, runs, strict=False):
        RunPolicy(name, run, first_world)  # whatever is wrong with a run is said before the first one is served
    folder = prepare_out(out, resume=resume, overwrite=overwrite)
    _check_settings(folder, {**about, "policies": names, "temperature": temperature}, resume=resume)
    for place, name in enumerate(names):
        target = folder / "policies" / name
        if (target / "figures.json").is_file():
            log(f"{name}: finished before")
            continue
        world = make_world() if place else first_world
        policy = RunPolicy(name, runs[place], world) if place < len(runs) else _baseline(name, world)
        started = time.perf_counter()
        share = 0.0 if name == OptimalLists.name else temperature
        rollout = roll_out(world, policy, temperature=share, regret_customers=regret_customers, progress=log)
        _write_policy(target, rollout, seconds=time.perf_counter() - started)
        if name == logged:
            write_log(rollout, folder / "log")
    results = [_figures(folder, name, names[0]) for name in names]
    _write_json(
        folder / "simulation.json", {**about, "measures": MEASURES, "policies": [vars(each) for each in results]}
    )
    write_simulation_report(folder / "report.html", results, MEASURES, facts=[str(about.get("world", ""))])
    return results


def _baseline(name: str, world: CustomerWorld) -> Policy:
    if name == "optimal":
        return OptimalLists(world)
    if name == "random":
        return RandomItems(world.settings.seed)
    if name == "popularity":
        tables = world.former_tables()
        ids = tables["items"].select(pl.col("item_id").cast(pl.String), row=pl.int_range(pl.len()))
        clicks = tables["interactions"].select(pl.col("item_id").cast(pl.String)).join(ids, on="item_id")
        return PopularItems(np.bincount(clicks["row"].to_numpy(), minlength=len(world.item_ids)))
    raise UserError(f"baseline {name!r}: there are {', '.join(BASELINES)}")


def _check_settings(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Write settings.json, or compare it with the one of the simulation that is resumed."""
    file = folder / "settings.json"
    values = json.loads(json.dumps(settings))
    if resume and file.is_file():
        former = json.loads(file.read_text(encoding="utf-8"))
        if former != values:
            differs = sorted(name for name in {**former, **values} if former.get(name) != values.get(name))
            raise UserError(
                f"{folder} is a simulation with other settings ({', '.join(differs)}); choose another --out"
            )
        return
    _write_json(file, values)
    _write_json(folder / "simulation.json", {"is_complete": False})  # marks the folder as one of a simulation


def _write_policy(target: Path, rollout: Rollout, *, seconds: float) -> None:
    """Write the tables of a policy; figures.json comes last, and says that they are complete."""
    target.mkdir(parents=True, exist_ok=True)
    measure_table(rollout).write_parquet(target / "customers.parquet")
    ids = pl.Series(rollout.world.user_ids)
    if rollout.visits.height:
        rollout.visits.with_columns(user_id=ids.gather(rollout.visits["customer"])).write_parquet(
            target / "visits.parquet"
        )
        items = pl.Series(rollout.world.item_ids)
        rollout.shown_items.with_columns(item_id=items.gather(rollout.shown_items["row"])).write_parquet(
            target / "shown.parquet"
        )
    figures = {
        "visits": rollout.visits.height,
        "bound_gap": bound_gap(rollout),
        "active": active_shares(rollout),
        "seconds": round(seconds, 2),
    }
    _write_json(target / "figures.json", figures)


def active_shares(rollout: Rollout) -> list[float]:
    """Return the share of customers who are active at the begin of each day, and at the end: who come back later."""
    world, num_days = rollout.world, int(np.ceil((rollout.world.end - rollout.world.start) / DAY))
    last = np.where(np.isfinite(rollout.next_times), np.inf, 0.0)
    if rollout.visits.height:
        latest = rollout.visits.group_by("customer").agg(pl.col("time").max())
        who = latest["customer"].to_numpy()
        last[who] = np.maximum(last[who], latest["time"].to_numpy())
    return [float((last >= world.start + day * DAY).mean()) for day in range(num_days + 1)]


def _figures(folder: Path, name: str, first: str) -> SimulatedPolicy:
    """Return the figures of a policy from its files."""
    table, other = (pl.read_parquet(folder / "policies" / each / "customers.parquet") for each in (name, first))
    measures, differences = {}, {}
    for measure in MEASURES:
        own, theirs = (torch.from_numpy(each[measure].to_numpy().copy()) for each in (table, other))
        low, high = interval(own)
        measures[measure] = {"value": float(own.nanmean()), "low": low, "high": high}
        if name != first:
            difference = paired_difference(own, theirs)
            differences[measure] = {"value": difference.mean, "low": difference.low, "high": difference.high}
    figures = json.loads((folder / "policies" / name / "figures.json").read_text(encoding="utf-8"))
    return SimulatedPolicy(name, measures, differences, **figures)


def _write_json(file: Path, values: Any) -> None:
    """Write JSON in one step; NaN and infinity become null."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(_finite(values), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not np.isfinite(values) else values
