"""nextitem recommend"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextitem.cli.options import Overwrite, say
from nextitem.core.errors import UserError

if TYPE_CHECKING:
    from nextitem.pipeline.run import Run

EXAMPLES = (
    "Examples: nextitem recommend runs/tiger --history 85123A,71053 -k 5 | "
    "nextitem recommend runs/tiger --users all --out recs.parquet --only country=France"
)


def recommend(
    run: Annotated[str, typer.Argument(help="A run's folder.")],
    user: Annotated[str | None, typer.Option("--user", help="A user of the data set.")] = None,
    history: Annotated[
        str | None, typer.Option("--history", help="Item ids, oldest first, separated by commas.")
    ] = None,
    users: Annotated[str | None, typer.Option("--users", help="'all', or a file with one user id a line.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="With --users: the Parquet file to write.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Where histories come from; default: the run's data, whole log."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Items to return.")] = 10,
    exclude_seen: Annotated[
        bool | None,
        typer.Option(
            "--exclude-seen/--include-seen",
            help="Keep out items of the history; default: as the data set says.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="column=value: recommend only items where it holds; may be repeated."),
    ] = None,
    exclude_items: Annotated[
        str | None,
        typer.Option("--exclude-items", help="A file with one item id a line that must not be recommended."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Recommends items for a user, a history, or many users."""
    if sum(option is not None for option in (user, history, users)) != 1:
        raise UserError("give exactly one of --user, --history and --users")
    if (users is None) != (out is None):
        raise UserError("--users and --out RECS.parquet belong together")
    from nextitem.pipeline.recommend import lacking_features
    from nextitem.pipeline.run import load_run

    opened = load_run(run)
    if data is not None:
        opened.use_data(data)
    blocked = _lines(exclude_items) if exclude_items is not None else []
    if users is not None and out is not None:
        _write_table(opened, users, out, k, exclude_seen, only or [], blocked, overwrite)
        return
    found = opened.recommend(
        history=None if history is None else [part for part in history.split(",") if part.strip()],
        user=user, k=k, exclude_seen=exclude_seen, only=only or [], exclude_items=blocked,
    )  # fmt: skip
    if found.skipped:
        say(f"skipped, as no item is called so: {', '.join(found.skipped[:5])}{', ...' * (len(found.skipped) > 5)}")
    for name, count in lacking_features(opened.model).items():
        say(f"{name} is missing, or unknown to the model, in {count:,} request{'s' * (count > 1)}: read as missing")
    for rule in found.relaxed:
        say(f"rule that could not hold: {rule}")
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
        return
    if found.fallback:
        say("no history: the most popular items")
    if len(found.item_ids) < k:
        say(f"{len(found.item_ids)} items are allowed by this request")
    for rank, (item, score, title) in enumerate(zip(found.item_ids, found.scores, found.titles, strict=True), start=1):
        named = f"{item}  {title}" if str(item) != title else item
        channel = f"  {found.channels[rank - 1]}" if found.channels else ""
        print(f"{rank:3d}  {named}  {score:.4f}{channel}")


def _write_table(
    run: Run,
    users: str,
    out: str,
    k: int,
    exclude_seen: bool | None,
    only: list[str],
    blocked: list[str],
    overwrite: bool,
) -> None:
    from nextitem.pipeline.folders import refuse_existing_file
    from nextitem.pipeline.recommend import Filters, answer_table

    file = refuse_existing_file(out, overwrite=overwrite)
    table = answer_table(
        run.model,
        run.dataset,
        None if users == "all" else _lines(users),
        k=k,
        exclude_seen=not run.dataset.repeats if exclude_seen is None else exclude_seen,
        filters=Filters(tuple(only), tuple(blocked)),
    )
    table.write_parquet(file)
    print(f"{file}: {table.height:,} recommendations for {table['user_id'].n_unique():,} users")


def _lines(file: str) -> list[str]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
