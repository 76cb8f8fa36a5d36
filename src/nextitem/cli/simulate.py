"""The command `nextitem simulate`: customers of the simulated shop visit a server."""

from __future__ import annotations

import asyncio
import os
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from nextitem.cli.options import log
from nextitem.core.errors import UserError

EXAMPLES = (
    "Examples: nextitem simulate http://localhost:8000 --customers 1000 --days 30 --out traffic | "
    "nextitem report --live nextitem-impressions"
)


def simulate(
    url: Annotated[str, typer.Argument(help="Address of a server of runs that were trained with --data shop.")],
    customers: Annotated[int, typer.Option("--customers", min=1, help="Number of customers.")] = 1000,
    days: Annotated[float, typer.Option("--days", min=0.01, help="Duration in days of simulated time.")] = 30.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of all chance.")] = 0,
    new_share: Annotated[
        float, typer.Option("--new-share", min=0, max=1, help="Share of customers whom the data set does not contain.")
    ] = 0.2,
    browsing: Annotated[
        float, typer.Option("--browsing", min=0, help="Mean number of items that are found at a visit without a list.")
    ] = 0.0,
    drift: Annotated[
        float, typer.Option("--drift", min=0, max=1, help="Share of tastes and popularity that changes meanwhile.")
    ] = 0.0,
    new_items: Annotated[int, typer.Option("--new-items", min=0, help="Number of items that arrive meanwhile.")] = 0,
    items: Annotated[
        str | None,
        typer.Option("--items", help="Folder for items.parquet with the items so far: nextitem update --items."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0.01, help="Time in which the days pass; default: as fast as the server can."),
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="Token of the server; default: the variable NEXTITEM_TOKEN.")
    ] = None,
    connections: Annotated[
        int, typer.Option("--connections", min=1, max=1000, help="Largest number of requests at the same time.")
    ] = 16,
    out: Annotated[
        str | None, typer.Option("--out", help="Folder for truth.json and shown.parquet: the true rates of each model.")
    ] = None,
) -> None:
    """Let simulated customers visit a server: they look at lists, click, buy, and come back sooner after good ones.

    Time is simulated: it begins at the end of the data, and a day takes as long as the server needs, or --minutes say.
    """
    if find_spec("httpx2") is None:
        raise UserError("simulating needs the package httpx2: pip install 'nextitem[serve]'")
    from nextitem.core.config import parse
    from nextitem.data.shop.shop import generate_shop
    from nextitem.simulation.play import Playthrough, check_server, client_for, play, summary
    from nextitem.simulation.world import World, WorldConfig

    settings: dict[str, Any] = {"customers": customers, "days": days, "seed": seed, "new_share": new_share}
    settings |= {"browsing": browsing, "drift": drift, "new_items": new_items}
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
