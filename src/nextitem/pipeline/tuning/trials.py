"""Trials of a tuning: a model is trained with other settings, and measured on validation requests.

A trial never sees a test request: `TuningData` drops them before the first trial.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.components import component_class
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Generator, Ranker
from nextitem.evaluation.evaluate import ACCURACY, recommend_all
from nextitem.evaluation.evaluate_ranking import first_task
from nextitem.evaluation.intervals import Difference, paired_auc_difference, paired_difference
from nextitem.evaluation.metrics.ranking import auc
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.recipe import Recipe, resolve_recipe
from nextitem.pipeline.stages import GENERATOR_VALIDATION, stage_names, validation_figure
from nextitem.pipeline.train import fit_model, with_requirements
from nextitem.pipeline.tuning.arguments import AUC
from nextitem.pipeline.tuning.proposals import is_hopeless
from nextitem.pipeline.tuning.space import SearchSpace

BLOCK = 64  # consecutive validation requests that are on the same side, so that those of one user mostly are
MAX_OTHER = 5  # the settings are confirmed on at most this many times as many requests as they were chosen on


@dataclass(frozen=True)
class Trial:
    """One trial: settings that were tried, and what they reached.

    Attributes:
        number: number of the trial; trial 0 has the default settings.
        settings: value of each setting that is varied and has an effect: dotted name -> value.
        state: "complete"; "pruned", if training was ended early because it was worse than others at that time; or
            "failed".
        values: figure on the validation requests of each data set, of the best epoch.
        curves: figure of each validation during training, for each data set.
        seconds: duration of the trial.
        elapsed: seconds from the beginning of the search to the end of the trial, over all parts of a resumed search.
        reason: why the trial failed.

    """

    number: int
    settings: dict[str, Any]
    state: str
    values: dict[str, float]
    curves: dict[str, list[float]]
    seconds: float
    elapsed: float = 0.0
    reason: str = ""

    def to_json(self) -> str:
        """Return the trial as one line of trials.jsonl."""
        return json.dumps(asdict(self))

    def objective(self, default: Trial) -> float | None:
        """Return what the search maximises; None for a failed trial.

        On one data set, it is the figure itself; on several, the mean over them of the figure relative to that of the
        default settings, minus 1.
        """
        if self.state == "failed":
            return None
        if len(default.values) == 1:
            return next(iter(self.values.values()))
        parts = [value / default.values[name] - 1 for name, value in self.values.items()]
        return sum(parts) / len(parts)


@dataclass(frozen=True, eq=False)
class TuningData:
    """One data set of a tuning, without its test requests.

    Attributes:
        name: name of the data set, unique within the tuning.
        recipe: the default settings of a run on it.
        split: training data, and the validation requests that settings are chosen on.
        others: validation requests that settings are not chosen on; None if there are too few to set some aside.

    """

    name: str
    recipe: Recipe
    split: Split
    others: SequenceBatch | None

    @classmethod
    def from_split(cls, name: str, recipe: Recipe, split: Split, *, num_requests: int) -> TuningData:
        """Return the data of a tuning from a split, whose test requests are dropped.

        Args:
            name: name of the data set.
            recipe: the default settings of a run on it.
            split: the split.
            num_requests: number of validation requests to choose settings on, evenly spaced over all or, if there are
                more, over one half of them; the other half is set aside. Blocks of BLOCK requests alternate.

        """
        validation = split.validation
        chosen_from, others = validation, None
        if validation.num_requests > num_requests:
            is_aside = (torch.arange(validation.num_requests) // min(BLOCK, num_requests)) % 2 == 1
            chosen_from = validation.select((~is_aside).nonzero()[:, 0])
            others = validation.select(is_aside.nonzero()[:, 0]).sample(MAX_OTHER * num_requests)
        sample = chosen_from.sample(num_requests)
        return cls(
            name, recipe, replace(split, validation=sample, test=sample, test_later=None, refit=_no_refit), others
        )


class PrunedError(Exception):
    """Raised within training to end a trial that is worse than others were after as many validations."""


@dataclass
class TrialRunner:
    """Trains a model with given settings on each data set, and measures it.

    Data sets, splits and what training needs (content vectors, semantic IDs) stay in memory between trials.

    Attributes:
        data: the data sets.
        space: the search space.
        metric: figure of lists, name@k, or "auc".
        device: where to compute: auto, cpu or cuda.
        minutes: maximum training time of a trial on one data set, for models that learn by gradient or have stages that
            do; None: that of the recipe.
        models: the models of the latest trial, one for each data set.

    """

    data: Sequence[TuningData]
    space: SearchSpace
    metric: str
    device: str = "auto"
    minutes: float | None = None
    models: list[Recommender] = field(default_factory=list)
    _prepared: dict[str, tuple[str, Dataset]] = field(default_factory=dict)

    def run(self, number: int, settings: Mapping[str, Any], earlier: Sequence[Trial] = ()) -> Trial:
        """Run one trial. Trial 0 raises what makes it fail; any other trial records it.

        Args:
            number: number of the trial.
            settings: dotted name -> value.
            earlier: trials that the training is compared with, to end it early.

        Raises:
            UserError: trial 0 failed, or has no figure.
            KeyboardInterrupt: the trial was interrupted.

        """
        start_time = time.perf_counter()
        values: dict[str, float] = {}
        curves: dict[str, list[float]] = {}
        state, reason = "complete", ""
        self.models = []
        try:
            for data in self.data:
                curve = curves.setdefault(data.name, [])
                model, value = self._train(data, settings, curve, [each.curves.get(data.name, []) for each in earlier])
                self.models.append(model)
                values[data.name] = value
        except PrunedError:
            state = "pruned"
            values[data.name] = max(value for value in curve if value == value)
        except (UserError, ValueError, RuntimeError, MemoryError) as error:  # RuntimeError: memory of a GPU
            if number == 0:
                raise
            state, reason = "failed", " ".join(str(error).split()) or type(error).__name__
        return Trial(number, dict(settings), state, values, curves, time.perf_counter() - start_time, reason=reason)

    def _train(
        self, data: TuningData, settings: Mapping[str, Any], curve: list[float], others: Sequence[Sequence[float]]
    ) -> tuple[Recommender, float]:
        """Return a model that was trained with these settings, and its figure; `curve` gets that of each validation."""

        def on_validation(value: float) -> None:
            curve.append(value)
            if is_hopeless(curve, others):
                raise PrunedError

        recipe = self._recipe(data, settings)
        with TemporaryDirectory() as folder:
            options = FitOptions(Path(folder), device=self.device, progress=False, is_resumable=False)
            train = self._with_requirements(data, recipe, options)
            model, result = fit_model(
                train, data.split, recipe, options, metric=self.metric, on_validation=on_validation
            )
        if result is not None and result.stop_reason == "interrupted":
            raise KeyboardInterrupt
        value = None if result is None else result.best_value
        # A model in closed form, and training that ended before its first validation, have no figure. The guide of a
        # generator is fitted after its training.
        if value is None or stage_names(model.config):
            figure = validation_figure(model, data.split, metric=self.metric)
            value = float("nan") if figure is None else figure()
        if value != value:
            raise UserError(f"{data.name}: {self.metric} is not defined on the validation requests")
        return model, value

    def _recipe(self, data: TuningData, settings: Mapping[str, Any]) -> Recipe:
        """Return the recipe of a trial on one data set."""
        tables = {**self.space.with_values(settings), "data": data.recipe.data.model_dump()}
        recipe = resolve_recipe([("the trial", tables)])
        if self.minutes is None:
            return recipe
        return recipe.model_copy(update={"training": recipe.training.model_copy(update={"max_minutes": self.minutes})})

    def _with_requirements(self, data: TuningData, recipe: Recipe, options: FitOptions) -> Dataset:
        """Return the training data with what the model needs; those of the trial before, if they are the same."""
        cls, config = component_class("model", recipe.model)
        needs = cls.needs | config.needs
        parts = recipe.model_dump(include={"content", "content_training", "tokenizer", "tokenizer_training", "ids"})
        key = json.dumps([sorted(needs), parts])
        known_key, train = self._prepared.get(data.name, ("", data.split.train))
        if key != known_key:
            train = with_requirements(data.split.train, recipe, needs, options)
            self._prepared[data.name] = key, train
        return train


@dataclass(frozen=True)
class Confirmation:
    """Figures of the default and the best settings on validation requests that the settings were not chosen on.

    Attributes:
        name: name of the data set.
        requests: number of requests.
        default: figure of the default settings.
        best: figure of the best settings.
        difference: best minus default, request by request, with its 95% interval.

    """

    name: str
    requests: int
    default: float
    best: float
    difference: Difference


def confirm(
    data: TuningData, default: Recommender, best: Recommender, *, metric: str, device: str = "cpu"
) -> Confirmation:
    """Return the figures of two models on the requests of a data set that were set aside."""
    requests = data.others
    assert requests is not None
    if isinstance(best, Generator):
        requests = requests.sample(GENERATOR_VALIDATION)
    if metric == AUC:
        assert isinstance(default, Ranker)
        assert isinstance(best, Ranker)
        scores, labels, groups = first_task(default, requests)
        best_scores = first_task(best, requests)[0]
        difference = paired_auc_difference(best_scores, scores, labels, groups)
        return Confirmation(data.name, requests.num_requests, auc(scores, labels), auc(best_scores, labels), difference)
    before, after = (_list_values(model, requests, metric) for model in (default, best))
    figures = (float(before.nanmean()), float(after.nanmean()))
    return Confirmation(data.name, requests.num_requests, *figures, paired_difference(after, before))


def _list_values(model: Recommender, requests: SequenceBatch, metric: str) -> Tensor:
    """Return the value of a metric of lists for each request, [B]."""
    assert requests.targets is not None
    name, _, k = metric.partition("@")
    return ACCURACY[name](recommend_all(model, requests, int(k)), requests.targets, int(k))


def _no_refit() -> Dataset:
    """Raise an error: a tuning never trains on validation requests."""
    raise AssertionError("a tuning has no refit")
