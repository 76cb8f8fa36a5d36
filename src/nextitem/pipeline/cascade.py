"""Training of a cascade by stages: channels on the past, rankers on what the channels retrieve for recent events."""

from __future__ import annotations

from functools import partial

import torch

from nextitem.cascade.cascade import Cascade, CascadeConfig
from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.interactions import Interactions
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Examples, LearnsFromRequests, Ranker, Trainable
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
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.recipe import Recipe
from nextitem.pipeline.stages import StageTrainer, learns_by_gradient


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
    stages = StageTrainer(recipe, options, num_fits=_num_fits(config), is_refit=split is None)
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
    channel = stages.untrained(partial(model.reset_channel, name))
    validate = None
    if part and validation is not None:
        quota = model.rates.quotas[model.channel_names.index(name)]
        validate = partial(quick_score, channel, validation.sample(VALIDATION_REQUESTS), metric=f"recall@{quota}")
    return stages.fit(name + part, channel, train, validate=validate, epochs=epochs)


def _num_fits(config: CascadeConfig) -> int:
    """Return the number of fits by gradient: one for each ranker, two for each channel."""
    num_channels = sum(learns_by_gradient(channel.model) for channel in config.channels.values())
    return 2 * num_channels + sum(stage is not None for stage in (config.pre_ranking, config.ranking))


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
