"""nextitem recommend"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Device, Overwrite, ids_of, lines_of, say
from nextitem.core.errors import UserError

if TYPE_CHECKING:
    from nextitem.pipeline.runs import Run

EXAMPLES = (
    "Examples: nextitem recommend runs/tiger --history 85123A,71053 -k 5 | "
    "nextitem recommend runs/tiger --users all --out recs.parquet --only country=France"
)


def recommend(
    run: Annotated[str, typer.Argument(help="A run's folder.")],
    user: Annotated[str | None, typer.Option("--user", help="A user of the data set.")] = None,
    history: Annotated[
        str | None,
        typer.Option(
            "--history", help="Item ids, oldest first, separated by commas; an id with a comma in double quotes."
        ),
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
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Recommends items for a user, a history, or many users."""
    if sum(option is not None for option in (user, history, users)) != 1:
        raise UserError("give exactly one of --user, --history and --users")
    if (users is None) != (out is None):
        raise UserError("--users and --out RECS.parquet belong together")
    check_run(run)
    from nextitem.pipeline.recommend import lacking_features
    from nextitem.pipeline.runs import load_run

    opened = load_run(run, device=device)
    if data is not None:
        opened.use_data(data)
    blocked = lines_of(exclude_items) if exclude_items is not None else []
    if users is not None and out is not None:
        _write_table(opened, users, out, k, exclude_seen, only or [], blocked, overwrite)
        return
    answer = opened.recommend(
        history=None if history is None else ids_of(history),
        user=user, k=k, exclude_seen=exclude_seen, only=only or [], exclude_items=blocked,
    )  # fmt: skip
    if answer.skipped:
        say(f"skipped unknown items: {_some(answer.skipped)}")
    _say_unknown(answer.unknown_exclusions)
    for name, count in lacking_features(opened.model).items():
        say(f"{name} is missing, or unknown to the model, in {count:,} request(s): treated as missing")
    for rule in answer.relaxed:
        say(f"relaxed rule: {rule}")
    if as_json:
        print(json.dumps(answer.to_json(), indent=2, ensure_ascii=False))
        return
    if answer.fallback:
        say("no history: the most popular items")
    if len(answer) < k:
        say(f"only {len(answer)} items are allowed by this request")
    for rank, (item, score, title) in enumerate(zip(answer.item_ids, answer.scores, answer.titles, strict=True), 1):
        named = f"{item}  {title}" if str(item) != title else item
        channel = f"  {answer.channels[rank - 1]}" if answer.channels else ""
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
    from nextitem.pipeline.recommend import unknown_items

    file = refuse_existing_file(out, overwrite=overwrite)
    _say_unknown(unknown_items(run.model.catalog, blocked))
    user_ids = None if users == "all" else lines_of(users)
    table = run.recommend_many(user_ids, k=k, exclude_seen=exclude_seen, only=only, exclude_items=blocked)
    table.select("user_id", "item_id", "rank", "score").write_parquet(file)  # the public format
    print(f"{file}: {table.height:,} recommendations for {table['user_id'].n_unique():,} users")


def _say_unknown(item_ids: tuple[str, ...]) -> None:
    if item_ids:
        say(f"--exclude-items: no item is called {_some(item_ids)}")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
