"""The command `nextitem serve`: an HTTP server for the models of one or more runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Device, log, seconds_of
from nextitem.core.errors import UserError

if TYPE_CHECKING:
    from nextitem.pipeline.runs import Run
    from nextitem.serving.service import Service
    from nextitem.serving.tenants import Tokens
    from nextitem.serving.updater import Updates

EXAMPLES = (
    "Examples: nextitem serve runs/sasrec --port 8000 | nextitem serve runs/sasrec runs/tiger --weight tiger=0.1 "
    "--store postgresql://me@db:5432/events | nextitem serve runs/sasrec --shadow runs/tiger --explore 0.3"
)
TOKENS = "NEXTITEM_TOKENS"
LOCAL = ("127.0.0.1", "::1", "localhost")  # addresses that only this machine reaches
# Seconds after which a thread that computes lets another one run. The thread of a model computes in Python for most of
# a batch, and the thread that reads and writes connections waits for it at each system call: 0.005, the default of
# Python, costs a quarter to a third of the requests per second.
SWITCH_SECONDS = 0.0003
# uvloop accepts one connection in each turn of the loop. While a model computes, turns are slow, and under overload
# clients waited for seconds before the server knew of them. Otherwise both loops are equally fast here.
LOOP: Literal["asyncio"] = "asyncio"


def serve(
    runs: Annotated[list[str], typer.Argument(help="Folders of runs; users are shared out among them.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; 0.0.0.0: all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0: any free one.")] = 8000,
    store: Annotated[
        str,
        typer.Option("--store", help="Where events are stored: sqlite:///FILE, redis://..., or postgresql://..."),
    ] = "sqlite:///nextitem-events.db",
    namespace: Annotated[
        str, typer.Option("--namespace", help="Name of the default tenant in a shared store.")
    ] = "default",
    data: Annotated[
        str | None, typer.Option("--data", help="Dataset folder with the histories; default: that of the run.")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight", help="Share of the users of a run, NAME=0.9; the others share the rest. May be repeated."
        ),
    ] = None,
    shadow: Annotated[
        list[str] | None,
        typer.Option("--shadow", help="Run that gets copies of the requests; nobody sees its lists. May be repeated."),
    ] = None,
    explore: Annotated[
        float,
        typer.Option("--explore", help="Temperature with which lists are sampled from the best items; 0: not at all."),
    ] = 0.0,
    deadline: Annotated[float, typer.Option("--deadline", help="Seconds until a request gets a fallback list.")] = 2.0,
    max_queue: Annotated[
        int, typer.Option("--max-queue", help="Requests that wait for a model; more are refused (429).")
    ] = 512,
    max_wait: Annotated[
        float | None,
        typer.Option(
            "--max-wait",
            help="Seconds within which a request must be able to expect its answer; others are refused (429). "
            "Default: the time of three full batches.",
        ),
    ] = None,
    impressions: Annotated[
        str, typer.Option("--impressions", help="Folder of the log of recommended lists, in Parquet; none: no log.")
    ] = "nextitem-impressions",
    sync_impressions: Annotated[
        bool, typer.Option("--sync-impressions", help="Answer only after the list is on disk in that log.")
    ] = False,
    log_format: Annotated[
        str, typer.Option("--log-format", help="text: warnings only; json: one JSON object a request and a warning.")
    ] = "text",
    update_every: Annotated[
        str | None,
        typer.Option(
            "--update-every",
            help="Run `nextitem update` from the events of the store so often, such as 10m or 6h, beside the server.",
        ),
    ] = None,
    update_runs: Annotated[
        list[str] | None,
        typer.Option("--update", help="Name of a run to update; the others stay as they are. May be repeated."),
    ] = None,
    update_items: Annotated[
        str | None,
        typer.Option("--update-items", help="Folder whose items file has new items; it is read at each update."),
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(
            "--replicas", min=1, help="Processes that answer the API and the page, by Ray Serve (extra `ray`)."
        ),
    ] = 1,
    device: Device = "auto",
) -> None:
    """Serve recommendations over HTTP, and take events that count at once.

    The server describes its API at /openapi.json. If the environment variable NEXTITEM_TOKENS contains tokens,
    separated by commas, every request except those for health must send one of them (Authorization: Bearer TOKEN).
    TENANT=TOKEN gives a tenant a token of its own: it sees nothing of the others. New versions of a run (RUN/current)
    are taken into use without a stop.
    """
    folders, shadows = named(runs), named(shadow or [])
    for name in set(folders) & set(shadows):
        raise UserError(f"a run and a shadow are called {name}; rename one of the folders")
    if log_format not in ("text", "json"):
        raise UserError(f"--log-format {log_format}: choose text or json")
    for package in ("fastapi", "uvicorn", "prometheus_client", "orjson"):
        if find_spec(package) is None:
            raise UserError(f"serving needs the package {package}: pip install 'nextitem[serve]'")
    from nextitem.core.config import parse
    from nextitem.serving.assignment import shares_of
    from nextitem.serving.config import ServiceConfig
    from nextitem.serving.tenants import Tokens

    values = {"max_queue": max_queue, "max_wait": max_wait, "deadline_seconds": deadline, "explore": explore}
    config = parse(ServiceConfig, values, where="nextitem serve")
    tokens = Tokens(os.environ.get(TOKENS, ""), default=namespace)
    weights = weights_of(weight or [])
    shares_of(list(folders), weights)
    updates = updates_of(folders, update_every, update_runs or [], update_items)
    shows_users = bool(tokens) or host in LOCAL
    if replicas > 1:
        if port == 0:
            raise UserError("--port 0: replicas need a fixed port; name one")
        if log_format != "text":
            raise UserError(f"--log-format {log_format}: Ray adds a prefix to the lines of replicas; choose text")
        from nextitem.serving.replicas import ReplicaSettings, serve_replicas

        settings = ReplicaSettings(
            {name: str(folder.resolve()) for name, folder in folders.items()},
            store=store,
            namespace=namespace,
            data=str(Path(data).resolve()) if data is not None and Path(data).is_dir() else data,
            tokens=os.environ.get(TOKENS, ""),
            impressions=None if impressions == "none" else str(Path(impressions).resolve()),
            is_synced=sync_impressions,
            device=device,
            service=config,
            weights=weights,
            shadows={name: str(folder.resolve()) for name, folder in shadows.items()},
            shows_users=shows_users,
        )
        serve_replicas(settings, num_replicas=replicas, host=host, port=port, log=log, updates=updates)
        return

    from nextitem.serving.logs import start_logging
    from nextitem.serving.tenants import open_tenant

    start_logging("json" if log_format == "json" else "text")
    lists = None if impressions == "none" else Path(impressions)
    all_tenants = [
        open_tenant(store, name, lists, is_synced=sync_impressions, has_shadows=bool(shadows), is_default=not number)
        for number, name in enumerate(tokens.tenants())
    ]
    from nextitem.pipeline.runs import load_run
    from nextitem.serving.service import Service

    def open_run(folder: Path) -> Run:
        log(f"loading {folder} ...")
        run = load_run(folder, device=device)
        return run if data is None else run.use_data(data)

    service = Service(
        {name: open_run(folder) for name, folder in folders.items()},
        all_tenants,
        config,
        weights=weights,
        shadows={name: open_run(folder) for name, folder in shadows.items()},
    )
    service.warm_up()
    service.watch({**folders, **shadows}, open_run)
    if updates is not None:
        service.update_with(updates.updater(store, namespace=namespace))
    listen(service, tokens, host=host, port=port, shows_users=shows_users)


def named(runs: Sequence[str]) -> dict[str, Path]:
    """Return folders of runs by the names of their models. Raises UserError if one is no run, or two have one name."""
    names: dict[str, Path] = {}
    for run in runs:
        check_run(run)
        name = Path(run).resolve().name
        if name in names:
            raise UserError(f"two runs are called {name}: {names[name]} and {run}; rename one of the folders")
        names[name] = Path(run)
    return names


def updates_of(
    folders: Mapping[str, Path], every: str | None, names: Sequence[str], items: str | None
) -> Updates | None:
    """Return what to update, or None for nothing.

    Args:
        folders: folders of the served runs by their names.
        every: period, such as 10m.
        names: names of the runs to update; none: all.
        items: folder with an items file, which may come later.

    Raises:
        UserError: a name is of no run, the folder does not exist, or there is no period.

    """
    if every is None:
        if names or items is not None:
            raise UserError("--update and --update-items need --update-every, such as --update-every 10m")
        return None
    for name in names:
        if name not in folders:
            raise UserError(f"--update {name}: no run is called {name!r}; there are {', '.join(folders)}")
    if items is not None and not Path(items).is_dir():
        raise UserError(f"--update-items {items}: no such folder; make it, and put items.parquet or items.csv there")
    from nextitem.serving.updater import Updates

    runs = {name: folder for name, folder in folders.items() if not names or name in names}
    return Updates(runs, seconds_of(every), () if items is None else ("--items", str(Path(items).resolve())))


def weights_of(options: Sequence[str]) -> dict[str, float]:
    """Return the weights of options NAME=WEIGHT. Raises UserError if one is no number or comes twice."""
    weights: dict[str, float] = {}
    for option in options:
        name, separator, value = option.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            separator, weight = "", 0.0
        if not separator or name in weights:
            raise UserError(f"--weight {option}: write NAME=0.9, once for a run")
        weights[name] = weight
    return weights


def listen(service: Service, tokens: Tokens, *, host: str, port: int, shows_users: bool) -> None:
    """Answer requests until the process is told to stop; SIGHUP looks for new versions at once."""
    import uvicorn

    from nextitem.serving.app import make_app
    from nextitem.serving.garbage import settle
    from nextitem.serving.logs import start_line

    sys.setswitchinterval(SWITCH_SECONDS)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: service.look_for_versions())
    application = make_app(service, tokens=tokens, shows_users=shows_users)
    settings = uvicorn.Config(application, host=host, port=port, log_config=None, access_log=False, loop=LOOP)
    server = uvicorn.Server(settings)
    socket = server.config.bind_socket()
    socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # its connections inherit it; else small answers wait for 40 ms
    settle()
    socket.listen()  # from here on connections wait, so that the next line is true
    address = socket.getsockname()
    names = ", ".join(service.models)
    log(start_line(names, host=address[0], port=address[1]))
    server.run(sockets=[socket])
