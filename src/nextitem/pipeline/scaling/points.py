"""Points of a scaling study: a size of a model is trained on a share of the data, and its loss is measured.

Test requests are dropped before the first point.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nextitem.core.batch import SequenceBatch
from nextitem.core.components import build_component, component_class
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Trainable
from nextitem.evaluation.scaling_study import Measurement
from nextitem.evaluation.target_loss import judged_requests, loss_name, target_loss
from nextitem.pipeline.folders import read_records
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.recipe import Recipe
from nextitem.pipeline.scaling.families import Family
from nextitem.pipeline.scaling.flops import Flops, ParameterCounts, count_epoch, count_parameters
from nextitem.pipeline.stages import DEFAULT_METRIC, validation_figure
from nextitem.pipeline.train import with_requirements
from nextitem.training.fit import fit

POINTS_FILE = "points.jsonl"
RUNNING = "running"  # folder of the checkpoint of the point that is being trained
REQUESTS = 4000  # validation requests that points are judged on, if there are more


@dataclass(frozen=True)
class PointKey:
    """What distinguishes a point from the others.

    Attributes:
        size: factor of the widths.
        share: share of the training data.
        seed: seed of the sample of the data, of initial weights, shuffling and sampling.
        rate: factor of the learning rate.

    """

    size: float
    share: float
    seed: int
    rate: float


@dataclass(frozen=True)
class Point:
    """A trained size on a share of the data.

    Attributes:
        size: factor of the widths.
        share: share of the training data.
        seed: seed of the run.
        rate: factor of the learning rate.
        settings: settings of the model that depend on the size, and the learning rate.
        embedding_parameters: number of parameters of look-up tables.
        other_parameters: number of all other parameters.
        examples: number of training targets of an epoch.
        epochs: number of epochs that were trained.
        best_epoch: the epoch with the lowest loss, whose weights are judged.
        forward_flops: operations of the forward passes up to the best epoch.
        backward_flops: operations of the backward passes up to the best epoch.
        loss: loss on validation at the best epoch.
        merit: figure of merit at the best epoch (NDCG@10 or AUC).
        losses: loss on validation of each validated epoch.
        seconds: duration of the training, with its validation.
        elapsed: seconds from the beginning of the study to the end of the point, over all parts of a resumed study.

    """

    size: float
    share: float
    seed: int
    rate: float
    settings: dict[str, Any]
    embedding_parameters: int
    other_parameters: int
    examples: int
    epochs: int
    best_epoch: int
    forward_flops: float
    backward_flops: float
    loss: float
    merit: float
    losses: list[float]
    seconds: float
    elapsed: float = 0.0

    @property
    def key(self) -> PointKey:
        """What distinguishes the point from the others."""
        return PointKey(self.size, self.share, self.seed, self.rate)

    @property
    def compute(self) -> float:
        """Operations of the training up to the best epoch."""
        return self.forward_flops + self.backward_flops

    @property
    def measurement(self) -> Measurement:
        """What the study reads of the point."""
        return Measurement(
            self.size, self.share, self.seed, self.compute, self.other_parameters, self.examples, self.loss
        )

    def to_json(self) -> str:
        """Return the point as one line of points.jsonl."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, eq=False)
class PreparedPoint:
    """A point before its training.

    Attributes:
        key: what distinguishes the point.
        recipe: all settings.
        settings: settings that depend on the size.
        train: the share of the training data.
        model: the model with initial weights.
        epoch: operations of an epoch.
        parameters: numbers of parameters.

    """

    key: PointKey
    recipe: Recipe
    settings: dict[str, Any]
    train: Dataset
    model: Recommender
    epoch: Flops
    parameters: ParameterCounts

    @property
    def planned_flops(self) -> float:
        """Operations of all epochs, if none is saved by early stopping."""
        return self.recipe.training.max_epochs * self.epoch.total


@dataclass
class PointRunner:
    """Trains the points of a study.

    Attributes:
        family: how the model grows.
        recipe: settings of size 1.
        split: the split, whose test requests are never read.
        device: where to compute: auto, cpu or cuda.

    """

    family: Family
    recipe: Recipe
    split: Split
    device: str = "auto"
    _train: Dataset | None = None
    _requests: SequenceBatch = field(init=False)

    def __post_init__(self) -> None:
        """Drop the test requests, and those of validation that no size can answer."""
        validation = self.split.validation.sample(REQUESTS)
        self.split = replace(self.split, validation=validation, test=validation, test_later=None, refit=_no_refit)
        self._requests = validation
        if validation.targets is not None:
            trained = torch.from_numpy(self.split.train.interactions.item_counts() > 0)
            self._requests = judged_requests(validation, trained)
        if not self._requests.num_requests:
            raise UserError("no validation request has a history and a target with a training event; use a longer log")

    @property
    def num_judged(self) -> int:
        """Number of validation requests that the loss is measured on."""
        return self._requests.num_requests

    def loss_name(self, model: Recommender) -> str:
        """Return the name of the loss of a model."""
        return loss_name(model, self._requests)

    def prepare(self, key: PointKey) -> PreparedPoint:
        """Return a point with its settings, data, initial weights and counts."""
        settings = self.family.settings(self.recipe.model, key.size)
        learning_rate = key.rate * self.recipe.training.learning_rate / key.size**0.5
        training = self.recipe.training.model_copy(update={"max_minutes": None, "learning_rate": learning_rate})
        recipe = self.recipe.model_copy(
            update={"seed": key.seed, "model": {**self.recipe.model, **settings}, "training": training}
        )
        full = self._full_train()
        train = sampled_users(full, key.share, seed=key.seed)
        torch.manual_seed(key.seed)
        try:
            model = cast(Recommender, build_component("model", recipe.model, full.catalog))
        except ValueError as error:
            raise UserError(f"size {key.size:g}: {error}") from None
        model.set_popularity_from(train)
        batches = cast(Trainable[Any], model).examples(train).batches(training.batch_size, epoch=0, seed=key.seed)
        epoch = count_epoch(model, batches, self.family.counter)
        tables = {f"model.{name}": value for name, value in settings.items()}
        settings = tables | {"training.learning_rate": learning_rate}
        return PreparedPoint(key, recipe, settings, train, model, epoch, count_parameters(model))

    def run(self, point: PreparedPoint, folder: Path, *, resume: bool) -> Point | None:
        """Train a point and measure it; None if it was interrupted.

        Args:
            point: the point.
            folder: folder of the study; the checkpoint of an interrupted point is in a subfolder.
            resume: continue from that checkpoint, if it is one of this point.

        """
        name = "-".join(f"{value:g}" for value in asdict(point.key).values())
        checkpoint = folder / RUNNING / name
        model, losses = point.model, cast(list[float], [])

        def validate() -> float:
            losses.append(target_loss(model, self._requests))
            return -losses[-1]

        result = fit(
            cast(nn.Module, model),
            cast(Trainable[Any], model).examples(point.train),
            point.recipe.training,
            seed=point.key.seed,
            out=checkpoint,
            validate=validate,
            resume=resume and checkpoint.is_dir(),
            device=self.device,
            progress=False,
        )
        if result.stop_reason == "interrupted":
            return None
        figure = validation_figure(model, self.split, metric=DEFAULT_METRIC)
        assert figure is not None
        count = result.best_epoch
        done = Point(
            **asdict(point.key),
            settings=point.settings,
            embedding_parameters=point.parameters.embedding,
            other_parameters=point.parameters.other,
            examples=point.epoch.targets,
            epochs=result.epochs,
            best_epoch=count,
            forward_flops=count * point.epoch.forward,
            backward_flops=count * point.epoch.backward,
            loss=target_loss(model, self._requests) if result.best_value is None else -result.best_value,
            merit=figure(),
            losses=[-entry["validation"] for entry in result.epoch_log if "validation" in entry],
            seconds=result.seconds,
        )
        shutil.rmtree(folder / RUNNING, ignore_errors=True)
        return done

    def _full_train(self) -> Dataset:
        """Return all training data, with the identifiers that the model needs: the same for all points."""
        if self._train is None:
            cls, config = component_class("model", self.recipe.model)
            options = FitOptions(Path(), device=self.device, progress=False, is_resumable=False)
            self._train = with_requirements(self.split.train, self.recipe, cls.needs | config.needs, options)
        return self._train


def sampled_users(train: Dataset, share: float, *, seed: int) -> Dataset:
    """Return the data set with the events and impressions of a share of its users.

    Users are sampled by the seed; with the same seed, a larger share contains a smaller one. Impressions of unknown
    users are sampled by request. Users, items and their numbers stay the same.
    """
    if share >= 1:
        return train
    log = train.interactions
    is_sampled = np.concatenate([[False], _sample(log.num_users, share, seed)])
    sampled = train.with_interactions(log.select(is_sampled[log.user_ids]))
    shown_items = train.impressions
    if shown_items is None:
        return sampled
    requests = _sample(int(shown_items.request_ids.max(initial=-1)) + 1, share, seed)
    rows = np.where(shown_items.user_ids > 0, is_sampled[shown_items.user_ids], requests[shown_items.request_ids])
    return replace(sampled, impressions=shown_items.select(rows))


def read_points(folder: Path) -> list[Point]:
    """Return the points in points.jsonl of a folder; see `read_records`."""
    return read_records(folder / POINTS_FILE, Point, way_out="start again with --overwrite")


def _sample(count: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Return which of `count` numbers are sampled, bool [count]; at least one."""
    is_sampled = np.zeros(count, np.bool_)
    is_sampled[np.random.default_rng(seed).permutation(count)[: max(1, round(share * count))]] = True
    return is_sampled


def _no_refit() -> Dataset:
    """Raise an error: a scaling study never trains on validation requests."""
    raise AssertionError("a scaling study has no refit")
