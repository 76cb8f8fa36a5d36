"""train: recipe -> data -> model -> bundle -> figures."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import tomli_w
import torch

from nextitem.cascade.cascade import Cascade
from nextitem.core.batch import SequenceBatch
from nextitem.core.components import build_component, component_class
from nextitem.core.config import Config, apply_overrides, read_toml, to_toml_values
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.roles import ClosedForm, Generator, Indexed, ProbabilityCalibrated, Ranker, Trainable
from nextitem.data.readers import load_dataset
from nextitem.distributed import processes
from nextitem.evaluation.evaluate import quick_score
from nextitem.evaluation.evaluate_ranking import quick_auc
from nextitem.neighbours.ann_index import AnnIndex
from nextitem.pipeline.bundle import load_model, load_recipe, save_model, save_recipe, write_json
from nextitem.pipeline.cascade import fit_cascade
from nextitem.pipeline.evaluate import evaluate_split, split_for
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.options import FitOptions, Log, silent
from nextitem.pipeline.provenance import data_table, leak
from nextitem.pipeline.recipe import Recipe, model_name, resolve_recipe, settings_table
from nextitem.pipeline.runs import Run, aligned, load_run
from nextitem.pipeline.tokenize import require_identifiers, with_content
from nextitem.recipes import default_recipe, read_recipe
from nextitem.training.fit import TrainingResult, fit

GENERATOR_VALIDATION = 2000  # requests that a generator is validated on
INDEX_QUERIES = 1000  # requests that an index is built with
IN_MEMORY = "memory:"  # prefix of the path of a data set that was given as an object


@processes.process_group()
def train(
    model: str | type[Recommender],
    data: Dataset | str | Path,
    *,
    out: str | Path,
    settings: Mapping[str, Any] | Config | None = None,
    recipe: str | Path | None = None,
    ids: str | Path | None = None,
    protocol: str | None = None,
    refit: bool | None = None,
    start_from: str | Path | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    drop_unknown_items: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    log: Log | None = None,
) -> Run:
    """Train a model, evaluate it on the test requests, and leave a run in `out`.

    Settings count in the order: overrides, settings and arguments, recipe, defaults.

    Args:
        model: a name (see `models()`), the import path of a class of your own ("my_package.my_module:MyModel"), or the
            class.
        data: a data set, the path of its folder, or "shop", the simulated shop.
        out: the folder of the run; refused if it is not empty.
        settings: nested tables, {"model": {"width": 128}, "training": {"max_epochs": 5}}, or with dotted keys,
            {"model.width": 128}, or the Config of the model.
        recipe: a .toml file, or the name of a recipe that ships with the package, instead of the model's default.
        ids: a folder of semantic IDs that `tokenize` has made.
        protocol: time, leave-one-out, session, user-split, published or impressions; None: by the data.
        refit: train again on training and validation events, for the number of epochs that was best.
        start_from: the folder of a run of the same model on the same items, whose weights are the first ones.
        minutes: budget of training time.
        seed: of weights, shuffling and sampling.
        device: auto, cpu or cuda.
        overrides: settings as text, "model.width=128", as the command line takes them.
        drop_unknown_items: leave out events of items that the items table lacks; otherwise they are an error.
        resume: continue a run that was interrupted; it ends with the weights that it would have had.
        overwrite: replace a run that is in `out`.
        progress: show a bar on a terminal, a line an epoch elsewhere; False: neither.
        log: function that receives other messages and notes; None: they are dropped.

    Raises:
        UserError: a mistake in the data, the settings or the arguments; the message says what, where, and the way out.

    """
    log = log if log is not None and processes.rank() == 0 else silent
    name = model_name(model)
    path = data if not isinstance(data, Dataset) else data.source or IN_MEMORY + data.name
    drop_unknown_items |= isinstance(data, Dataset) and data.drops_unknown_items
    arguments = _arguments(
        name, str(path), protocol=protocol, refit=refit, drop=drop_unknown_items, seed=seed, ids=ids, minutes=minutes
    )
    base = read_recipe(recipe) if recipe is not None else default_recipe(name)
    if base[1].get("model", {}).get("name", name) != name:
        raise UserError(f"recipe {base[0]} is for {base[1]['model']['name']}, not for {name}")
    layers = [base, ("the arguments", arguments)]
    if settings is not None:
        layers.append(("settings", settings_table(settings)))
    resolved = resolve_recipe(layers, overrides=overrides)
    _say_unused_settings(resolved, [*(table for _, table in layers)], overrides, log)
    is_dropping = resolved.data.drop_unknown_items
    dataset = data if isinstance(data, Dataset) else load_dataset(data, drop_unknown_items=is_dropping)
    split = split_for(dataset, resolved.data.protocol, models=[name], seed=resolved.seed)
    resolved = resolved.model_copy(update={"data": data_table(resolved.data, dataset, split)})
    folder = Path(out)
    processes.run_on_rank_zero(lambda: prepare_out(out, resume=resume, overwrite=overwrite))
    finished = _finished_run(folder, resolved) if resume else None
    if finished is not None:
        log(f"{folder} is finished already")
        return finished
    processes.run_on_rank_zero(lambda: save_recipe(folder, resolved))
    for note in (*dataset.notes, *split.notes):
        log(f"note: {note}")
    options = FitOptions(folder, device=device, resume=resume, progress=progress, log=log)
    return train_split(dataset, split, resolved, options, start_from=start_from)


def train_split(
    dataset: Dataset, split: Split, recipe: Recipe, options: FitOptions, *, start_from: str | Path | None = None
) -> Run:
    """Train the recipe's model on a split of a data set, evaluate it, and write the bundle.

    After Ctrl-C what has been learnt is saved and evaluated; the run then counts as unfinished and can be resumed.
    """
    cls, config = component_class("model", recipe.model)
    if recipe.data.refit and getattr(config, "calibration", None):
        raise UserError("a refit leaves no requests to fit model.calibration to; leave one of the two out")
    train_data = _with_requirements(split.train, recipe, cls.needs | config.needs, options)
    began = time.perf_counter()
    model, result = _fit(train_data, split, recipe, options, start_from=start_from)
    results = [result]
    if recipe.data.refit and (result is None or result.stop_reason != "interrupted"):
        enlarged = split.refit().with_catalog(train_data.catalog)
        epochs = None if result is None else max(1, result.best_epoch)
        options.log("refit on training and validation events" + (f" for {epochs} epochs" if epochs else ""))
        inside = replace(options, folder=options.folder / "refit")
        model, refit_result = _fit(enlarged, None, recipe, inside, start_from=start_from, epochs=epochs)
        results.append(refit_result)
    for note in () if result is None else result.notes:
        options.log(f"note: {note}")
    is_interrupted = any(part is not None and part.stop_reason == "interrupted" for part in results)
    if is_interrupted:
        options.log("interrupted: what has been learnt is saved and evaluated; continue with --resume")
    _finish(model, split, options.log)
    seconds = time.perf_counter() - began
    processes.run_on_rank_zero(lambda: save_model(options.folder, model))
    run = Run(options.folder, recipe, model, _dataset=aligned(dataset, model))
    run.evaluation = evaluate_split(run, split, progress=options.progress)
    run.epoch_log = [] if result is None else result.epoch_log
    run.metrics = {
        **run.evaluation.to_json(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(seconds, 2),
        **_index_recall(model),
        "stopped": None if result is None else result.stop_reason,
        "best_epoch": None if result is None else result.best_epoch,
    }
    if not is_interrupted:
        processes.run_on_rank_zero(lambda: write_json(options.folder / "metrics.json", run.metrics))
    return run


def _arguments(
    name: str,
    path: str,
    *,
    protocol: str | None,
    refit: bool | None,
    drop: bool,
    seed: int | None,
    ids: str | Path | None,
    minutes: float | None,
) -> dict[str, Any]:
    """The arguments of `train` as tables of a recipe; those that are None or false say nothing."""
    data = {"path": path, "protocol": protocol, "refit": refit, "drop_unknown_items": drop or None}
    tables: dict[str, Any] = {
        "data": {key: value for key, value in data.items() if value is not None},
        "model": {"name": name},
    }
    if minutes is not None:
        tables["training"] = {"max_minutes": minutes}
    top = {"seed": seed, "ids": None if ids is None else str(ids)}
    return tables | {key: value for key, value in top.items() if value is not None}


def _say_unused_settings(
    resolved: Recipe, layers: Sequence[Mapping[str, Any]], overrides: Sequence[str], log: Log
) -> None:
    """Warn of settings that the user wrote and that have no effect beside the others."""
    written = {key for layer in layers for key in layer.get("model", {}) if key != "name"}
    written |= {each.partition("=")[0].strip().split(".")[1] for each in overrides if each.startswith("model.")}
    cls, config = component_class("model", resolved.model)
    values = {name: getattr(config, name) for name in type(config).model_fields}
    for sentence in type(config).model_construct(_fields_set=written, **values).unused_settings():
        log(f"warning: {sentence}")
    if issubclass(cls, ClosedForm) and not issubclass(cls, Cascade):
        tables = [*layers, apply_overrides({}, overrides)]
        names = {key for table in tables for key in table.get("training", {})} - {"max_minutes"}
        for key in sorted(names):
            name = resolved.model["name"]
            log(f"warning: training.{key} has no effect: {name} learns in one pass, without gradients")


def _with_requirements(train: Dataset, recipe: Recipe, needs: frozenset[str], options: FitOptions) -> Dataset:
    """The training data with the content vectors and semantic IDs that a model needs."""
    if "content" in needs:
        train = with_content(train, recipe, progress=options.progress)
    if "identifiers" in needs:
        train = require_identifiers(train, recipe, options)
    return train


def _fit(
    train: Dataset,
    split: Split | None,
    recipe: Recipe,
    options: FitOptions,
    *,
    start_from: str | Path | None,
    epochs: int | None = None,
) -> tuple[Recommender, TrainingResult | None]:
    """Build and fit one model; `split` None means that there is nothing to validate on."""
    torch.manual_seed(recipe.seed)
    model: Recommender = build_component("model", recipe.model, train.catalog)
    model.set_popularity_from(train)
    if start_from is not None:
        _load_first_weights(model, Path(start_from), recipe, options.log)
    if isinstance(model, Cascade):
        if start_from is not None:
            raise UserError("--from: a cascade is not continued; its stages learn in order")
        fit_cascade(model, train, split, recipe, options)
        return model.eval(), None
    if isinstance(model, ClosedForm):
        model.fit(train)
        return model.eval(), None
    if not isinstance(model, Trainable):
        raise UserError(
            f"{recipe.model['name']} cannot learn: give the class a method fit(train), or examples(train) and "
            "training_loss(batch)"
        )
    result = fit(
        cast(torch.nn.Module, model),
        model.examples(train),
        recipe.training,
        seed=recipe.seed,
        out=options.folder,
        validate=None if split is None else _validate(model, split),
        stop_after=epochs,
        resume=options.resume,
        device=options.device,
        progress=options.progress,
        label=recipe.model["name"],
    )
    return model.eval(), result


def _validate(model: Recommender, split: Split) -> partial[float] | None:
    """How an epoch is judged: by lists, or by the order of what was shown; a generator by a sample of requests."""
    requests: SequenceBatch = split.validation
    if not requests.num_requests:
        return None
    if split.judges_scores and isinstance(model, Ranker):
        return partial(quick_auc, model, requests)
    if isinstance(model, Generator):
        requests = requests.sample(GENERATOR_VALIDATION)
    return partial(quick_score, model, requests)


def _finish(model: Recommender, split: Split, log: Log) -> None:
    """What follows learning: calibration on validation requests, indexes over what was learnt."""
    if isinstance(model, ProbabilityCalibrated):
        for note in model.calibrate(split.validation):
            log(f"note: {note}")
    for part in model.modules():
        if isinstance(part, Indexed):
            part.build_index(split.validation.sample(INDEX_QUERIES))


def _index_recall(model: Recommender) -> dict[str, Any]:
    """By part: the share of exact search's items that an approximate index found when it was built."""
    indexes = {name: part for name, part in model.named_modules() if isinstance(part, AnnIndex)}
    recall = {name: round(float(part.recall), 4) for name, part in indexes.items() if part.config.kind != "exact"}
    return {"index_recall": recall} if recall else {}


def _load_first_weights(model: Recommender, source: Path, recipe: Recipe, log: Log) -> None:
    former_recipe = load_recipe(source)
    problem = leak(former_recipe.data, recipe.data)
    if problem is not None:
        raise UserError(f"--from {source}: {problem}")
    if former_recipe.data.fingerprint != recipe.data.fingerprint:
        log(f"note: {source} was trained on other data; test targets of this data may be among its training events")
    former = load_model(source, former_recipe)
    if type(former) is not type(model) or former.catalog.fingerprint != model.catalog.fingerprint:
        raise UserError(f"--from {source}: it must be a run of the same model on the same items")
    model.load_state_dict(former.state_dict())


def _finished_run(folder: Path, recipe: Recipe) -> Run | None:
    """The finished run in `folder`, None if it is to be continued; UserError if its recipe is another."""
    if not (folder / "recipe.toml").is_file():
        return None
    as_read_back = tomllib.loads(tomli_w.dumps(to_toml_values(recipe.model_dump())))
    if read_toml(folder / "recipe.toml") != as_read_back:
        raise UserError(f"{folder} was begun with other settings or data; resume with the same, or use --overwrite")
    return load_run(folder) if (folder / "metrics.json").is_file() else None
