"""Training of a run: from recipe and data to a fitted model, its evaluation, and the files of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from nextitem.cascade.cascade import Cascade
from nextitem.core.components import build_component, component_class
from nextitem.core.config import Config, apply_overrides
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.roles import ClosedForm, Indexed, ProbabilityCalibrated, Trainable
from nextitem.data.readers import load_dataset
from nextitem.decoding.guidance import GuidedConfig, GuidedRecommender
from nextitem.distributed import processes
from nextitem.models.blend import Blend
from nextitem.neighbours.ann_index import AnnIndex
from nextitem.pipeline.blend import fit_blend
from nextitem.pipeline.bundle import check_same_recipe, load_model, load_recipe, save_model, save_recipe, write_json
from nextitem.pipeline.cascade import fit_cascade
from nextitem.pipeline.evaluate import evaluate_split, split_for
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.guide import fit_guide
from nextitem.pipeline.options import FitOptions, Log, silent
from nextitem.pipeline.provenance import data_table, leak
from nextitem.pipeline.recipe import Recipe, model_name, recipe_layers, resolve_recipe, run_arguments
from nextitem.pipeline.runs import Run, aligned, load_run
from nextitem.pipeline.stages import DEFAULT_METRIC, stage_names, validation_figure
from nextitem.pipeline.tokenize import require_identifiers, with_content
from nextitem.training.fit import TrainingResult, fit

INDEX_QUERIES = 1000  # maximum number of validation requests that an index is built with
IN_MEMORY = "memory:"  # prefix of the path of a data set that was passed as an object


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
    """Train a model, evaluate it on the test requests, and write the run into `out`.

    If a setting has several values, the first of these decides: `overrides`, `settings`, the other arguments, the
    recipe, the defaults.

    Args:
        model: the name of a model (see `models`), a class of your own, or its import path
            ("my_package.my_module:MyModel").
        data: a data set, the path of its folder, or "shop", the simulated shop.
        out: the folder of the run; refused if it is not empty.
        settings: nested tables, {"model": {"width": 128}, "training": {"max_epochs": 5}}; or dotted keys,
            {"model.width": 128}; or the Config of the model.
        recipe: a .toml file, or the name of a recipe that ships with the package; None: the default of the model.
        ids: a folder of semantic IDs, as `tokenize` writes it, for models that need them.
        protocol: how the data are split: time, leave-one-out, session, user-split, published or impressions; None: that
            of the recipe, or the default of the data.
        refit: train again on training and validation events, for the number of epochs that was best on validation.
        start_from: the folder of a run of the same model on the same items, whose weights training starts from.
        minutes: maximum training time, in minutes; None: as the recipe says.
        seed: seed of initial weights, shuffling and sampling; None: that of the recipe, or 0.
        device: where to compute: auto, cpu or cuda.
        overrides: settings as text, such as "model.width=128", as the command line takes them.
        drop_unknown_items: skip events of items that are not in the items table; otherwise they are an error.
        resume: continue an interrupted run in `out`. It ends with the same weights as an uninterrupted one.
        overwrite: replace a run that is in `out`.
        progress: show progress: a bar on a terminal, otherwise one line for each epoch.
        log: function that is called with each other message, note and warning; None: they are dropped.

    Returns:
        The trained run, with its evaluation on the test requests.

    Raises:
        UserError: a mistake in the data, the settings or the arguments. The message says what is wrong, where, and the
            way out.

    Examples:
        >>> run = ni.train("sasrec", "shop", out="runs/sasrec", settings={"model.width": 128}, minutes=5)
        >>> run.evaluation.metrics["recall@10"]
        >>> run.recommend(history=["10001", "10042"], k=10)

    """
    log = log if log is not None and processes.rank() == 0 else silent
    name = model_name(model)
    path = data if not isinstance(data, Dataset) else data.source or IN_MEMORY + data.name
    drop_unknown_items |= isinstance(data, Dataset) and data.drops_unknown_items
    arguments = run_arguments(
        name, str(path), protocol=protocol, refit=refit, drop=drop_unknown_items, seed=seed, ids=ids, minutes=minutes
    )
    layers = recipe_layers(name, recipe=recipe, arguments=arguments, settings=settings)
    resolved = resolve_recipe(layers, overrides=overrides)
    _log_unused_settings(resolved, [*(table for _, table in layers)], overrides, log)
    is_dropping = resolved.data.drop_unknown_items
    dataset = data if isinstance(data, Dataset) else load_dataset(data, drop_unknown_items=is_dropping)
    split = split_for(dataset, resolved.data.protocol, models=[name], seed=resolved.seed)
    resolved = resolved.model_copy(update={"data": data_table(resolved.data, dataset, split)})
    folder = Path(out)
    processes.run_on_rank_zero(lambda: prepare_out(out, resume=resume, overwrite=overwrite))
    finished = _finished_run(folder, resolved) if resume else None
    if finished is not None:
        log(f"{folder} is finished already; nothing to resume")
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

    After Ctrl-C, the weights so far are saved and evaluated. The run then counts as unfinished and can be resumed.

    Args:
        dataset: the data set, which the run keeps for later requests.
        split: training, validation and test data.
        recipe: settings of the run, resolved.
        options: how and where to train.
        start_from: folder of a run whose weights training starts from; None: random weights.

    Raises:
        UserError: settings exclude each other, or the model cannot be trained.

    """
    cls, config = component_class("model", recipe.model)
    if recipe.data.refit and getattr(config, "calibration", None):
        raise UserError("a refit leaves no requests to fit model.calibration to; omit one of the two")
    train_data = with_requirements(split.train, recipe, cls.needs | config.needs, options)
    start_time = time.perf_counter()
    model, result = fit_model(train_data, split, recipe, options, start_from=start_from)
    results = [result]
    if recipe.data.refit and (result is None or result.stop_reason != "interrupted"):
        refit_data = split.refit().with_catalog(train_data.catalog)
        epochs = None if result is None else max(1, result.best_epoch)
        options.log("refit on training and validation events" + (f" for {epochs} epochs" if epochs else ""))
        refit_options = replace(options, folder=options.folder / "refit")
        model, refit_result = fit_model(refit_data, None, recipe, refit_options, start_from=start_from, epochs=epochs)
        results.append(refit_result)
    for note in () if result is None else result.notes:
        options.log(f"note: {note}")
    is_interrupted = any(part is not None and part.stop_reason == "interrupted" for part in results)
    if is_interrupted:
        options.log("interrupted: the weights so far are saved and evaluated; continue with --resume")
    finish_model(model, split, options.log)
    seconds = time.perf_counter() - start_time
    processes.run_on_rank_zero(lambda: save_model(options.folder, model))
    run = Run(options.folder, recipe, model, _dataset=aligned(dataset, model))
    run.evaluation = evaluate_split(run, split, progress=options.progress)
    run.epoch_log = [] if result is None else result.epoch_log
    run.metrics = {
        **run.evaluation.to_json(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_seconds": round(seconds, 2),
        **_index_recall(model),
        "stopped": None if result is None else result.stop_reason,
        "best_epoch": None if result is None else result.best_epoch,
    }
    if not is_interrupted:
        processes.run_on_rank_zero(lambda: write_json(options.folder / "metrics.json", run.metrics))
    return run


def _log_unused_settings(
    resolved: Recipe, layers: Sequence[Mapping[str, Any]], overrides: Sequence[str], log: Log
) -> None:
    """Log a warning for each setting that the user has set and that has no effect together with the others."""
    set_fields = {key for layer in layers for key in layer.get("model", {}) if key != "name"}
    model_overrides = [override for override in overrides if override.startswith("model.")]
    set_fields |= {override.partition("=")[0].strip().split(".")[1] for override in model_overrides}
    cls, config = component_class("model", resolved.model)
    values = {name: getattr(config, name) for name in type(config).model_fields}
    for sentence in type(config).model_construct(_fields_set=set_fields, **values).unused_settings():
        log(f"warning: {sentence}")
    name, stages = resolved.model["name"], stage_names(config)
    for stage in resolved.stages:
        if stage not in stages:
            known_stages = f"; there are {', '.join(stages)}" if stages else ""
            log(f"warning: stages.{stage} has no effect: {name} has no stage of this name{known_stages}")
    reason = f"{name} learns in one pass, without gradients" if issubclass(cls, ClosedForm) else ""
    if stages and not isinstance(config, GuidedConfig):
        reason = f"each stage of {name} has settings of its own, in the table [stages.NAME]"
    if reason:
        tables = [*layers, apply_overrides({}, overrides)]
        keys = {key for table in tables for key in table.get("training", {})} - {"max_minutes"}
        for key in sorted(keys):
            log(f"warning: training.{key} has no effect: {reason}")


def with_requirements(train: Dataset, recipe: Recipe, needs: frozenset[str], options: FitOptions) -> Dataset:
    """Return the training data with the content vectors and semantic IDs that a model needs."""
    if "content" in needs:
        train = with_content(train, recipe, out=options.bundle_folder, progress=options.progress)
    if "identifiers" in needs:
        train = require_identifiers(train, recipe, options)
    return train


def fit_model(
    train: Dataset,
    split: Split | None,
    recipe: Recipe,
    options: FitOptions,
    *,
    start_from: str | Path | None = None,
    epochs: int | None = None,
    metric: str = DEFAULT_METRIC,
    on_validation: Callable[[float], None] | None = None,
) -> tuple[Recommender, TrainingResult | None]:
    """Build and fit one model.

    Args:
        train: training data.
        split: the split with the validation requests; None: a refit, without validation.
        recipe: settings of the run.
        options: how and where to train.
        start_from: folder of a run whose weights training starts from; None: random weights.
        epochs: number of epochs to train; None: as the settings say.
        metric: figure of lists that the best epoch is selected by, name@k.
        on_validation: function that is called with the figure of each validation of training by gradient. An exception
            that it raises ends training.

    Returns:
        The model in evaluation mode, and the result of training by gradient; None for a cascade or a blend, whose
        stages have results of their own, and for a model in closed form.

    """
    torch.manual_seed(recipe.seed)
    model: Recommender = build_component("model", recipe.model, train.catalog)
    model.set_popularity_from(train)
    if start_from is not None:
        if isinstance(model, Cascade | Blend):
            raise UserError(
                f"--from: a {recipe.model['name']} cannot start from another run, as the models that it is composed of "
                "are trained in order; omit --from"
            )
        _load_initial_weights(model, Path(start_from), recipe, options.log)
    if isinstance(model, Cascade):
        fit_cascade(model, train, split, recipe, options)
        return model.eval(), None
    if isinstance(model, Blend):
        fit_blend(model, train, split, recipe, options)
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
        out=options.folder if options.is_resumable else None,
        validate=None if split is None else _validate(model, split, metric, on_validation),
        stop_after=epochs,
        resume=options.resume,
        device=options.device,
        progress=options.progress,
        label=recipe.model["name"],
    )
    if isinstance(model, GuidedRecommender) and model.guidance is not None and result.stop_reason != "interrupted":
        fit_guide(model, train, split, recipe, options)
    return model.eval(), result


def _validate(
    model: Recommender, split: Split, metric: str, on_validation: Callable[[float], None] | None
) -> Callable[[], float] | None:
    """Return the function that validates an epoch, or None without validation requests."""
    figure = validation_figure(model, split, metric=metric)
    if figure is None or on_validation is None:
        return figure

    def validate() -> float:
        value = figure()
        on_validation(value)
        return value

    return validate


def finish_model(model: Recommender, split: Split, log: Log) -> None:
    """Calibrate a trained model on validation requests, and build its search indexes."""
    if isinstance(model, ProbabilityCalibrated):
        for note in model.calibrate(split.validation):
            log(f"note: {note}")
    for part in model.modules():
        if isinstance(part, Indexed):
            part.build_index(split.validation.sample(INDEX_QUERIES))


def _index_recall(model: Recommender) -> dict[str, Any]:
    """Return, for each approximate index, its recall against exact search when it was built; empty without one."""
    indexes = {name: part for name, part in model.named_modules() if isinstance(part, AnnIndex)}
    recall = {name: round(float(part.recall), 4) for name, part in indexes.items() if part.config.kind != "exact"}
    return {"index_recall": recall} if recall else {}


def _load_initial_weights(model: Recommender, source: Path, recipe: Recipe, log: Log) -> None:
    """Load the weights of another run into a model.

    Raises UserError if it is a run of another model or other items, or may have learned from test targets of this run.
    """
    source_recipe = load_recipe(source)
    problem = leak(source_recipe.data, recipe.data)
    if problem is not None:
        raise UserError(f"--from {source}: {problem}")
    if source_recipe.data.fingerprint != recipe.data.fingerprint:
        log(f"note: {source} was trained on other data; test targets of this data may be among its training events")
    source_model = load_model(source, source_recipe)
    if type(source_model) is not type(model) or source_model.catalog.fingerprint != model.catalog.fingerprint:
        raise UserError(
            f"--from {source}: it is a run of another model or other items; use one of the same, or omit --from"
        )
    model.load_state_dict(source_model.state_dict())


def _finished_run(folder: Path, recipe: Recipe) -> Run | None:
    """Return the finished run in `folder`, or None if it is unfinished. Raises UserError if its recipe differs."""
    if not (folder / "recipe.toml").is_file():
        return None
    check_same_recipe(folder, recipe)
    return load_run(folder) if (folder / "metrics.json").is_file() else None
