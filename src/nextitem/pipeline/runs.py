"""Run: a trained model with its recipe and folder; what it answers to users, histories and candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.data.readers import load_dataset
from nextitem.data.requests import RequestBuilder
from nextitem.distributed.devices import device_of
from nextitem.evaluation.evaluate import Evaluation
from nextitem.pipeline import recommend as serving
from nextitem.pipeline.bundle import load_model, load_recipe
from nextitem.pipeline.recipe import Recipe
from nextitem.pipeline.recommend import Filters, RecommendationList


@dataclass
class Run:
    """A trained model, the recipe that it was trained by, and the folder that holds both.

    `metrics` are the figures on the test requests, as metrics.json holds them. `epoch_log` has one entry for each epoch
    of the training that made this object; it is empty for a run that was loaded.
    """

    folder: Path
    recipe: Recipe
    model: Recommender
    metrics: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    epoch_log: list[dict[str, float]] = field(default_factory=list)
    _dataset: Dataset | None = None
    _builder: RequestBuilder | None = None

    @property
    def name(self) -> str:
        """The name of the model."""
        return str(self.recipe.model["name"])

    @property
    def dataset(self) -> Dataset:
        """The data set of the recipe, in the item numbering of the model; loaded when first used."""
        if self._dataset is None:
            data = self.recipe.data
            if data.path.startswith("memory:"):
                raise UserError(
                    f"{self.folder} was trained on a data set in memory ({data.path.removeprefix('memory:')}); give it "
                    "again: --data FOLDER, or run.use_data(dataset) in Python"
                )
            try:
                loaded = load_dataset(data.path, drop_unknown_items=data.drop_unknown_items)
            except UserError as error:
                raise UserError(
                    f"the data of {self.folder} cannot be loaded: {error}; name other data with --data, "
                    "or with run.use_data(data) in Python"
                ) from None
            self._dataset = aligned(loaded, self.model)
        return self._dataset

    @property
    def is_holding_data(self) -> bool:
        """Whether the data set is loaded already."""
        return self._dataset is not None

    def use_data(self, data: Dataset | str | Path) -> Run:
        """Take the histories of users from other data from now on; return the run itself."""
        loaded = data if isinstance(data, Dataset) else load_dataset(data)
        self._dataset = aligned(loaded, self.model)
        return self

    def to(self, device: str) -> Run:
        """Move the model to a device (auto, cpu, cuda); return the run itself."""
        self.model.to(device_of(device))
        return self

    def recommend(
        self,
        *,
        history: Any | None = None,
        user: Any | None = None,
        k: int = 10,
        exclude_seen: bool | None = None,
        only: Sequence[str] = (),
        exclude_items: Sequence[Any] = (),
        context: Mapping[str, Any] | None = None,
    ) -> RecommendationList:
        """Return the k best items for a history, or for a user of the data set.

        Args:
            history: item ids, oldest first; or a data frame with a column item_id and, if known, timestamp, action and
                other columns of events.
            user: the id of a user of the data set, instead of a history.
            k: number of items.
            exclude_seen: leave out the items of the history. None: a user's as the data set's `repeats` says, those of
                a history always.
            only: column=value filters on the items; all must hold.
            exclude_items: ids of items that must not be recommended.
            context: with `history`, what is known of the request: {"user.country": "FR"}.

        Raises:
            UserError: no or both of history and user, an unknown user, a history without any known item, a filter that
                leaves no item.

        """
        requests, unknown = self._request(history, user, context)
        # A history from outside carries no data set, and so no rule on repeats.
        is_seen_excluded = exclude_seen if exclude_seen is not None else user is None or not self.dataset.repeats
        filters = Filters(tuple(only), tuple(exclude_items))
        answer = serving.answer(self.model, requests, k=k, exclude_seen=is_seen_excluded, filters=filters)[0]
        return replace(answer, skipped=unknown)

    def recommend_many(
        self,
        users: Sequence[Any] | None = None,
        *,
        k: int = 10,
        exclude_seen: bool | None = None,
        only: Sequence[str] = (),
        exclude_items: Sequence[Any] = (),
    ) -> pl.DataFrame:
        """Return the k best items of many users (None: all users of the data set).

        The frame has the columns user_id, item_id, score and rank (from 1), users in the given order. Arguments and
        errors are those of `recommend`.
        """
        return serving.answer_table(
            self.model,
            self.dataset,
            users,
            k=k,
            exclude_seen=not self.dataset.repeats if exclude_seen is None else exclude_seen,
            filters=Filters(tuple(only), tuple(exclude_items)),
        )

    def rank(
        self,
        *,
        candidates: Sequence[Any],
        history: Any | None = None,
        user: Any | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> pl.DataFrame:
        """Return the candidates (item ids) in the model's order for a history or a user; seen items stay.

        The frame has the columns user_id (null for a history), item_id, score and rank (from 1).

        Raises:
            UserError: an unknown candidate, and what `recommend` raises.

        """
        requests, _ = self._request(history, user, context)
        return serving.ranked_candidates(self.model, requests, candidates, user=user)

    def similar(self, item: Any, *, k: int = 10) -> pl.DataFrame:
        """Return the k items that are most like an item, by what the model has learnt of items.

        The frame has the columns item_id, score and rank (from 1). Raises UserError for an unknown item, and if the
        model holds neither vectors nor similarities of items.
        """
        return serving.similar_items(self.model, item, k=k)

    def _request(self, history: Any | None, user: Any | None, context: Mapping[str, Any] | None) -> Any:
        if (history is None) == (user is None):
            raise UserError("give either a history of items or a user")
        if history is not None:
            return serving.history_requests(serving.history_frame(history), self.model.catalog, context=context)
        if context:
            raise UserError("context goes with a history; what is known of a user comes from the data set")
        if self._builder is None or self._builder.dataset is not self.dataset:
            self._builder = RequestBuilder(self.dataset)
        return serving.user_requests(self._builder, [user]), ()

    def __repr__(self) -> str:
        data = self.recipe.data
        lines = [f"Run of {self.name} in {self.folder}", f"  data      {data.path}, protocol {data.protocol}"]
        figures = self.metrics.get("metrics", {})
        shown = [
            f"{name} {figures[name]:.4f}" for name in ("recall@10", "ndcg@10", "auc") if figures.get(name) is not None
        ]
        return "\n".join([*lines, f"  test      {', '.join(shown) or 'not evaluated'}"])


def load_run(folder: str | Path, *, device: str = "cpu") -> Run:
    """Open a run that `train` has left in a folder.

    Args:
        folder: the run's folder.
        device: where the model computes: auto, cpu or cuda.

    Raises:
        UserError: the folder is no run, or a file of it is missing or damaged.

    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such run; make one with: nextitem train")
    recipe = load_recipe(path)
    file = path / "metrics.json"
    metrics: dict[str, Any] = {}
    if file.is_file():
        try:
            metrics = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise UserError(f"{file} is damaged ({error}); remove it, and run: nextitem evaluate {path}") from None
        if not isinstance(metrics, dict):
            raise UserError(f"{file} is damaged (it holds no table); remove it, and run: nextitem evaluate {path}")
    return Run(path, recipe, load_model(path, recipe), metrics).to(device)


def aligned(dataset: Dataset, model: Recommender) -> Dataset:
    """Return the data set in the model's numbering of items and codes of columns, without events of unknown items."""
    if dataset.catalog.fingerprint == model.catalog.fingerprint:
        return dataset.with_catalog(model.catalog)
    to_model = np.concatenate([[0], model.catalog.ids.encode(dataset.catalog.ids.external)]).astype(np.int32)
    log = dataset.interactions
    known = log.select((log.item_ids == 0) | (to_model[log.item_ids] > 0))
    renumbered = replace(known, item_ids=to_model[known.item_ids], num_items=model.num_items)
    shown = dataset.impressions
    if shown is not None:
        shown = shown.select(to_model[shown.item_ids] > 0)
        shown = replace(shown, item_ids=to_model[shown.item_ids])
    return replace(dataset, interactions=renumbered, catalog=model.catalog, impressions=shown)
