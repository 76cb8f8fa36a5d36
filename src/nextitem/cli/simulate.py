"""The command `nextitem simulate`: simulated customers visit a server, or are served by runs in process."""

from __future__ import annotations

import asyncio
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from nextitem.cli.options import Device, Overwrite, Resume, log, write_json
from nextitem.core.errors import UserError

EXAMPLES = (
    "Examples: nextitem simulate runs/item-graph runs/sasrec --days 60 --out simulated | "
    "nextitem simulate http://localhost:8000 --customers 1000 --days 30 --out traffic | "
    "nextitem report --live nextitem-impressions"
)
ADDRESS = ("http://", "https://")


def simulate(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Folders of runs, which serve the same customers one after the other; or the address of a server.",
            metavar="RUN...|URL",
        ),
    ],
    customers: Annotated[int, typer.Option("--customers", min=1, help="Number of customers.")] = 1000,
    days: Annotated[
        float | None,
        typer.Option("--days", min=0.01, help="Duration in days of simulated time; default: 60, with a server 30."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of all chance.")] = 0,
    new_share: Annotated[
        float, typer.Option("--new-share", min=0, max=1, help="Share of customers whom the data set does not contain.")
    ] = 0.2,
    drift: Annotated[
        float | None,
        typer.Option(
            "--drift", min=0, max=1, help="Share of tastes and popularity that changes; default: 0.3, with a server 0."
        ),
    ] = None,
    new_items: Annotated[
        int | None,
        typer.Option(
            "--new-items", min=0, help="Number of items that arrive meanwhile; default: 200, with a server 0."
        ),
    ] = None,
    baselines: Annotated[
        str, typer.Option("--baselines", help="Baselines that serve, too, separated by commas; none: no baseline.")
    ] = "popularity,optimal,random",
    explore: Annotated[
        float,
        typer.Option("--explore", min=0, help="Temperature of the lists of runs, as of nextitem serve; 0: no chance."),
    ] = 0.0,
    logging_policy: Annotated[
        str | None, typer.Option("--log", help="Policy whose log is written to OUT/log; default: the first run.")
    ] = None,
    regret_customers: Annotated[
        int, typer.Option("--regret-customers", min=0, help="Number of customers whose best lists are searched.")
    ] = 250,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of the customers of runs, for example --set churn=0.3."),
    ] = None,
    browsing: Annotated[
        float,
        typer.Option("--browsing", min=0, help="With a server: mean number of items found at a visit without a list."),
    ] = 0.0,
    items: Annotated[
        str | None,
        typer.Option("--items", help="With a server: folder for items.parquet with the items so far."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0.01, help="With a server: time in which the days pass; default: at full speed."),
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="Token of the server; default: the variable NEXTITEM_TOKEN.")
    ] = None,
    connections: Annotated[
        int, typer.Option("--connections", min=1, max=1000, help="Largest number of requests to a server at once.")
    ] = 16,
    out: Annotated[
        str | None, typer.Option("--out", help="Folder to write: figures, what was shown, with runs also a data set.")
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="With runs: file for the figures as JSON; -: print them.")
    ] = None,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Let simulated customers look at lists, click, buy, and come back sooner after good ones.

    With runs: each run and baseline serves the same customers, and is measured in the long term. With a server: time
    begins at the end of the data, and a day takes as long as the server needs, or --minutes say.
    """
    urls = [target for target in targets if target.startswith(ADDRESS)]
    if urls and len(targets) > 1:
        raise UserError("pass one address of a server, or folders of runs")
    common: dict[str, Any] = {"customers": customers, "seed": seed, "new_share": new_share}
    common |= {
        name: value for name, value in (("days", days), ("drift", drift), ("new_items", new_items)) if value is not None
    }
    if urls:
        _visit_server(urls[0], {**common, "browsing": browsing}, token, connections, minutes, items, out)
        return
    for target in targets:
        if ":" in target and not Path(target).exists():
            raise UserError(f"{target}: write the address of a server as http://localhost:8000")
    if out is None:
        raise UserError("simulate RUN: name a folder with --out")
    names = [name.strip() for name in baselines.split(",") if name.strip() and name.strip() != "none"]
    from nextitem.core.config import apply_overrides
    from nextitem.pipeline.runs import load_run
    from nextitem.pipeline.simulating.simulate import simulate as simulate_runs
    from nextitem.pipeline.simulating.worlds import world_of
    from nextitem.reporting.simulation_report import print_simulation

    runs = [load_run(target, device=device) for target in targets]
    make_world, about = world_of(runs[0], apply_overrides(common, settings or []), log=log)
    policies = simulate_runs(
        runs,
        make_world,
        out=out,
        about=about,
        baselines=names,
        temperature=explore,
        logging_policy=logging_policy,
        regret_customers=regret_customers,
        resume=resume,
        overwrite=overwrite,
        log=log,
    )
    if not write_json([vars(policy) for policy in policies], json_file):
        print_simulation(policies)
        print(f"report: {out}/report.html, data set: {out}/log")


def _visit_server(
    url: str,
    settings: dict[str, Any],
    token: str | None,
    connections: int,
    minutes: float | None,
    items: str | None,
    out: str | None,
) -> None:
    """Let the customers visit a server."""
    if find_spec("httpx2") is None:
        raise UserError("simulating needs the package httpx2: pip install 'nextitem[serve]'")
    from nextitem.core.config import parse
    from nextitem.data.shop.shop import generate_shop
    from nextitem.simulation.play import Playthrough, check_server, client_for, play, summary
    from nextitem.simulation.world import World, WorldConfig

    config = parse(WorldConfig, settings, where="simulate")
    client = client_for(url, token=token or os.environ.get("NEXTITEM_TOKEN"), connections=connections)
    world = World(generate_shop(), config)
    record = Playthrough(world)

    async def run() -> None:
        async with client:
            log(f"models: {', '.join(await check_server(client, world))}")
            options: dict[str, Any] = {"minutes": minutes, "items": items, "progress": log}
            await play(world, client, connections=connections, playthrough=record, **options)

    try:
        asyncio.run(run())
    finally:
        if out is not None and record.num_visits:
            record.write(out)
            log(f"truth: {out}/truth.json" + ("" if record.is_complete else " (up to the interruption)"))
    for line in summary(record.truth()):
        print(line)
