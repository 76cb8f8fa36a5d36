"""The command `nextitem update`: train a run on from new events, and use the new version if it is not worse."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Device, log, seconds_of
from nextitem.core.errors import UserError

EXAMPLES = (
    "Examples: nextitem update runs/sasrec --events yesterday/ | nextitem update runs/sasrec --store "
    "sqlite:///nextitem-events.db --window 6h | nextitem update runs/sasrec --list | nextitem update runs/sasrec "
    "--rollback 1"
)


def update(
    run: Annotated[str, typer.Argument(help="Folder of a run.")],
    events: Annotated[
        str | None,
        typer.Option("--events", help="Dataset folder with new events, and with new items in its items file."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="Event store of a server: sqlite:///FILE, redis://..., postgresql://..."),
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", help="Name of the tenant in a shared store.")] = "default",
    items: Annotated[
        str | None, typer.Option("--items", help="Dataset folder whose items file has the new items.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", help="New events from this time on: ISO 8601, or seconds since 1970; default: all not learned."
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            "--window",
            help="Newest period on which old and new are judged: 30m, 12h, 7d; default: a fifth of the new events.",
        ),
    ] = None,
    margin: Annotated[
        float | None, typer.Option("--margin", min=0, help="Relative loss that still counts as not worse: 0.05.")
    ] = None,
    keep: Annotated[int | None, typer.Option("--keep", min=2, help="Number of versions that are kept: 5.")] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="A version that is used also learns the newest period.")
    ] = False,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train on all events from random weights.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the new events; train and write nothing.")] = False,
    rollback: Annotated[str | None, typer.Option("--rollback", help="Use the version of this name again.")] = None,
    list_versions: Annotated[bool, typer.Option("--list", help="List the versions of the run.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of the update, for example --set replay=2; may be repeated."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a run on from new events into a new version, judge it, and use it if it is not worse.

    The new events come from --events, from the --store of a server, or from the data of the run, if these have grown.
    """
    check_run(run)
    sources = {"--events": events, "--store": store, "--rollback": rollback, "--list": list_versions or None}
    used = [option for option, value in sources.items() if value is not None]
    if len(used) > 1:
        raise UserError(f"{used[0]} and {used[1]} exclude each other")
    if list_versions or rollback is not None:
        _versions(run, rollback)
        return
    flags = {"margin": margin, "keep": keep, "refit": refit or None, "from_scratch": from_scratch or None}
    start, period = _time(since), None if window is None else seconds_of(window)
    from nextitem.core.config import apply_overrides, parse
    from nextitem.pipeline.updating.new_version import UpdateConfig
    from nextitem.pipeline.updating.update import update as run_update

    values = apply_overrides({}, [f"update.{setting}" for setting in settings or []]).get("update", {})
    values |= {name: value for name, value in flags.items() if value is not None}
    config = parse(UpdateConfig, values, where="the settings of the update")
    options: dict[str, Any] = {"since": start, "window": period, "settings": config, "items": items}
    options |= {"dry_run": dry_run, "device": device, "log": log}
    if store is None:
        outcome = run_update(run, events=events, **options)
    else:
        from nextitem.serving.updater import update_from_store

        outcome = update_from_store(run, store, namespace=namespace, **options)
    card = outcome.card
    version = f"version {card['version']} " if outcome.judgement is not None else ""
    print(f"{run}: {version}{card['decision']}: {card['reason']}")


def _versions(run: str, rollback: str | None) -> None:
    """Use a version, if one is named; then print all versions, with a star at the one in use."""
    from pathlib import Path

    from nextitem.pipeline.updating.version_store import read_card
    from nextitem.pipeline.updating.version_store import rollback as use_former
    from nextitem.pipeline.versions import current_version, version_names

    root = Path(run)
    if rollback is not None:
        use_former(root, rollback)
    current = current_version(root)
    for name in version_names(root):
        card = read_card(root, name)
        figures = (
            "trained from data"
            if not card
            else (
                f"{card['time']}, {card['events']['new']:,} new events, {card['new_items']:,} new items, "
                f"{card['metric']} {card['former']:.4f} -> {card['new']:.4f}"
            )
        )
        print(f"{'*' if name == current else ' '} {name}  {figures}")


def _time(text: str | None) -> Any:
    """Return a time in ISO 8601, in UTC if it has no zone."""
    from datetime import UTC, datetime

    if text is None:
        return None
    if re.fullmatch(r"\d{1,10}", text):
        return datetime.fromtimestamp(int(text), UTC)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--since {text!r} is no time; write for example 2026-05-31 or 2026-05-31T18:30") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
