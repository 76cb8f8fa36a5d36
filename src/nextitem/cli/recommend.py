"""The command `nextitem recommend`: items for a user, a history, or many users."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from nextitem.cli.early import check_run
from nextitem.cli.options import Device, Overwrite, Resume, ids_of, lines_of, log
from nextitem.core.errors import UserError

if TYPE_CHECKING:
    from nextitem.pipeline.explanations import Explanation
    from nextitem.pipeline.runs import Run

EXAMPLES = (
    "Examples: nextitem recommend runs/tiger --history 85123A,71053 -k 5 | "
    "nextitem recommend runs/tiger --users all --out recs.parquet --only country=France | "
    "nextitem recommend runs/tiger --users all --engine ray --out recs"
)


def recommend(
    run: Annotated[str, typer.Argument(help="Folder of a run.")],
    user: Annotated[str | None, typer.Option("--user", help="Id of a user of the data set.")] = None,
    history: Annotated[
        str | None,
        typer.Option(
            "--history", help="Item ids, oldest first, separated by commas; an id with a comma in double quotes."
        ),
    ] = None,
    users: Annotated[str | None, typer.Option("--users", help="'all', or a file with one user id per line.")] = None,
    out: Annotated[
        str | None, typer.Option("--out", help="With --users: the Parquet file to write; with --engine ray: a folder.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Dataset folder with the users' histories; default: the run's data."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Maximum number of items to return.")] = 10,
    exclude_seen: Annotated[
        bool | None,
        typer.Option(
            "--exclude-seen/--include-seen",
            help="Exclude or include items of the history; default: exclude, except for users of a data set with "
            "repeats = true.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="column=value: recommend only items that satisfy this; may be repeated."),
    ] = None,
    exclude_items: Annotated[
        str | None,
        typer.Option("--exclude-items", help="File with item ids that must not be recommended, one per line."),
    ] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print which events carry each item, and how the search went.")
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="With --users: ray, to use many processes or machines and to write parts."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="With --engine: number of processes; default: all cores.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Recommend items for a user, a history, or many users."""
    if sum(option is not None for option in (user, history, users)) != 1:
        raise UserError("give exactly one of --user, --history and --users")
    if explain and users is not None:
        raise UserError("--explain explains one list: use it with --user or --history")
    if (users is None) != (out is None):
        raise UserError("--users and --out RECS.parquet belong together")
    if engine not in (None, "ray"):
        raise UserError(f"--engine {engine}: choose ray, or leave the option out")
    if engine is None and (workers is not None or resume):
        raise UserError("--workers and --resume belong to --engine ray")
    if engine is not None and users is None:
        raise UserError("--engine belongs to --users")
    check_run(run)
    from nextitem.pipeline.recommend import lacking_features
    from nextitem.pipeline.runs import load_run

    opened = load_run(run, device=device)
    if data is not None:
        opened.use_data(data)
    blocked = lines_of(exclude_items) if exclude_items is not None else []
    if users is not None and out is not None and engine is not None:
        from nextitem.pipeline.recommend import unknown_items
        from nextitem.pipeline.recommend_parts import recommend_parts

        _log_unknown_exclusions(unknown_items(opened.model.catalog, blocked))
        plan = recommend_parts(
            opened, out, None if users == "all" else lines_of(users), k=k, exclude_seen=exclude_seen, only=only or [],
            exclude_items=blocked, workers=workers, data=data, device=device, resume=resume, overwrite=overwrite,
            log=log,
        )  # fmt: skip
        print(f"{out}: lists of {plan.num_users:,} users in {plan.num_parts:,} parts")
        return
    if users is not None and out is not None:
        _write_table(opened, users, out, k, exclude_seen, only or [], blocked, overwrite)
        return
    answer = opened.recommend(
        history=None if history is None else ids_of(history),
        user=user, k=k, exclude_seen=exclude_seen, only=only or [], exclude_items=blocked, explain=explain,
    )  # fmt: skip
    if answer.skipped:
        log(f"skipped unknown items: {_first_names(answer.skipped)}")
    _log_unknown_exclusions(answer.unknown_exclusions)
    for name, count in lacking_features(opened.model).items():
        log(f"{name} is missing, or unknown to the model, in {count:,} request(s): treated as missing")
    for rule in answer.relaxed:
        log(f"relaxed rule: {rule}")
    if as_json:
        print(json.dumps(answer.to_json(), indent=2, ensure_ascii=False))
        return
    if answer.fallback:
        log("no history: these are the most popular items")
    elif answer.guided is False:
        log("the guide has no score for this request: the generator alone answers")
    if len(answer) < k:
        log(f"only {len(answer)} items are allowed by this request")
    for rank, (item, score, title) in enumerate(zip(answer.item_ids, answer.scores, answer.titles, strict=True), 1):
        name = f"{item}  {title}" if str(item) != title else item
        channel = f"  {answer.channels[rank - 1]}" if answer.channels else ""
        print(f"{rank:3d}  {name}  {score:.4f}{channel}")
    if answer.explanation is not None:
        print("\n".join(_explanation_lines(answer.explanation)))


def _explanation_lines(explanation: Explanation) -> list[str]:
    """Return an explanation as lines of text."""
    lines = ["", "carried by (share of the score)"]
    for rank, item in enumerate(explanation.items, 1):
        parts = [f"{one.title} {one.share:.0%}" for one in item.neighbours[:3]] or ["no event of the history"]
        places = ", ".join(f"{place.stage} {place.position}" for place in item.stages)
        lines.append(f"{rank:3d}  {item.item_id}  {', '.join(parts)}{'; place after ' + places if places else ''}")
    for level in explanation.levels:
        lines += ["", f"level {level.level} of the semantic IDs: {level.cut_by_constraint} cut by filters, exclusions"]
        for prefix in level.prefixes:
            codes = "-".join(str(code) for code in prefix.codes)
            lines.append(f"  {prefix.state:6s}  {codes}  {prefix.score:.4f}  {', '.join(prefix.titles)}")
    return lines


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
    """Write recommendations for many users to a Parquet file, and print its size."""
    from nextitem.pipeline.folders import refuse_existing_file
    from nextitem.pipeline.recommend import unknown_items

    file = refuse_existing_file(out, overwrite=overwrite)
    _log_unknown_exclusions(unknown_items(run.model.catalog, blocked))
    user_ids = None if users == "all" else lines_of(users)
    table = run.recommend_many(user_ids, k=k, exclude_seen=exclude_seen, only=only, exclude_items=blocked)
    table.select("user_id", "item_id", "rank", "score").write_parquet(file)  # the public format
    print(f"{file}: {table.height:,} recommendations for {table['user_id'].n_unique():,} users")


def _log_unknown_exclusions(item_ids: tuple[str, ...]) -> None:
    if item_ids:
        log(f"--exclude-items: no item is called {_first_names(item_ids)}")


def _first_names(names: tuple[str, ...]) -> str:
    """Return the first five names as text, and dots if there are more."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
