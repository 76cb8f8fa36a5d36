"""Comparison of many models on one split, with one scoreboard and one report; the demo compares MAIN_JOB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import polars as pl
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.config import Config
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.data.protocols import default_protocol
from nextitem.data.readers import load_dataset
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.evaluation.evaluate import latency
from nextitem.pipeline.bundle import write_json
from nextitem.pipeline.evaluate import evaluate_split, generation_quality, split_for
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.options import Log, silent
from nextitem.pipeline.provenance import data_table, leak
from nextitem.pipeline.recipe import DataTable, model_name, resolve_recipe, settings_table
from nextitem.pipeline.runs import Run, aligned, load_run
from nextitem.pipeline.train import IN_MEMORY, train
from nextitem.recipes import default_recipe
from nextitem.reporting.report import PRICE_PER_CORE_HOUR, CustomerExample, ListedItem, write_report
from nextitem.reporting.scoreboard import ReportRow, scoreboard_json

MAIN_JOB = ("popularity", "item-cf", "item-graph", "sasrec", "cascade", "tiger", "depth-decoder")
# So that the whole job ends within eight minutes on two free cores; the other models have their default recipes.
MAIN_JOB_SETTINGS: dict[str, dict[str, Any]] = {
    "cascade": {"model.pre_ranking.keep": 150, "stages.two-tower.max_epochs": 3, "stages.ranking.max_epochs": 2},
    "tiger": {"training": {"max_epochs": 3, "validate_every": 3, "max_minutes": 10}},  # busy cores need longer
}

NUM_CUSTOMERS = 3  # example customers in the report
GENERATION_REQUESTS = 500  # test requests on which the report measures how a model generates codes
LIST_LENGTH = 10  # displayed items of a history or list


def main_job_settings(minutes_per_model: float | None) -> dict[str, dict[str, Any]]:
    """Return MAIN_JOB_SETTINGS; a limit of minutes for all models replaces that of tiger."""
    if minutes_per_model is None:
        return MAIN_JOB_SETTINGS
    training = {**MAIN_JOB_SETTINGS["tiger"]["training"], "max_minutes": minutes_per_model}
    return {**MAIN_JOB_SETTINGS, "tiger": {"training": training}}


@dataclass(frozen=True)
class Comparison:
    """Figures of several models on the same test requests.

    Attributes:
        rows: one row for each model, with its evaluation, size, training time and latency. A guided generator has a
            second row, "NAME alone", of the same network without its guide.
        folder: the folder that contains scoreboard.json, report.html and the trained runs.
        examples: customers with their recommended items, as the report presents them; empty under protocol impressions.
        runs: the compared runs, in the order of `rows`.

    """

    rows: list[ReportRow]
    folder: Path
    examples: list[CustomerExample] = field(default_factory=list, repr=False)
    runs: list[Run] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        """Return the folder, and a line with the main figures of each model."""
        lines = []
        for row in self.rows:
            figures = row.evaluation.metrics
            main_metrics = [name for name in ("recall@10", "ndcg@10", "auc", "log_loss") if name in figures]
            lines.append("  " + ", ".join([row.name, *(f"{name} {figures[name]:.4f}" for name in main_metrics)]))
        return "\n".join([f"Comparison in {self.folder}: {len(self.rows)} models", *lines])

    def to_frame(self) -> pl.DataFrame:
        """Return a data frame with a line for each of `rows`.

        Its columns are name, each metric, parameters (number of weights), train_seconds, and the latency of one request
        in milliseconds: p50_ms (median), p99_ms (99th percentile) and cpu_ms (processor time, mean).
        """
        return pl.DataFrame(
            [
                {
                    "name": row.name,
                    **row.evaluation.metrics,
                    "parameters": row.parameters,
                    "train_seconds": row.train_seconds,
                    "p50_ms": row.p50_ms,
                    "p99_ms": row.p99_ms,
                    "cpu_ms": row.cpu_ms,
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
    settings: Mapping[str, Mapping[str, Any] | Config] = {},
    protocol: str | None = None,
    minutes_per_model: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    drop_unknown_items: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    price_per_core_hour: float = PRICE_PER_CORE_HOUR,
    progress: bool = True,
    log: Log = silent,
) -> Comparison:
    """Train models, open runs, and evaluate all of them on the same test requests.

    A generator with a guide is trained once and evaluated twice: as it is, and without its guide ("NAME alone").

    Writes scoreboard.json, report.html and the trained runs (runs/NAME) into `out`.

    Args:
        data: a data set, the path of its folder, or "shop", the simulated shop.
        out: the folder to write; refused if it is not empty.
        runs: runs, or their folders. They must be trained on this data under this split, on training events only.
        models: names, import paths or classes of models to train, each with its default recipe.
        settings: name of one of `models` -> settings that differ from its default recipe, as in `train`.
        protocol: how the data are split: time, leave-one-out, session, user-split, published or impressions; None: the
            default of the data.
        minutes_per_model: maximum training time of each model, in minutes; None: no limit.
        seed: seed of training, and of a protocol that samples users; None: that of the first run, or 0 without runs.
        device: where to compute: auto, cpu or cuda.
        drop_unknown_items: skip events of items that are not in the items table; otherwise they are an error.
        resume: continue a comparison that was interrupted.
        overwrite: replace a comparison that is in `out`.
        price_per_core_hour: price of one processor core for an hour, in any currency; the report prices requests by it.
        progress: show progress: a bar on a terminal, otherwise one line for each epoch.
        log: function that is called with each line of progress and each note.

    Returns:
        The figures of all models. They are also in `out`, as scoreboard.json and report.html.

    Raises:
        UserError: nothing to compare, settings of a model that is not compared, or a run that was trained on other
            data, under another split, or refit on validation events.

    Examples:
        >>> comparison = ni.compare("shop", models=["popularity", "sasrec"], out="runs/comparison")
        >>> comparison.to_frame()
        >>> settings = {"sasrec": {"model.width": 128}}
        >>> ni.compare("shop", models=["sasrec", "tiger"], settings=settings, out="runs/wide")

    """
    if not 0 <= price_per_core_hour < float("inf"):
        raise UserError(f"price_per_core_hour is {price_per_core_hour}; give a price of 0 or more")
    if not runs and not models:
        raise UserError("nothing to compare: name runs, or give --models popularity,sasrec,...")
    names = [model_name(model) for model in models]
    tables = _tables(settings, names)
    for name in names:  # a wrong name or setting is an error before any work is done
        resolve_recipe([default_recipe(name), ("compare", {"data": {"path": str(data)}}), ("settings", tables[name])])
    dataset = data if isinstance(data, Dataset) else load_dataset(data, drop_unknown_items=drop_unknown_items)
    opened = [run if isinstance(run, Run) else load_run(run, device=device) for run in runs]
    protocol, reason = (protocol, "as requested") if protocol else default_protocol(dataset)
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
        run_folder = folder / "runs" / name.replace(":", ".")
        opened.append(
            train(
                name,
                dataset,
                out=run_folder,
                settings=tables[name],
                protocol=protocol,
                minutes=minutes_per_model,
                seed=seed,
                device=device,
                resume=resume and run_folder.exists(),
                overwrite=overwrite,
                progress=progress,
                log=lambda line: None if line.startswith("note: ") else log(line),
            )
        )
    entries = [entry for run, name in zip(opened, row_names(opened), strict=True) for entry in _entries(run, name)]
    rows = [_row(run, name, dataset, split, progress=progress) for name, run in entries]
    examples = _customers(rows, [run for _, run in entries], dataset, split)
    write_json(folder / "scoreboard.json", scoreboard_json(rows))
    write_report(
        folder / "report.html",
        title=dataset.name,
        rows=rows,
        examples=examples,
        identifiers=next((run.model.catalog.identifiers for run in opened if run.model.catalog.identifiers), None),
        item_titles=dataset.catalog.titles(),
        epoch_logs={name: run.epoch_log for name, run in entries if run.epoch_log and not _is_guided(run.model)},
        notes=[f"Protocol {split.protocol}: {reason}.", *_notes(dataset, split, rows)],
        price_per_core_hour=price_per_core_hour,
    )
    return Comparison(rows, folder, examples, [run for _, run in entries])


def _notes(dataset: Dataset, split: Split, rows: Sequence[ReportRow]) -> list[str]:
    """Return what a reader should know about the data, the split and the models."""
    return [*dataset.notes, *split.notes, *(note for row in rows for note in row.evaluation.notes)]


def _tables(settings: Mapping[str, Mapping[str, Any] | Config], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the settings of each model as tables of its recipe. Raises UserError if they are no tables of a model."""
    for name, values in settings.items():
        if name not in names:
            raise UserError(f"settings of {name}, which is not among the models to train: {', '.join(names) or 'none'}")
        if not isinstance(values, Mapping | Config):
            raise UserError(f"settings of {name}: {values!r} is no table; write them as {name}.model.width=64")
    return {name: settings_table(settings.get(name, {})) for name in names}


def _is_guided(model: Recommender) -> TypeGuard[GuidedRecommender]:
    return isinstance(model, GuidedRecommender) and model.is_guided


def _entries(run: Run, name: str) -> list[tuple[str, Run]]:
    """Return the names and runs of the rows of a run: itself and, if it has a guide, the same without it.

    Training validates the generator alone, so its epochs belong to the second row.
    """
    if not _is_guided(run.model):
        return [(name, run)]
    model = run.model.without_guide()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    metrics = {"train_seconds": run.metrics.get("train_seconds", 0.0), "parameters": parameters}
    alone = replace(run, model=model, metrics=metrics, evaluation=None)
    return [(name, run), (f"{name} alone", alone)]


def row_names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: its model and, for runs of one model, the part of the folder that differs."""
    names = []
    for run in runs:
        namesakes = [other for other in runs if other.name == run.name and other is not run]
        parts = run.folder.absolute().parts
        num_parts = 1
        while num_parts < len(parts) and any(
            other.folder.absolute().parts[-num_parts:] == parts[-num_parts:] for other in namesakes
        ):
            num_parts += 1
        names.append(f"{run.name} ({'/'.join(parts[-num_parts:])})" if namesakes else run.name)
    return names


def _check(run: Run, table: DataTable) -> None:
    """Raise UserError if a run may not be compared on these data and this split."""
    run_table = run.recipe.data
    if run_table.fingerprint != table.fingerprint:
        raise UserError(f"{run.folder} was trained on other data ({run_table.path}); compare runs of one data set")
    problem = leak(run_table, table)
    if problem is not None:
        raise UserError(f"{run.folder} cannot be compared with the others: {problem}")


def _split_of(run: Run, dataset: Dataset, split: Split) -> Split:
    """Return the split of the comparison in the numbering of items of a run."""
    if run.model.catalog.fingerprint == dataset.catalog.fingerprint:
        return split
    return split_for(aligned(dataset, run.model), split.protocol, models=[run.name], seed=split.seed or 0)


def _row(run: Run, name: str, dataset: Dataset, split: Split, *, progress: bool) -> ReportRow:
    """Evaluate a run; a model with another catalogue gets the same requests in its own numbering of items."""
    run_split = _split_of(run, dataset, split)
    if run.evaluation is None:
        run.evaluation = evaluate_split(run, run_split, progress=progress)
    quality = generation_quality(run, run_split, GENERATION_REQUESTS)
    run.evaluation = replace(run.evaluation, generation=quality)
    time_of_one = latency(run.model, run_split.test)
    return ReportRow(
        replace(run.evaluation, model=name),
        model=run.name,
        folder=str(run.folder),
        parameters=int(run.metrics.get("parameters", 0)),
        train_seconds=float(run.metrics.get("train_seconds", 0.0)),
        p50_ms=round(time_of_one.p50_ms, 3),
        p99_ms=round(time_of_one.p99_ms, 3),
        cpu_ms=round(time_of_one.cpu_ms, 3),
    )


def _customers(rows: Sequence[ReportRow], runs: Sequence[Run], dataset: Dataset, split: Split) -> list[CustomerExample]:
    """Return NUM_CUSTOMERS example requests with histories of a readable length; the same requests for every run."""
    requests: SequenceBatch = split.test
    if requests.targets is None:
        return []  # models score the logged impressions and recommend no lists
    lengths = requests.items.lengths
    readable = ((lengths >= 4) & (lengths <= 30) & (requests.targets.lengths > 0)).nonzero()[:, 0]
    if not readable.numel():
        readable = (requests.targets.lengths > 0).nonzero()[:, 0]
    count = min(NUM_CUSTOMERS, readable.numel())
    selected_rows = readable[torch.linspace(0, readable.numel() - 1, count + 2).long()[1:-1]]
    lists = {
        row.name: _lists(row, run, _split_of(run, dataset, split).test, selected_rows)
        for row, run in zip(rows, runs, strict=True)
    }
    titles, users = dataset.catalog.titles(), split.train.users

    def titles_of(items: torch.Tensor) -> list[str]:
        return [str(title) for title in titles.gather((items[items > 0] - 1).numpy()).to_list()]

    examples = []
    for number, row in enumerate(selected_rows.tolist()):
        request = requests.select(torch.tensor([row]))
        assert request.targets is not None
        user = 0 if request.user_ids is None else int(users.numbers_of(request.user_ids.numpy())[0])
        name = f"customer {users.ids.external[user - 1]}" if user else f"request {row + 1}"
        history, targets = request.items.values[-LIST_LENGTH:], request.targets.values[:LIST_LENGTH]
        recommended = {model: of_model[number] for model, of_model in lists.items()}
        examples.append(CustomerExample(name, titles_of(history), titles_of(targets), recommended))
    return examples


def _lists(row: ReportRow, run: Run, requests: SequenceBatch, selected_rows: torch.Tensor) -> list[list[ListedItem]]:
    """Return the evaluated list of a run for each of these requests, with titles, hits and channels.

    Args:
        row: the row of the run.
        run: the run.
        requests: all requests, in the run's own numbering of items.
        selected_rows: numbers of the requests whose lists are returned.

    """
    titles = run.model.catalog.titles()
    batch = requests.select(selected_rows)
    assert batch.targets is not None
    answer = run.model.recommend(batch.to(run.model.popularity.device), max(1, row.evaluation.lists.shape[1]))
    targets = batch.targets.to_lists()
    result = []
    for number, items in enumerate(row.evaluation.lists[selected_rows, :LIST_LENGTH].tolist()):
        channels = {}
        if answer.channel is not None:
            of_items = zip(answer.item_ids[number].tolist(), answer.channel[number].tolist(), strict=True)
            channels = {item: answer.channels[channel] for item, channel in of_items if item > 0}
        result.append(
            [
                ListedItem(str(titles[item - 1]), item in targets[number], channels.get(item, ""))
                for item in items
                if item > 0
            ]
        )
    return result
