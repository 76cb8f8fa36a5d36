"""The command `nextitem serve`: an HTTP server for the models of one or more runs."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Device, log
from nextitem.core.errors import UserError

EXAMPLES = (
    "Examples: nextitem serve runs/sasrec --port 8000 | nextitem serve runs/sasrec runs/tiger "
    "--store postgresql://me@db:5432/events"
)
TOKENS = "NEXTITEM_TOKENS"
LOCAL = ("127.0.0.1", "::1", "localhost")  # addresses that only this machine reaches


def serve(
    runs: Annotated[list[str], typer.Argument(help="Folders of runs; users are shared out equally among them.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; 0.0.0.0: all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0: any free one.")] = 8000,
    store: Annotated[
        str,
        typer.Option("--store", help="Where events are stored: sqlite:///FILE, redis://..., or postgresql://..."),
    ] = "sqlite:///nextitem-events.db",
    namespace: Annotated[str, typer.Option("--namespace", help="Name of the tenant in a shared store.")] = "default",
    data: Annotated[
        str | None, typer.Option("--data", help="Dataset folder with the histories; default: that of the run.")
    ] = None,
    deadline: Annotated[
        float, typer.Option("--deadline", min=0.01, help="Seconds until a request gets a fallback list.")
    ] = 2.0,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=1, help="Requests that wait for a model; more are refused (429).")
    ] = 512,
    impressions: Annotated[
        str, typer.Option("--impressions", help="Folder of the log of recommended lists, in Parquet; none: no log.")
    ] = "nextitem-impressions",
    sync_impressions: Annotated[
        bool, typer.Option("--sync-impressions", help="Answer only after the list is on disk in that log.")
    ] = False,
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, help="Processes that answer the API, by Ray Serve (extra `ray`).")
    ] = 1,
    device: Device = "auto",
) -> None:
    """Serve recommendations over HTTP, and take events that count at once.

    The server describes its API at /openapi.json. If the environment variable NEXTITEM_TOKENS contains tokens,
    separated by commas, every request except those for health must send one of them (Authorization: Bearer TOKEN).
    """
    names: dict[str, Path] = {}
    for run in runs:
        check_run(run)
        name = Path(run).resolve().name
        if name in names:
            raise UserError(f"two runs are called {name}: {names[name]} and {run}; rename one of the folders")
        names[name] = Path(run)
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise UserError(f"serving needs the package {package}: pip install 'nextitem[serve]'")
    tokens = [token.strip() for token in os.environ.get(TOKENS, "").split(",") if token.strip()]
    if replicas > 1:
        from nextitem.serving.replicas import ReplicaSettings, serve_replicas
        from nextitem.serving.service import ServiceConfig

        if port == 0:
            raise UserError("--port 0: replicas need a fixed port; name one")
        settings = ReplicaSettings(
            {name: str(folder.resolve()) for name, folder in names.items()},
            store=store,
            namespace=namespace,
            data=str(Path(data).resolve()) if data is not None and Path(data).is_dir() else data,
            tokens=tuple(tokens),
            impressions=None if impressions == "none" else str(Path(impressions).resolve()),
            is_synced=sync_impressions,
            device=device,
            service=ServiceConfig(max_queue=max_queue, deadline_seconds=deadline),
        )
        serve_replicas(settings, num_replicas=replicas, host=host, port=port, log=log)
        return
    from nextitem.serving.impressions import ImpressionLog
    from nextitem.serving.stores import open_store

    events = open_store(store, namespace=namespace)
    shown_lists = None if impressions == "none" else ImpressionLog(impressions, is_synced=sync_impressions)
    import uvicorn

    from nextitem.pipeline.runs import load_run
    from nextitem.serving.app import make_app
    from nextitem.serving.service import Service, ServiceConfig

    opened = {}
    for name, folder in names.items():
        log(f"loading {folder} ...")
        opened[name] = load_run(folder, device=device)
        if data is not None:
            opened[name].use_data(data)
    service = Service(
        opened, events, ServiceConfig(max_queue=max_queue, deadline_seconds=deadline), impressions=shown_lists
    )
    service.warm_up()
    app = make_app(service, tokens=tokens, shows_users=bool(tokens) or host in LOCAL)
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False))
    socket = server.config.bind_socket()
    socket.listen()  # from here on connections wait, so that the next line is true
    address = socket.getsockname()
    log(f"serving {', '.join(names)} at http://{address[0]}:{address[1]} (API: /openapi.json; stop with Ctrl-C)")
    server.run(sockets=[socket])
