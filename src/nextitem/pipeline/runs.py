"""Run: a trained model with its recipe and folder, which recommends, ranks and finds similar items."""

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
from nextitem.pipeline.versions import current_folder


@dataclass
class Run:
    """A trained model, the recipe that it was trained with, and the folder that contains both.

    `train` returns a run, `load_run` opens one.

    Attributes:
        folder: the folder of the run.
        recipe: all settings of the run.
        model: the trained model.
        metrics: the contents of metrics.json: metrics on the test requests, number of parameters, training seconds.
        evaluation: the evaluation on the test requests, if it was computed in this process; otherwise None.
        epoch_log: loss and validation figure of each epoch; empty for a run that was loaded.

    Examples:
        >>> run = ni.load_run("runs/sasrec")
        >>> run.recommend(history=["10001", "10042"], k=10)
        >>> run.recommend_many(k=10).write_parquet("recommendations.parquet")

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
        """Name of the model."""
        return str(self.recipe.model["name"])

    @property
    def root(self) -> Path:
        """Folder of the run whose version this is; that of the run itself, if it is the first one."""
        return self.folder.parent.parent if self.folder.parent.name == "versions" else self.folder

    @property
    def dataset(self) -> Dataset:
        """Data set of the recipe, in the item numbering of the model; loaded at the first use.

        Raises UserError if it cannot be loaded, or was in memory when the run was trained.
        """
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
                    f"the data of {self.folder} cannot be loaded: {error}; pass other data with --data, "
                    "or with run.use_data(data) in Python"
                ) from None
            self._dataset = aligned(loaded, self.model)
        return self._dataset

    @property
    def has_dataset(self) -> bool:
        """Whether the data set is already in memory."""
        return self._dataset is not None

    def use_data(self, data: Dataset | str | Path) -> Run:
        """Use the histories of other data from now on, and return the run itself.

        Events of items that the model does not know are skipped.

        Args:
            data: a data set, the path of its folder, or "shop".

        """
        loaded = data if isinstance(data, Dataset) else load_dataset(data)
        self._dataset = aligned(loaded, self.model)
        return self

    def to(self, device: str) -> Run:
        """Move the model to a device (auto, cpu or cuda), and return the run itself."""
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
        explain: bool = False,
    ) -> RecommendationList:
        """Recommend k items for a history, or for a user of the data set.

        Args:
            history: item ids, oldest first; or a data frame with a column item_id and, if available, timestamp, action
                and other columns of events.
            user: the id of a user of the data set, instead of a history.
            k: maximum number of items to return.
            exclude_seen: whether to exclude the items of the history. None: for a user, unless `repeats` of the data
                set is true; for a history, always.
            only: conditions "column=value" on the items table; an item must satisfy all of them.
            exclude_items: ids of items that must not be recommended.
            context: with `history`, features of the request, such as {"user.country": "FR"}.
            explain: whether to explain the list (field `explanation` of the answer, see docs/serving/explain.md).

        Returns:
            The items, best first, with scores and titles. If the history is empty, the most popular items may be
            returned (`fallback`).

        Raises:
            UserError: both or neither of `history` and `user`, an unknown user, a history without any known item, or
                a condition that no item satisfies.

        Examples:
            >>> answer = run.recommend(history=["10001", "10042"], k=5)
            >>> answer.item_ids
            >>> run.recommend(user="17850", only=["category=Tents"]).to_frame()

        """
        requests, unknown = self._request(history, user, context)
        # A history from outside belongs to no data set, so no setting `repeats` applies to it.
        is_seen_excluded = exclude_seen if exclude_seen is not None else user is None or not self.dataset.repeats
        filters = Filters(tuple(only), tuple(exclude_items))
        options: dict[str, Any] = {"exclude_seen": is_seen_excluded, "filters": filters, "explain": explain}
        return replace(serving.answer(self.model, requests, k=k, **options)[0], skipped=unknown)

    def recommend_many(
        self,
        users: Sequence[Any] | None = None,
        *,
        k: int = 10,
        exclude_seen: bool | None = None,
        only: Sequence[str] = (),
        exclude_items: Sequence[Any] = (),
    ) -> pl.DataFrame:
        """Recommend k items for each of many users of the data set.

        Args:
            users: ids of users; None: all users of the data set.
            k: maximum number of items for each user.
            exclude_seen: whether to exclude the items of the history; None: unless `repeats` of the data set is true.
            only: conditions "column=value" on the items table; an item must satisfy all of them.
            exclude_items: ids of items that must not be recommended.

        Returns:
            A frame with the columns user_id, item_id, score and rank (from 1), in the order of `users`.

        Raises:
            UserError: an unknown user, or a condition that no item satisfies.

        Examples:
            >>> run.recommend_many(["17850", "13047"], k=10)

        """
        return serving.answer_table(
            self.model,
            self._request_builder(),
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
        """Order candidate items for a history or a user, best first.

        Args:
            candidates: ids of the items to order. Items of the history stay among them; duplicates count once.
            history: item ids, oldest first, or a data frame, as for `recommend`.
            user: the id of a user of the data set, instead of a history.
            context: with `history`, features of the request, such as {"user.country": "FR"}.

        Returns:
            A frame with the columns user_id (null for a history), item_id, score and rank (from 1).

        Raises:
            UserError: an unknown candidate or no candidates, both or neither of `history` and `user`, an unknown user,
                or a history without any known item.

        Examples:
            >>> run.rank(user="17850", candidates=["85123A", "71053", "22423"])

        """
        requests, _ = self._request(history, user, context)
        return serving.ranked_candidates(self.model, requests, candidates, user=user)

    def similar(self, item: Any, *, k: int = 10) -> pl.DataFrame:
        """Find the k items that are most similar to an item, by the model's item vectors or item similarities.

        Args:
            item: id of an item.
            k: maximum number of items to return.

        Returns:
            A frame with the columns item_id, score and rank (from 1), without the item itself.

        Raises:
            UserError: an unknown item, or a model that has neither vectors nor similarities of items.

        Examples:
            >>> run.similar("85123A", k=5)

        """
        return serving.similar_items(self.model, item, k=k)

    def _request(self, history: Any | None, user: Any | None, context: Mapping[str, Any] | None) -> Any:
        """Return the request of a history or a user, and the ids of the history that no item has."""
        if (history is None) == (user is None):
            raise UserError("pass either a history of items or a user")
        if history is not None:
            return serving.history_requests(serving.history_frame(history), self.model.catalog, context=context)
        if context:
            raise UserError("context goes with a history; the features of a user come from the data set")
        return serving.user_requests(self._request_builder(), [user]), ()

    def _request_builder(self) -> RequestBuilder:
        """Return the builder of the data set's requests, which encodes the whole log once."""
        if self._builder is None or self._builder.dataset is not self.dataset:
            self._builder = RequestBuilder(self.dataset)
        return self._builder

    def __repr__(self) -> str:
        data = self.recipe.data
        lines = [f"Run of {self.name} in {self.folder}", f"  data      {data.path}, protocol {data.protocol}"]
        figures = self.metrics.get("metrics", {})
        cells = [
            f"{name} {figures[name]:.4f}" for name in ("recall@10", "ndcg@10", "auc") if figures.get(name) is not None
        ]
        return "\n".join([*lines, f"  test      {', '.join(cells) or 'not evaluated'}"])


def load_run(folder: str | Path, *, device: str = "cpu") -> Run:
    """Open a run that `train` has written, in the version that is used (see `nextitem.pipeline.versions`).

    Args:
        folder: the folder of the run.
        device: where the model computes: auto, cpu or cuda.

    Returns:
        The run. Its data set is loaded when it is first needed.

    Raises:
        UserError: the folder is not a run, or one of its files is missing or damaged.

    Examples:
        >>> run = ni.load_run("runs/sasrec")
        >>> run.metrics["metrics"]["recall@10"]

    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such run; make one with: nextitem train")
    path = current_folder(path)
    recipe = load_recipe(path)
    file = path / "metrics.json"
    metrics: dict[str, Any] = {}
    if file.is_file():
        try:
            metrics = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise UserError(f"{file} is damaged ({error}); remove it, and run: nextitem evaluate {path}") from None
        if not isinstance(metrics, dict):
            raise UserError(
                f"{file} is damaged (it contains no JSON object); remove it, and run: nextitem evaluate {path}"
            )
    return Run(path, recipe, load_model(path, recipe), metrics).to(device)


def aligned(dataset: Dataset, model: Recommender) -> Dataset:
    """Renumber a data set to the items and column codes of a model, and drop events and impressions of other items."""
    if dataset.catalog.fingerprint == model.catalog.fingerprint:
        return dataset.with_catalog(model.catalog)
    to_model = np.concatenate([[0], model.catalog.ids.encode(dataset.catalog.ids.external)]).astype(np.int32)
    log = dataset.interactions
    log = log.select((log.item_ids == 0) | (to_model[log.item_ids] > 0))
    log = replace(log, item_ids=to_model[log.item_ids], num_items=model.num_items)
    impressions = dataset.impressions
    if impressions is not None:
        impressions = impressions.select(to_model[impressions.item_ids] > 0)
        impressions = replace(impressions, item_ids=to_model[impressions.item_ids])
    return replace(dataset, interactions=log, catalog=model.catalog, impressions=impressions)
