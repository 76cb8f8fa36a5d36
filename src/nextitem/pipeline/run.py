"""A run: recipe -> data -> model -> bundle -> figures."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from nextitem.cascade.cascade import Cascade
from nextitem.core import processes, registry
from nextitem.core.batch import SequenceBatch
from nextitem.core.config import read_toml, to_toml_values
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Calibrated, ClosedForm, Generator, Indexed, Ranker, Staged, Trainable
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.evaluation.evaluate import Evaluation, quick_score
from nextitem.evaluation.evaluate import evaluate as evaluate_model
from nextitem.evaluation.evaluate_ranking import evaluate_ranker, quick_auc
from nextitem.evaluation.funnel import funnel
from nextitem.evaluation.generation import generation_report, spells
from nextitem.nn.ann_index import AnnIndex
from nextitem.pipeline.bundle import load_model, load_recipe, save_model, save_recipe, write_json
from nextitem.pipeline.cascade import Stages, fit_cascade
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.identify import Say, require_identifiers, with_content
from nextitem.pipeline.recipe import Recipe, build, component, default_for, find, resolve
from nextitem.pipeline.recommend import Answer, Filters, answer, history_requests, user_requests
from nextitem.training.fit import TrainingResult, fit

KS = (5, 10, 20)
GENERATOR_VALIDATION = 2000  # requests that a generator is validated on
INDEX_QUERIES = 1000  # requests that an index is built with


@dataclass
class Run:
    """A trained model with the recipe that made it, and the folder it lives in."""

    folder: Path
    recipe: Recipe
    model: Recommender
    metrics: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    _dataset: Dataset | None = None

    @property
    def dataset(self) -> Dataset:
        """The data set of the recipe, loaded when first asked for, in the numbering of the model."""
        if self._dataset is None:
            data = self.recipe.data
            self._dataset = aligned(load_dataset(data.path, drop_unknown_items=data.drop_unknown_items), self.model)
        return self._dataset

    def use_data(self, data: Dataset | str | Path) -> None:
        """Takes histories from other data, in the numbering of the model."""
        loaded = data if isinstance(data, Dataset) else load_dataset(data)
        self._dataset = aligned(loaded, self.model)

    def recommend(
        self,
        *,
        history: Sequence[Any] | None = None,
        user: Any | None = None,
        k: int = 10,
        exclude_seen: bool | None = None,
        only: Sequence[str] = (),
        exclude_items: Sequence[Any] = (),
    ) -> Answer:
        """The k best items for a history of item ids, or for a user of the data set.

        `exclude_seen` None follows the data set's `repeats`; `only` holds column=value filters on the items.
        """
        if (history is None) == (user is None):
            raise UserError("give either a history of items or a user")
        filters = Filters(tuple(only), tuple(exclude_items))
        if history is not None:
            requests, skipped = history_requests(history, self.model.catalog)
        else:
            skipped = ()
            requests = user_requests(self.dataset, [user])
        # A history from outside carries no data set, and so no rule on repeats: it is kept out unless told so.
        seen = exclude_seen if exclude_seen is not None else history is not None or not self.dataset.repeats
        found = answer(self.model, requests, k=k, exclude_seen=seen, filters=filters)[0]
        return replace(found, skipped=skipped)


@processes.joined()
def train(
    model: str,
    data: Dataset | str | Path,
    *,
    out: str | Path,
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
    say: Say | None = None,
) -> Run:
    """Trains `model` on `data`, evaluates it on the test requests, and leaves a bundle in `out`.

    `data` is a data set, its folder, or "shop". Settings count in the order `overrides`, arguments, recipe,
    defaults. With `resume`, a run that was cut off goes on and ends with the same weights.
    """
    say = say if say is not None and processes.rank() == 0 else (lambda text: None)
    path = data.source or data.name if isinstance(data, Dataset) else str(data)
    given: dict[str, Any] = {"data": {"path": path}, "model": {"name": model}}
    given["data"].update({"protocol": protocol} if protocol else {})
    given["data"].update({"refit": refit} if refit is not None else {})
    given["data"].update({"drop_unknown_items": True} if drop_unknown_items else {})
    given.update({"seed": seed} if seed is not None else {})
    given.update({"ids": str(ids)} if ids is not None else {})
    given.update({"training": {"max_minutes": minutes}} if minutes is not None else {})
    base = find(recipe) if recipe is not None else default_for(model)
    if base[1].get("model", {}).get("name", model) != model:
        raise UserError(f"recipe {base[0]} is for {base[1]['model']['name']}, not for {model}")
    settings = resolve([base, ("the command line", given)], overrides=overrides)
    dataset = (
        data if isinstance(data, Dataset) else load_dataset(data, drop_unknown_items=settings.data.drop_unknown_items)
    )
    split = split_for(dataset, settings.data.protocol, models=[settings.model["name"]], seed=settings.seed)
    settings = settings.model_copy(
        update={
            "data": settings.data.model_copy(update={"protocol": split.protocol, "fingerprint": dataset.fingerprint})
        }
    )
    folder = Path(out)
    processes.first_alone(lambda: prepare_out(out, resume=resume, overwrite=overwrite))
    finished = _resumed(folder, settings) if resume else None
    if finished is not None:
        say(f"{folder} is finished already")
        return finished
    processes.first_alone(lambda: save_recipe(folder, settings))
    return train_on(
        split,
        settings,
        folder=folder,
        start_from=start_from,
        device=device,
        resume=resume,
        progress=progress,
        say=say,
    )


def train_on(
    split: Split,
    recipe: Recipe,
    *,
    folder: Path,
    start_from: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    progress: bool = True,
    say: Say = lambda text: None,
) -> Run:
    """Trains the recipe's model on a split that is made already, evaluates it, and writes the bundle."""
    kind, config = component("model", recipe.model)
    needs: frozenset[str] = getattr(kind, "needs", frozenset()) | getattr(config, "needs", frozenset())
    learnt = split.train
    if recipe.data.refit and getattr(config, "calibration", None):
        raise UserError("a refit leaves no requests to fit model.calibration to; leave one of the two out")
    if "content" in needs:
        learnt = with_content(learnt, recipe, progress=progress)
    if "identifiers" in needs:
        learnt = require_identifiers(learnt, recipe, out=folder, say=say, progress=progress)
    began = time.perf_counter()
    refitted: TrainingResult | None = None
    model, result = _fit(
        learnt,
        split,
        recipe,
        folder=folder,
        start_from=start_from,
        device=device,
        resume=resume,
        progress=progress,
        say=say,
    )
    if recipe.data.refit and (result is None or result.stopped != "interrupted"):
        enlarged = split.refit().with_catalog(learnt.catalog)
        epochs = None if result is None else max(1, result.best_epoch)
        say("refit on training and validation events" + (f" for {epochs} epochs" if epochs else ""))
        model, refitted = _fit(
            enlarged,
            None,
            recipe,
            folder=folder / "refit",
            start_from=start_from,
            device=device,
            resume=resume,
            progress=progress,
            say=say,
            epochs=epochs,
        )
    if isinstance(model, Calibrated):
        model.calibrate(split.validation)
    for part in model.modules():
        if isinstance(part, Indexed):
            part.build_index(_sample(split.validation, INDEX_QUERIES))
    seconds = time.perf_counter() - began
    processes.first_alone(lambda: save_model(folder, model))
    run = Run(folder, recipe, model, _dataset=split.train)
    run.evaluation = evaluate_split(run, split, progress=progress)
    run.history = [] if result is None else result.history
    run.metrics = {
        **run.evaluation.to_json(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(seconds, 2),
        **_index_recall(model),
        "stopped": None if result is None else result.stopped,
        "best_epoch": None if result is None else result.best_epoch,
    }
    if not any(part is not None and part.stopped == "interrupted" for part in (result, refitted)):
        processes.first_alone(lambda: write_json(folder / "metrics.json", run.metrics))
    return run


@processes.joined()
def evaluate(
    run: Run | str | Path,
    data: Dataset | str | Path | None = None,
    *,
    protocol: str | None = None,
    allow_other_data: bool = False,
    progress: bool = False,
    generation: int | None = None,
) -> Evaluation:
    """Figures of a run on the test requests of its own data and protocol.

    Other data, or another protocol (whose test targets the run may have learnt), is a UserError unless
    `allow_other_data`. `generation`: also report, on so many requests, how a model that spells items does so.
    """
    run = load_run(run) if not isinstance(run, Run) else run
    recipe = run.recipe.data
    source = recipe.path if data is None else data
    dataset = (
        source if isinstance(source, Dataset) else load_dataset(source, drop_unknown_items=recipe.drop_unknown_items)
    )
    if not allow_other_data:
        if dataset.fingerprint != recipe.fingerprint:
            raise UserError(
                f"{dataset.name} is not the data that {run.folder} was trained on ({recipe.path}): "
                "its test targets may have been learnt; add --allow-other-data to evaluate all the same"
            )
        if protocol is not None and protocol != recipe.protocol:
            raise UserError(
                f"{run.folder} was trained under protocol {recipe.protocol}: under {protocol} its test targets "
                "may have been learnt; add --allow-other-data to evaluate all the same"
            )
    names = [run.recipe.model["name"]]
    split = split_for(aligned(dataset, run.model), protocol or recipe.protocol, models=names, seed=run.recipe.seed)
    if generation is not None and not spells(run.model):
        raise UserError(f"{run.recipe.model['name']} does not spell items by codes: leave --generation out")
    figures = evaluate_split(run, split, progress=progress)
    if generation is None:
        return figures
    return replace(figures, generation=spelling(run, split, requests=generation))


def spelling(run: Run, split: Split, *, requests: int) -> dict[str, Any] | None:
    """How a model spells, on so many of the test requests (evaluation.generation); None where it does not."""
    if not spells(run.model):
        return None
    rows = torch.linspace(0, split.test.num_requests - 1, min(requests, split.test.num_requests)).long()
    width = run.recipe.model["beam_width"]
    return generation_report(run.model, split.test.select(rows), beam_width=width)


def split_for(dataset: Dataset, protocol: str | None, *, models: Sequence[str], seed: int) -> Split:
    """The split that these models are judged on; UserError where it asks for scores and one of them gives lists."""
    split = make_split(dataset, protocol, seed=seed)
    if split.test.targets is None:
        for name in models:
            if not hasattr(registry.entry("model", name).load(), "score"):
                ways = "choose another with --protocol" if len(dataset.interactions) else "this data holds nothing else"
                raise UserError(
                    f"protocol {split.protocol} judges the scores that a ranker gives to shown items, and {name} "
                    f"returns lists of its own; {ways}, or take a ranker: lr, din, ..."
                )
    return split


def evaluate_split(run: Run, split: Split, *, progress: bool = False) -> Evaluation:
    """Figures of a run on a split's test requests."""
    if split.test.targets is None:
        assert isinstance(run.model, Ranker)
        return evaluate_ranker(
            run.model,
            split.test,
            model_name=run.recipe.model["name"],
            refit=run.recipe.data.refit,
            progress=progress,
        )
    figures = evaluate_model(
        run.model,
        split.test,
        train=split.train,
        ks=KS,
        set_requests=split.test_later,
        model_name=run.recipe.model["name"],
        protocol=split.protocol,
        refit=run.recipe.data.refit,
        progress=progress,
    )
    if not isinstance(run.model, Staged):
        return figures
    asked = split.test.select((split.test.items.lengths > 0).nonzero()[:, 0])
    return replace(figures, funnel=[stage.to_json() for stage in funnel(run.model, asked)])


def load_run(folder: str | Path) -> Run:
    """Opens a bundle."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such run; make one with: nextitem train")
    recipe = load_recipe(path)
    file = path / "metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return Run(path, recipe, load_model(path, recipe), metrics)


def aligned(dataset: Dataset, model: Recommender) -> Dataset:
    """The data set in the item numbering of the model; events of items that the model lacks are left out."""
    if dataset.catalog.fingerprint == model.catalog.fingerprint:
        return dataset.with_catalog(model.catalog)
    to_model = np.concatenate([[0], model.catalog.ids.encode(dataset.catalog.ids.external)]).astype(np.int32)
    log = dataset.interactions
    keep = (log.item_ids == 0) | (to_model[log.item_ids] > 0)
    kept = log.select(keep)
    renumbered = type(log)(
        kept.user_ids,
        to_model[kept.item_ids],
        log.num_users,
        model.num_items,
        timestamps=kept.timestamps,
        positive=kept.positive,
        columns=kept.columns,
    )
    shown = dataset.impressions
    if shown is not None:
        shown = shown.select(to_model[shown.item_ids] > 0)
        shown = replace(shown, item_ids=to_model[shown.item_ids])
    return replace(dataset, interactions=renumbered, catalog=model.catalog, impressions=shown)


def _fit(
    learnt: Dataset,
    split: Split | None,
    recipe: Recipe,
    *,
    folder: Path,
    start_from: str | Path | None,
    device: str,
    resume: bool,
    progress: bool,
    say: Say,
    epochs: int | None = None,
) -> tuple[Recommender, TrainingResult | None]:
    """Builds and fits one model; `split` None means that there is nothing to validate on."""
    torch.manual_seed(recipe.seed)
    model: Recommender = build("model", recipe.model, learnt.catalog)
    model.set_popularity(torch.from_numpy(learnt.interactions.item_counts()).float())
    if start_from is not None:
        _warm_start(model, Path(start_from))
    if isinstance(model, Cascade):
        if start_from is not None:
            raise UserError("--from: a cascade is not continued; its stages learn in order")
        chosen = None if split is not None else folder.parent / "stages"
        fit_cascade(model, learnt, split, Stages(recipe, folder, device, resume, progress, say, chosen))
        return model.eval(), None
    if isinstance(model, ClosedForm):
        model.fit(learnt)
        return model.eval(), None
    assert isinstance(model, Trainable), f"{type(model).__name__} offers neither fit nor training_loss"
    validate: Callable[[], float] | None = None
    if split is not None and split.validation.num_requests:
        validate = partial(quick_score, model, _validation(model, split.validation))
        if split.validation.targets is None and isinstance(model, Ranker):
            validate = partial(quick_auc, model, split.validation)
    result = fit(
        model,
        model.examples(learnt),
        recipe.training,
        seed=recipe.seed,
        out=folder,
        validate=validate,
        stop_after=epochs,
        resume=resume,
        device=device,
        progress=progress,
        label=recipe.model["name"],
    )
    return model.eval(), result


def _validation(model: Recommender, requests: SequenceBatch) -> SequenceBatch:
    """What an epoch is judged on: all requests, or an even sample where each answer takes a beam search."""
    if not isinstance(model, Generator) or requests.num_requests <= GENERATOR_VALIDATION:
        return requests
    return _sample(requests, GENERATOR_VALIDATION)


def _sample(requests: SequenceBatch, count: int) -> SequenceBatch:
    """At most so many requests, evenly spread."""
    rows = torch.linspace(0, requests.num_requests - 1, min(count, requests.num_requests)).long()
    return requests.select(rows)


def _index_recall(model: Recommender) -> dict[str, Any]:
    """By part: the share of exact search's items that an approximate index found when it was built."""
    indexes = {name: part for name, part in model.named_modules() if isinstance(part, AnnIndex)}
    found = {name: round(float(part.recall), 4) for name, part in indexes.items() if part.settings.kind != "exact"}
    return {"index_recall": found} if found else {}


def _warm_start(model: Recommender, source: Path) -> None:
    former = load_model(source, load_recipe(source))
    if type(former) is not type(model) or former.catalog.fingerprint != model.catalog.fingerprint:
        raise UserError(f"--from {source}: it must be a run of the same model on the same items")
    model.load_state_dict(former.state_dict())


def _resumed(folder: Path, recipe: Recipe) -> Run | None:
    """The finished run in `folder`, None where it is to go on; UserError where its recipe is another."""
    if not (folder / "recipe.toml").is_file():
        return None
    if read_toml(folder / "recipe.toml") != _plain(recipe):
        raise UserError(f"{folder} was begun with other settings; resume with the same, or use --overwrite")
    return load_run(folder) if (folder / "metrics.json").is_file() else None


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it reads back from its own file."""
    return tomllib.loads(tomli_w.dumps(to_toml_values(recipe.model_dump())))
