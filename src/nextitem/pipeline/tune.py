"""Tuning: a search for better settings of a model, judged by validation requests and never by test requests."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from nextitem.cascade.cascade import CascadeConfig
from nextitem.core.components import component_class
from nextitem.core.config import Config, apply_overrides, read_toml, to_toml_values, write_toml
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Generator
from nextitem.data.readers import load_dataset
from nextitem.models.blend import BlendConfig
from nextitem.pipeline.evaluate import split_for
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.options import Log, silent
from nextitem.pipeline.provenance import data_table
from nextitem.pipeline.recipe import (
    Recipe,
    model_name,
    recipe_layers,
    resolve_recipe,
    run_arguments,
    settings_table,
)
from nextitem.pipeline.stages import DEFAULT_METRIC, GENERATOR_VALIDATION, learns_by_gradient
from nextitem.pipeline.train import IN_MEMORY
from nextitem.pipeline.tuning.arguments import AUC, check_arguments
from nextitem.pipeline.tuning.named_space import build_space, flattened
from nextitem.pipeline.tuning.outcome import Tuning
from nextitem.pipeline.tuning.search import Search, read_trials
from nextitem.pipeline.tuning.space import Choices, Range, SearchSpace
from nextitem.pipeline.tuning.trials import TrialRunner, TuningData

REQUESTS = 4000  # validation requests that settings are chosen on, if there are more
SHARES = 20  # trials that a time budget is divided into, if the number of trials is open
DEFINITION_FILE = "tune.toml"


def tune(
    model: str | type[Recommender],
    data: Dataset | str | Path | Sequence[Dataset | str | Path],
    *,
    out: str | Path,
    minutes: float | None = None,
    trials: int | None = None,
    space: Mapping[str, Any] | Sequence[str] = (),
    metric: str | None = None,
    requests: int = REQUESTS,
    settings: Mapping[str, Any] | Config | None = None,
    recipe: str | Path | None = None,
    ids: str | Path | None = None,
    protocol: str | None = None,
    seed: int | None = None,
    jobs: int = 1,
    device: str = "auto",
    overrides: Sequence[str] = (),
    drop_unknown_items: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    log: Log | None = None,
) -> Tuning:
    """Search for settings that make a model better on validation requests; test requests are never looked at.

    Trial 0 has the default settings. Writes best.toml (a recipe), trials.jsonl and tuning.png into `out`. With `trials`
    and one job, the same seed gives the same trials; how many trials fit into `minutes` depends on the machine.

    Args:
        model: the name of a model (see `models`), a class of your own, or its import path.
        data: a data set, the path of its folder, or "shop"; or several of these. With several, the search maximises the
            mean of the figures relative to those of the default settings.
        out: the folder to write; refused if it is not empty.
        minutes: duration of the search; no trial is started that is expected to end later. A trial of a model that
            learns by gradient trains at most for its share: the duration over `trials`, or over 20.
        trials: number of trials.
        space: what is varied: {"model.width": [32, 64], "training.learning_rate": "1e-4..1e-2:log"}, or texts as
            `--space` takes them; empty: everything whose values can be derived from its default.
        metric: figure of lists, such as "recall@20"; None: "ndcg@10", or "auc" if scores of impressions are judged.
        requests: number of validation requests of each data set that settings are chosen on. If there are more, the
            search uses this many of one half, and the other half confirms the best settings.
        settings: settings that differ from the recipe, as in `train`; they are not varied, unless `space` names them.
        recipe: a .toml file, or the name of a recipe that ships with the package; None: the default of the model.
        ids: a folder of semantic IDs, as `tokenize` writes it.
        protocol: how the data are split; None: that of the recipe, or the default of the data.
        seed: seed of the search, of initial weights, shuffling and sampling; None: that of the recipe, or 0.
        jobs: number of trials at the same time, each in a process of its own with a copy of the data.
        device: where to compute: auto, cpu or cuda.
        overrides: settings as text, such as "model.width=128"; they are not varied, unless `space` names them.
        drop_unknown_items: skip events of items that are not in the items table; otherwise they are an error.
        resume: continue the search in `out`. Budgets count what it has already used.
        overwrite: replace a search that is in `out`.
        progress: log each trial.
        log: function that is called with each line of progress and each note; None: they are dropped.

    Returns:
        The trials, and the figures of the best settings.

    Raises:
        UserError: a mistake in the data, the settings, the search space or the arguments; or the default settings fail.

    Examples:
        >>> tuning = ni.tune("item-graph", "shop", out="runs/tuning", minutes=5)
        >>> tuning.changes
        >>> run = ni.train("item-graph", "shop", out="runs/tuned", recipe=tuning.recipe)

    """
    log = silent if log is None else log
    check_arguments(minutes=minutes, trials=trials, metric=metric, space=space, requests=requests, jobs=jobs)
    name = model_name(model)
    sources = [data] if isinstance(data, Dataset | str | Path) else list(data)
    if not sources:
        raise UserError("there is nothing to tune on: name a data set")
    recipes = []
    for source in sources:
        path = source if not isinstance(source, Dataset) else source.source or IN_MEMORY + source.name
        drop = drop_unknown_items or (isinstance(source, Dataset) and source.drops_unknown_items)
        arguments = run_arguments(name, str(path), protocol=protocol, drop=drop, seed=seed, ids=ids)
        layers = recipe_layers(name, recipe=recipe, arguments=arguments, settings=settings)
        recipes.append(resolve_recipe(layers, overrides=overrides))
    cls, config = component_class("model", recipes[0].model)
    is_composed = isinstance(config, CascadeConfig | BlendConfig)
    has_training = learns_by_gradient(recipes[0].model) and not is_composed
    fixed_names = _fixed_names(settings, overrides)
    search_space = _search_space(recipes[0], config, has_training=has_training, texts=space, fixed_names=fixed_names)
    tuning_data, metric = _load(sources, recipes, metric=metric, num_requests=requests, log=log)
    folder = prepare_out(out, resume=resume, overwrite=overwrite)
    share = _share(recipes[0], minutes, trials, num_data=len(sources), jobs=jobs)
    share = _begin(folder, search_space, tuning_data, metric=metric, seed=recipes[0].seed, share=share)
    names = dict.fromkeys(dimension.name for dimension in search_space.dimensions)
    log(f"{name}: {len(names)} settings are varied: {', '.join(names)}")
    if share is not None:
        log(f"a trial trains at most {60 * share:.0f} seconds on each data set")
    runner = TrialRunner(tuning_data, search_space, metric, device=device, minutes=share)
    search = Search(runner, folder, recipes[0].seed, log if progress else silent, read_trials(folder))
    is_complete = search.run(num_trials=trials, minutes=minutes, jobs=jobs)
    if not search.trials:
        raise KeyboardInterrupt
    counts = {each.name: each.split.validation.num_requests for each in tuning_data}
    tables = _tables_read(cls, config, has_training=has_training)
    tuning = Tuning(folder, name, metric, counts, search.trials, [], search_space, tables)
    tuning.save_recipe()
    if not is_complete:
        log("interrupted: the trials so far are kept; continue with --resume")
    tuning = replace(tuning, confirmations=search.confirmations(can_train=is_complete))
    tuning.save_recipe()
    tuning.save_plot()
    return tuning


def _fixed_names(settings: Mapping[str, Any] | Config | None, overrides: Sequence[str]) -> list[str]:
    """Return the dotted names of the settings that the user has set."""
    table = apply_overrides({} if settings is None else settings_table(settings), overrides)
    return [name for name, _ in flattened(table)]


def _search_space(
    recipe: Recipe,
    config: Config,
    *,
    has_training: bool,
    texts: Mapping[str, Any] | Sequence[str],
    fixed_names: Sequence[str],
) -> SearchSpace:
    """Return the search space, after a check that each setting that the user names may take its values."""
    tables = recipe.model_dump()
    training = recipe.training if has_training else None
    space = build_space(tables, config, training=training, texts=texts, fixed_names=fixed_names)
    if not texts:
        return space
    for dimension in space.dimensions:
        values = dimension.values
        for value in values.values if isinstance(values, Choices) else (values.low, values.high):
            settings = {dimension.name: round(value) if isinstance(values, Range) and values.is_integer else value}
            if dimension.kinds:
                settings[dimension.kind_name] = dimension.kinds[0]
            try:
                resolve_recipe([("the recipe", space.with_values(settings))])
            except UserError as error:
                raise UserError(f"--space {dimension.name} = {values}: {error}") from None
    return space


def _tables_read(cls: type[Recommender], config: Config, *, has_training: bool) -> tuple[str, ...]:
    """Return the names of the settings and tables of a recipe that a model reads."""
    needs = cls.needs | config.needs
    content = ("content", "content_training") if needs else ()
    identifiers = ("tokenizer", "tokenizer_training", "quality", "ids") if "identifiers" in needs else ()
    return ("seed", "model", *(("training",) if has_training else ()), "stages", *content, *identifiers)


def _load(
    sources: Sequence[Dataset | str | Path],
    recipes: Sequence[Recipe],
    *,
    metric: str | None,
    num_requests: int,
    log: Log,
) -> tuple[list[TuningData], str]:
    """Load and split the data sets.

    Args:
        sources: data sets, or their folders.
        recipes: the default settings of a run on each of them.
        metric: the figure to search by; None: the default one.
        num_requests: number of validation requests of each data set to search on.
        log: function that is called with notes.

    Returns:
        The data of the tuning without test requests, and the figure to search by.

    Raises:
        UserError: data that cannot be read or split, or a figure that the requests do not allow.

    """
    cls = component_class("model", recipes[0].model)[0]
    if issubclass(cls, Generator):
        num_requests = min(num_requests, GENERATOR_VALIDATION)
    loaded: list[TuningData] = []
    for source, recipe in zip(sources, recipes, strict=True):
        dataset = source
        if not isinstance(dataset, Dataset):
            dataset = load_dataset(dataset, drop_unknown_items=recipe.data.drop_unknown_items)
        split = split_for(dataset, recipe.data.protocol, models=[recipe.model["name"]], seed=recipe.seed)
        metric = metric or (AUC if split.judges_scores else DEFAULT_METRIC)
        if (metric == AUC) != split.judges_scores:
            needed = AUC if split.judges_scores else f"a figure of lists, such as {DEFAULT_METRIC}"
            raise UserError(f"{dataset.name}: protocol {split.protocol} is judged by {needed}, not by {metric}")
        names = [each.name for each in loaded]
        name = dataset.name if dataset.name not in names else f"{dataset.name} {len(names) + 1}"
        resolved = recipe.model_copy(update={"data": data_table(recipe.data, dataset, split)})
        loaded.append(TuningData.from_split(name, resolved, split, num_requests=num_requests))
        for note in (*dataset.notes, *split.notes):
            if not note.startswith("test: "):
                log(f"note: {note}")
        aside = loaded[-1].others
        others = "" if aside is None else f", {aside.num_requests:,} others confirm the best settings"
        log(
            f"{name}, protocol {split.protocol}: {loaded[-1].split.validation.num_requests:,} of "
            f"{split.validation.num_requests:,} validation requests select settings{others}"
        )
    assert metric is not None
    return loaded, metric


def _share(recipe: Recipe, minutes: float | None, trials: int | None, *, num_data: int, jobs: int) -> float | None:
    """Return the maximum training time of a trial on one data set, in minutes; None: that of the recipe.

    It has no meaning for a model in closed form.
    """
    if minutes is None or not learns_by_gradient(recipe.model):
        return None
    share = jobs * minutes / (trials or SHARES) / num_data
    return share if recipe.training.max_minutes is None else min(share, recipe.training.max_minutes)


def _begin(
    folder: Path, space: SearchSpace, data: Sequence[TuningData], *, metric: str, seed: int, share: float | None
) -> float | None:
    """Write tune.toml, which defines the search, or check that a search that is resumed is defined by the same.

    Returns:
        The maximum training time of a trial: that of the search that is resumed, otherwise `share`.

    Raises:
        UserError: the search in the folder is another one.

    """
    file = folder / DEFINITION_FILE
    definition = {
        "metric": metric,
        "seed": seed,
        "requests": {each.name: each.split.validation.num_requests for each in data},
        "space": {dimension.key: str(dimension.values) for dimension in space.dimensions},
        "data": {each.name: each.recipe.data.model_dump() for each in data},
        "recipe": {name: value for name, value in space.tables.items() if name != "data"},
    }
    if not file.is_file():
        write_toml(file, {**definition, "trial_minutes": share})
        return share
    former = read_toml(file)
    former_share = former.pop("trial_minutes", None)
    if former != tomllib.loads(tomli_w.dumps(to_toml_values(definition))):
        raise UserError(
            f"{folder} was begun with other settings, data or search space; resume with the same, or use --overwrite"
        )
    return None if former_share in (None, "none") else float(former_share)
