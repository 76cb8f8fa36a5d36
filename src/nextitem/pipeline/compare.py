"""compare: many models on one split, one scoreboard, one report. The demo is a compare of the first models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Split
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.data.protocols import default_protocol, make_split
from nextitem.data.readers import load_dataset
from nextitem.evaluation.evaluate import latency
from nextitem.evaluation.report import CustomerExample, write_report
from nextitem.evaluation.scoreboard import ReportRow, scoreboard_json
from nextitem.pipeline.bundle import write_json
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.identify import Say
from nextitem.pipeline.recipe import default_for, resolve
from nextitem.pipeline.run import Run, aligned, evaluate_split, load_run, spelling, split_for, train

MAIN_JOB = ("popularity", "item-cf", "item-graph", "sasrec", "tiger")
CUSTOMERS = 3  # shown in the report
SPELT = 500  # requests on which it is looked at how a model spells
SHOWN = 10  # items of a history or list that are shown


def compare(
    data: str | Path,
    *,
    out: str | Path,
    runs: Sequence[str | Path] = (),
    models: Sequence[str] = (),
    protocol: str | None = None,
    minutes_per_model: float | None = None,
    seed: int | None = None,
    drop_unknown_items: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    say: Say = lambda text: None,
) -> tuple[list[ReportRow], list[CustomerExample]]:
    """Trains each of `models` with its default recipe, opens `runs`, and judges all on the same test requests.

    Writes scoreboard.json, report.html and the trained runs under `out`. Runs must stem from this data, this
    protocol and the same refit; else a UserError says which does not.
    """
    if not runs and not models:
        raise UserError("nothing to compare: name runs, or give --models popularity,sasrec,...")
    for name in models:
        resolve([default_for(name), ("compare", {"data": {"path": str(data)}})])  # a wrong name fails before any work
    dataset = load_dataset(data, drop_unknown_items=drop_unknown_items)
    opened = [load_run(run) for run in runs]
    chosen, reason = (protocol, "as asked") if protocol else default_protocol(dataset)
    names = [*models, *(run.recipe.model["name"] for run in opened)]
    split = split_for(dataset, chosen, models=names, seed=seed or 0)
    say(f"{dataset.name}: protocol {split.protocol} ({reason}); {split.test.num_requests:,} test requests")
    for note in (*dataset.notes, *split.notes):
        say(f"note: {note}")
    for run in opened:
        _check(run, dataset.fingerprint, split.protocol)
    folder = prepare_out(out, resume=resume, overwrite=overwrite)
    for name in models:
        say(f"{name} ...")
        place = folder / "runs" / name
        run = train(
            name,
            dataset,
            out=place,
            protocol=chosen,
            minutes=minutes_per_model,
            seed=seed,
            resume=resume and place.exists(),
            overwrite=overwrite,
            progress=progress,
            say=say,
        )
        opened.append(run)
    rows = [_row(run, split, progress=progress) for run in opened]
    examples = _customers(rows, split, opened[0].model)
    write_json(folder / "scoreboard.json", scoreboard_json(rows))
    identifiers = next((run.model.catalog.identifiers for run in opened if run.model.catalog.identifiers), None)
    write_report(
        folder / "report.html",
        title=dataset.name,
        rows=rows,
        examples=examples,
        identifiers=identifiers,
        item_titles=dataset.catalog.titles(),
        histories={run.recipe.model["name"]: run.history for run in opened if run.history},
        notes=[f"Protocol {split.protocol}: {reason}.", *dataset.notes, *split.notes],
    )
    return rows, examples


def _check(run: Run, fingerprint: str, protocol: str) -> None:
    if run.recipe.data.fingerprint != fingerprint:
        raise UserError(
            f"{run.folder} was trained on other data ({run.recipe.data.path}); compare runs of one data set"
        )
    if run.recipe.data.protocol != protocol:
        raise UserError(
            f"{run.folder} was trained under protocol {run.recipe.data.protocol}, not {protocol}; see --protocol"
        )
    if run.recipe.data.refit:
        raise UserError(
            f"{run.folder} was refit on validation events; compare judges what learnt from training events only"
        )


def _row(run: Run, split: Split, *, progress: bool) -> ReportRow:
    same = run.model.catalog.fingerprint == split.train.catalog.fingerprint
    judged = split if same else make_split(aligned(split.train, run.model), split.protocol)
    if run.evaluation is None:
        run.evaluation = evaluate_split(run, judged, progress=progress)
    run.evaluation = replace(run.evaluation, generation=spelling(run, judged, requests=SPELT))
    p50, p99 = latency(run.model, split.test)
    return ReportRow(
        run.evaluation,
        parameters=int(run.metrics.get("parameters", 0)),
        train_seconds=float(run.metrics.get("train_seconds", 0.0)),
        p50_ms=round(p50, 3),
        p99_ms=round(p99, 3),
    )


def _customers(rows: Sequence[ReportRow], split: Split, model: Recommender) -> list[CustomerExample]:
    """Three requests with histories of a readable length, evenly spread; the same ones every time."""
    requests: SequenceBatch = split.test
    if requests.targets is None:
        return []  # what was shown is scored, nothing is listed
    lengths = requests.items.lengths
    readable = ((lengths >= 4) & (lengths <= 30) & (requests.targets.lengths > 0)).nonzero()[:, 0]
    if not readable.numel():
        readable = (requests.targets.lengths > 0).nonzero()[:, 0]
    count = min(CUSTOMERS, readable.numel())
    picked = readable[torch.linspace(0, readable.numel() - 1, count + 2).long()[1:-1]]
    titles = model.catalog.titles()
    users = split.train.users.ids.external

    def named(items: torch.Tensor) -> list[str]:
        return [str(title) for title in titles.gather((items[items > 0] - 1).numpy()).to_list()]

    examples = []
    for row in picked.tolist():
        one = requests.select(torch.tensor([row]))
        assert one.targets is not None
        name = f"request {row + 1}" if one.user_ids is None else f"customer {users[int(one.user_ids[0]) - 1]}"
        lists = {entry.evaluation.model: named(entry.evaluation.lists[row, :SHOWN]) for entry in rows}
        examples.append(
            CustomerExample(name, named(one.items.values[-SHOWN:]), named(one.targets.values[:SHOWN]), lists)
        )
    return examples
