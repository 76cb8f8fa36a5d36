"""Training of a cascade by stages: channels on the past, rankers on what the channels retrieve for recent events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch

from nextitem.cascade.cascade import Cascade, CascadeConfig
from nextitem.core.batch import SequenceBatch
from nextitem.core.components import component_class
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.interactions import Interactions
from nextitem.core.recommender import Recommender
from nextitem.core.roles import ClosedForm, Examples, FitsExamples, LearnsFromRequests, Ranker, Trainable
from nextitem.data.examples.cascade_candidates import (
    BLOCK,
    VALIDATION_REQUESTS,
    RankerRequests,
    ranker_requests,
    with_teacher,
)
from nextitem.data.examples.labelled_candidates import LabelledRequests
from nextitem.data.examples.recent_events import recent_events
from nextitem.evaluation.evaluate import quick_score
from nextitem.pipeline.bundle import load_weights, save_weights
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.recipe import Recipe
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit


@dataclass(frozen=True)
class StageTrainer:
    """Trains the stages of one cascade.

    Attributes:
        recipe: the recipe of the whole cascade.
        options: how and where to train; stages are saved under `options.folder`.
        epochs_folder: for a refit, the folder of stages whose best numbers of epochs are repeated; None: validation
            decides.

    """

    recipe: Recipe
    options: FitOptions
    epochs_folder: Path | None = None

    def fit(
        self,
        name: str,
        model: Recommender,
        train: Dataset,
        *,
        examples: Callable[[], Examples[SequenceBatch]] | None = None,
        validate: Callable[[], float] | None = None,
        epochs: int | None = None,
    ) -> int | None:
        """Fit one stage and save its weights; when resuming, load a stage that is finished.

        Args:
            name: name of the stage, which is also its folder.
            model: the model to fit, in place.
            train: training data.
            examples: returns the examples to learn from, instead of those that the model makes of `train`.
            validate: returns the validation figure that the best epoch is selected by.
            epochs: number of epochs to train; None: as the settings and `epochs_folder` say.

        Returns:
            The best epoch, or None for a model in closed form.

        Raises:
            UserError: the model cannot learn from `examples`.
            KeyboardInterrupt: training was interrupted.

        """
        folder = self.options.folder / "stages" / name
        weights = folder / "weights.safetensors"
        if self.options.resume and weights.is_file():
            load_weights(weights, model)
            return _best_epoch(folder)
        self.options.log(f"{name} ...")
        model.set_popularity_from(train)
        torch.manual_seed(self.recipe.seed)
        best = None
        if examples is not None and isinstance(model, FitsExamples):
            model.fit_to(examples())
        elif examples is None and isinstance(model, ClosedForm):
            model.fit(train)
        elif isinstance(model, Trainable):
            if validate is None and self.epochs_folder is not None:
                epochs = _best_epoch(self.epochs_folder / name)
            result = fit(
                cast(torch.nn.Module, model),
                model.examples(train) if examples is None else examples(),
                self._training(name.split("/")[0]),
                seed=self.recipe.seed,
                out=folder,
                validate=validate,
                stop_after=epochs,
                resume=self.options.resume,
                device=self.options.device,
                progress=self.options.progress,
                label=name,
            )
            if result.stop_reason == "interrupted":
                raise KeyboardInterrupt
            for note in result.notes:
                self.options.log(f"note: {name}: {note}")
            best = result.best_epoch
        else:
            raise UserError(f"{name}: {type(model).__name__} cannot learn from the candidates of a cascade")
        folder.mkdir(parents=True, exist_ok=True)
        model.eval()
        save_weights(weights, model)
        (folder / "best_epoch").write_text(str(best or 0), encoding="utf-8")
        return best

    def _training(self, name: str) -> TrainingConfig:
        """Return the training settings of a stage; a time budget of the whole run is divided evenly."""
        settings = self.recipe.stages.get(name, TrainingConfig())
        minutes = self.recipe.training.max_minutes
        if minutes is None:
            return settings
        return settings.model_copy(update={"max_minutes": minutes / max(1, self._num_fits())})

    def _num_fits(self) -> int:
        """Return the number of fits by gradient: one for each ranker, two for each channel."""
        config = component_class("model", self.recipe.model)[1]
        assert isinstance(config, CascadeConfig)
        classes = [component_class("model", channel.model)[0] for channel in config.channels.values()]
        by_gradient = [not issubclass(cls, ClosedForm) for cls in classes]
        return 2 * sum(by_gradient) + sum(stage is not None for stage in (config.pre_ranking, config.ranking))


def fit_cascade(model: Cascade, train: Dataset, split: Split | None, recipe: Recipe, options: FitOptions) -> None:
    """Fit every stage of a cascade, in order.

    1. Channels learn from the past: the training events without the recent ones.
    2. The channels retrieve candidates for the recent events. From these, ChannelRates measures how often each rank of
       each channel is a hit, and the ranker learns to order them. The pre-ranker learns from the same candidates and,
       if it has a teacher, from the ranker's scores.
    3. Channels learn again from scratch, from all training events.

    Args:
        model: the cascade to fit, in place.
        train: training data.
        split: the split that `train` is part of; None: this is a refit of the run in the parent folder, without
            validation.
        recipe: settings of the run.
        options: how and where to train.

    Raises:
        UserError: no recent event has an earlier one, a teacher is set without a ranker that scores, or a stage cannot
            learn.

    """
    config = model.config
    stages = StageTrainer(
        recipe, options, epochs_folder=None if split is not None else options.folder.parent / "stages"
    )
    recent = recent_events(
        train,
        share=config.recent_share,
        max_requests=config.recent_events,
        seed=recipe.seed,
        num_return_times=config.returns,
    )
    if not recent.requests.num_requests:
        raise UserError(
            f"{train.name}: no recent event has an earlier one, so rankers have nothing to learn from; "
            "use a log with more events per user"
        )
    validation = None if split is None or split.judges_scores else split.validation
    epochs = {
        name: _fit_channel(model, name, recent.past, validation, stages, part="/past") for name in model.channel_names
    }
    model.set_popularity_from(recent.past)
    _measure_rates(model, recent.requests)
    requests = ranker_requests(model, recent.requests, num_negatives=config.negatives)
    log = train.interactions if train.interactions.timestamps is not None else recent.past.interactions
    if model.ranker is not None:
        _fit_ranker("ranking", model.ranker, requests, train, log, stages)
    if model.pre_ranker is not None:
        assert config.pre_ranking is not None
        if config.pre_ranking.teacher:
            if not isinstance(model.ranker, Ranker):
                raise UserError("[model.pre_ranking] teacher = true needs a [model.ranking] that scores candidates")
            score = model.ranker.score
            requests = RankerRequests(with_teacher(requests.train, score), with_teacher(requests.validation, score))
        _fit_ranker("pre-ranking", model.pre_ranker, requests, train, log, stages)
    for name in model.channel_names:
        _fit_channel(model, name, train, validation, stages, epochs=epochs[name])
    model.set_popularity_from(train)


def _fit_channel(
    model: Cascade,
    name: str,
    train: Dataset,
    validation: SequenceBatch | None,
    stages: StageTrainer,
    *,
    part: str = "",
    epochs: int | None = None,
) -> int | None:
    """Fit one channel; its second fit is on all training events, for as many epochs as were best in the first."""
    torch.manual_seed(stages.recipe.seed)
    channel = model.reset_channel(name)
    validate = None
    if part and validation is not None:
        quota = model.rates.quotas[model.channel_names.index(name)]
        validate = partial(quick_score, channel, validation.sample(VALIDATION_REQUESTS), metric=f"recall@{quota}")
    return stages.fit(name + part, channel, train, validate=validate, epochs=epochs)


def _measure_rates(model: Cascade, requests: SequenceBatch) -> None:
    """Measure how often the item at each rank of each channel is the next item."""
    assert requests.targets is not None
    lists = [[answer.item_ids for answer in model.retrieve(part)] for part in requests.split(BLOCK)]
    model.rates.measure([torch.cat(channel) for channel in zip(*lists, strict=True)], requests.targets)


def _fit_ranker(
    name: str,
    ranker: Recommender,
    requests: RankerRequests,
    train: Dataset,
    log: Interactions,
    stages: StageTrainer,
) -> None:
    """Fit a ranker on the candidates of recent events; the last of these events validate it."""

    def examples() -> Examples[SequenceBatch]:
        if not isinstance(ranker, LearnsFromRequests):
            return LabelledRequests(requests.train)
        if ranker.prefers_impressions and isinstance(ranker, Trainable):
            return ranker.examples(train)
        return ranker.examples_of(requests.train, log)

    validate = partial(quick_score, ranker, requests.validation)
    stages.fit(name, ranker, train, examples=examples, validate=validate)


def _best_epoch(folder: Path) -> int | None:
    file = folder / "best_epoch"
    return (int(file.read_text(encoding="utf-8")) or None) if file.is_file() else None
