"""compare: many models on one split, one scoreboard, one report. The demo is a compare of the first models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.data.protocols import default_protocol
from nextitem.data.readers import load_dataset
from nextitem.evaluation.evaluate import latency
from nextitem.pipeline.bundle import write_json
from nextitem.pipeline.evaluate import evaluate_split, generation_quality, split_for
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.options import Log, silent
from nextitem.pipeline.provenance import data_table, leak
from nextitem.pipeline.recipe import DataTable, model_name, resolve_recipe
from nextitem.pipeline.runs import Run, aligned, load_run
from nextitem.pipeline.train import IN_MEMORY, train
from nextitem.recipes import default_recipe
from nextitem.reporting.report import CustomerExample, write_report
from nextitem.reporting.scoreboard import ReportRow, scoreboard_json

MAIN_JOB = ("popularity", "item-cf", "item-graph", "sasrec", "tiger")
NUM_CUSTOMERS = 3  # shown in the report
GENERATION_REQUESTS = 500  # on which the report judges how a model generates codes
LIST_LENGTH = 10  # items of a history or list that are shown


@dataclass(frozen=True)
class Comparison:
    """Models judged on the same test requests: a row each, and the folder of scoreboard.json and report.html."""

    rows: list[ReportRow]
    folder: Path
    examples: list[CustomerExample] = field(default_factory=list, repr=False)
    runs: list[Run] = field(default_factory=list, repr=False)

    def to_frame(self) -> pl.DataFrame:
        """A data frame with a row for each model: name, its figures, parameters, train_seconds, p50_ms, p99_ms."""
        return pl.DataFrame(
            [
                {
                    "name": row.name,
                    **row.evaluation.metrics,
                    "parameters": row.parameters,
                    "train_seconds": row.train_seconds,
                    "p50_ms": row.p50_ms,
                    "p99_ms": row.p99_ms,
                }
                for row in self.rows
            ]
        )


def compare(
    data: Dataset | str | Path,
    *,
    out: str | Path,
    runs: Sequence[Run | str | Path] = (),
    models: Sequence[str | type[Recommender]] = (),
    protocol: str | None = None,
    minutes_per_model: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    drop_unknown_items: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    log: Log = silent,
) -> Comparison:
    """Train models, open runs, and judge all of them on the same test requests.

    Writes scoreboard.json, report.html and the trained runs under `out`.

    Args:
        data: a data set, its folder, or "shop".
        out: folder to write; refused if it is not empty.
        runs: runs, or their folders. They must stem from this data and this split, trained on training events only.
        models: names, import paths or classes of models to train, each by its default recipe.
        protocol: None: by the data.
        minutes_per_model: budget of training time of each model.
        seed: of training, and of a split that samples users; None: that of the runs, else 0.
        device: auto, cpu or cuda.
        drop_unknown_items: leave out events of items that the items table lacks.
        resume: continue a comparison that was interrupted.
        overwrite: replace a comparison that is in `out`.
        progress: show a bar on a terminal, a line an epoch elsewhere.
        log: receives lines of progress and notes.

    Raises:
        UserError: nothing to compare, or a run that another split, other data or a refit sets apart from the others.

    """
    if not runs and not models:
        raise UserError("nothing to compare: name runs, or give --models popularity,sasrec,...")
    names = [model_name(model) for model in models]
    for name in names:  # a wrong name fails before any work
        resolve_recipe([default_recipe(name), ("compare", {"data": {"path": str(data)}})])
    dataset = data if isinstance(data, Dataset) else load_dataset(data, drop_unknown_items=drop_unknown_items)
    opened = [run if isinstance(run, Run) else load_run(run, device=device) for run in runs]
    protocol, reason = (protocol, "as asked") if protocol else default_protocol(dataset)
    if seed is None and opened:
        seed = opened[0].recipe.seed
    split = split_for(dataset, protocol, models=[*names, *(run.name for run in opened)], seed=seed or 0)
    table = data_table(DataTable(path=dataset.source or IN_MEMORY + dataset.name), dataset, split)
    for run in opened:
        _check(run, table)
    log(f"{dataset.name}: protocol {split.protocol} ({reason}); {split.test.num_requests:,} test requests")
    for note in (*dataset.notes, *split.notes):
        log(f"note: {note}")
    folder = prepare_out(out, resume=resume, overwrite=overwrite)
    for name in names:
        log(f"{name} ...")
        place = folder / "runs" / name.replace(":", ".")
        opened.append(
            train(
                name,
                dataset,
                out=place,
                protocol=protocol,
                minutes=minutes_per_model,
                drop_unknown_items=drop_unknown_items,
                seed=seed,
                device=device,
                resume=resume and place.exists(),
                overwrite=overwrite,
                progress=progress,
                log=lambda line: None if line.startswith("note: ") else log(line),
            )
        )
    rows = [
        _row(run, name, dataset, split, progress=progress) for run, name in zip(opened, row_names(opened), strict=True)
    ]
    examples = _customers(rows, split, opened[0].model)
    write_json(folder / "scoreboard.json", scoreboard_json(rows))
    write_report(
        folder / "report.html",
        title=dataset.name,
        rows=rows,
        examples=examples,
        identifiers=next((run.model.catalog.identifiers for run in opened if run.model.catalog.identifiers), None),
        item_titles=dataset.catalog.titles(),
        epoch_logs={row.name: run.epoch_log for row, run in zip(rows, opened, strict=True) if run.epoch_log},
        notes=[f"Protocol {split.protocol}: {reason}.", *dataset.notes, *split.notes],
    )
    return Comparison(rows, folder, examples, opened)


def row_names(runs: Sequence[Run]) -> list[str]:
    """Name each run by its model; runs of one model also by as much of their folders as tells them apart."""
    names = []
    for run in runs:
        mates = [other for other in runs if other.name == run.name and other is not run]
        parts = run.folder.absolute().parts
        count = 1
        while any(other.folder.absolute().parts[-count:] == parts[-count:] for other in mates) and count < len(parts):
            count += 1
        names.append(f"{run.name} ({'/'.join(parts[-count:])})" if mates else run.name)
    return names


def _check(run: Run, table: DataTable) -> None:
    own = run.recipe.data
    if own.fingerprint != table.fingerprint:
        raise UserError(f"{run.folder} was trained on other data ({own.path}); compare runs of one data set")
    problem = leak(own, table)
    if problem is not None:
        raise UserError(f"{run.folder} cannot be judged beside the others: {problem}")


def _row(run: Run, name: str, dataset: Dataset, split: Split, *, progress: bool) -> ReportRow:
    """The row of a run; a model with items of its own is asked the same requests in its own numbering."""
    judged = split
    if run.model.catalog.fingerprint != dataset.catalog.fingerprint:
        judged = split_for(aligned(dataset, run.model), split.protocol, models=[run.name], seed=split.seed or 0)
    if run.evaluation is None:
        run.evaluation = evaluate_split(run, judged, progress=progress)
    quality = generation_quality(run, judged, GENERATION_REQUESTS)
    run.evaluation = replace(run.evaluation, generation=quality)
    p50, p99 = latency(run.model, judged.test)
    return ReportRow(
        replace(run.evaluation, model=name),
        model=run.name,
        folder=str(run.folder),
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
    count = min(NUM_CUSTOMERS, readable.numel())
    places = readable[torch.linspace(0, readable.numel() - 1, count + 2).long()[1:-1]]
    titles = model.catalog.titles()
    users = split.train.users

    def titles_of(items: torch.Tensor) -> list[str]:
        return [str(title) for title in titles.gather((items[items > 0] - 1).numpy()).to_list()]

    examples = []
    for row in places.tolist():
        one = requests.select(torch.tensor([row]))
        assert one.targets is not None
        number = 0 if one.user_ids is None else int(users.numbers_of(one.user_ids.numpy())[0])
        name = f"customer {users.ids.external[number - 1]}" if number else f"request {row + 1}"
        lists = {entry.name: titles_of(entry.evaluation.lists[row, :LIST_LENGTH]) for entry in rows}
        history, targets = one.items.values[-LIST_LENGTH:], one.targets.values[:LIST_LENGTH]
        examples.append(CustomerExample(name, titles_of(history), titles_of(targets), lists))
    return examples
