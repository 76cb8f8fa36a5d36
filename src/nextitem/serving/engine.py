"""Engine: answers many different requests to one model at once, each as if it had come alone.

Requests may differ in everything: users and visitors, numbers of items, filters, candidates. Those that a model can
answer together share a batch; an invalid request gets an error, and the others their lists.

Shapes: B requests, N items, K returned.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Incremental
from nextitem.pipeline.explanations import Explanation, recommend_explained
from nextitem.pipeline.recommend import Filters, RecommendationList, allowed_items, decoded_lists
from nextitem.pipeline.steering import ordered_by, with_guide_weight
from nextitem.serving.histories import HistoryReader
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.serving.states import StateCache

MASK_BYTES = 256 * 2**20  # of the allow-lists that are kept for the next request with the same conditions


class Engine:
    """One model with its data, which answers batches of requests.

    Attributes:
        model: the model.
        states: what it has read of the histories of recent users; None: every history is read from the start.

    """

    def __init__(self, model: Recommender, dataset: Dataset, *, state_bytes: int = 0) -> None:
        """Prepare a model to answer requests of the users of a data set (in the model's item numbers) and of others.

        Args:
            model: the model.
            dataset: the data set.
            state_bytes: largest memory for what the model has read of histories, if it is Incremental; 0: none.

        """
        self.model = model.eval()
        self.states: StateCache | None = None
        if state_bytes and isinstance(model, Incremental):
            self.states = StateCache(model, max_bytes=state_bytes)
        self.repeats = dataset.repeats
        self.histories = HistoryReader(dataset)
        self.titles = model.catalog.titles()
        self._masks: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()  # allow-lists by conditions, bool [N + 1]
        self._masks_lock = Lock()

    def for_other_users(self, *, state_bytes: int = 0) -> Engine:
        """Return an engine for the users of another tenant, which shares the model and nothing that is about users."""
        engine = copy.copy(self)
        engine.histories = self.histories.for_other_users()
        engine.states = None if self.states is None else StateCache(self.model, max_bytes=state_bytes)
        return engine

    def recommend(
        self, requests: Sequence[ServedRequest], new_events: Mapping[str, Sequence[HistoryEvent]] | None = None
    ) -> list[RecommendationList | Exception]:
        """Return a list for each request, or the error of an invalid one: UserError if the request is to blame.

        Args:
            requests: the requests.
            new_events: events since the data set, oldest first, by user id.

        """
        answers: dict[int, RecommendationList | Exception] = {}
        histories = self.histories.read(requests, new_events)
        answers |= histories.errors
        numbers = self._numbers(requests)
        for rows, batch in histories.batches:
            conditions: dict[int, _Conditions] = {}
            for place, row in enumerate(rows):
                try:
                    conditions[place] = self._conditions(requests[row], numbers)
                except UserError as error:
                    answers[row] = error
            by_shape: dict[_Shape, list[int]] = {}
            for place, condition in conditions.items():
                by_shape.setdefault(condition.shape, []).append(place)
            for places in by_shape.values():
                lists = self._answered(batch, places, conditions)
                for place, answer in zip(places, lists, strict=True):
                    row = rows[place]
                    answers[row] = answer
                    if isinstance(answer, RecommendationList):
                        unknown = conditions[place].unknown_exclusions
                        skipped = histories.skipped.get(row, ())
                        answers[row] = replace(answer, skipped=skipped, unknown_exclusions=unknown)
        return [answers[row] for row in range(len(requests))]

    def _answered(
        self, batch: SequenceBatch, places: list[int], conditions: Mapping[int, _Conditions]
    ) -> Sequence[RecommendationList | Exception]:
        """Return the lists of the rows `places` of a batch, whose conditions have one shape.

        If the model fails, each request is answered alone, so that only the one to blame has no list.
        """
        row_conditions = [conditions[place] for place in places]
        first = row_conditions[0]
        part = batch if len(places) == batch.num_requests else batch.select(torch.tensor(places))
        part, device = self._constrained(part, row_conditions), self.model.popularity.device
        part = part if device == part.items.values.device else part.to(device)
        explanations: Sequence[Explanation | None] = [None] * len(places)
        try:
            model = self._steered(first)
            if self.states is not None:
                part = replace(part, state=self.states.read(part, [each.user_id for each in row_conditions]))
            if first.explain:
                lists, explanations = recommend_explained(model, part, first.k, self.titles)
            else:
                lists = model.recommend(part, first.k)
        except Exception as error:
            if len(places) == 1:
                return [error]
            return [answer for place in places for answer in self._answered(batch, [place], conditions)]
        answers = decoded_lists(self.model.catalog, lists, self.titles)
        if not first.explain:
            return answers
        return [replace(answer, explanation=part) for answer, part in zip(answers, explanations, strict=True)]

    def _steered(self, conditions: _Conditions) -> Recommender:
        """Return the model as some conditions want it. Raises UserError if it cannot be steered like that."""
        model = self.model
        if conditions.guide_weight is not None:
            model = with_guide_weight(model, conditions.guide_weight)
        return model if conditions.objective is None else ordered_by(model, conditions.objective)

    def forget(self, user_id: str) -> None:
        """Remove what the engine keeps of a user, and read no more of the user's events in the data set."""
        self.histories.forget(frozenset(self.histories.dataset.users.ids.lookup([user_id]).tolist()))
        if self.states is not None:
            self.states.forget(user_id)

    def popular(self, request: ServedRequest, first: Sequence[Any] = ()) -> RecommendationList:
        """Return the items `first` that a request allows, then the most popular of the others; the model is not asked.

        The items of the history are excluded as `recommend` does, except those that only the store knows.

        Raises:
            UserError: the conditions of the request are invalid.

        """
        conditions, catalog = self._conditions(request, self._numbers([request])), self.model.catalog
        popularity = self.model.popularity.cpu()
        is_allowed = torch.ones(catalog.num_items + 1, dtype=torch.bool) if conditions.mask is None else conditions.mask
        if conditions.candidates is not None:
            is_allowed = torch.zeros(catalog.num_items + 1, dtype=torch.bool)
            is_allowed[conditions.candidates] = True
        is_allowed = is_allowed.clone()
        is_allowed[0] = False
        is_allowed[conditions.excluded] = False
        if conditions.exclude_seen:
            for _, batch in self.histories.read([request]).batches:
                is_allowed[batch.items.values] = False
        head = [int(number) for number in self._encode([str(item) for item in first]) if is_allowed[number]]
        head = head[: conditions.k]
        is_allowed[head] = False
        scores = popularity.masked_fill(~is_allowed, -torch.inf)
        count = min(conditions.k - len(head), int(is_allowed.sum()))
        tail = scores.sort(descending=True, stable=True).indices[:count].tolist() if count else []
        items = np.array([*head, *tail], dtype=np.int64)
        return RecommendationList(
            catalog.ids.decode(items).to_list(),
            popularity[torch.from_numpy(items)].tolist(),
            self.titles.gather(items - 1).to_list(),
            fallback=True,
            unknown_exclusions=conditions.unknown_exclusions,
        )

    def item(self, item_id: str) -> dict[str, Any] | None:
        """Return the columns of an item, or None if the model does not know it."""
        number = int(self._encode([item_id])[0])
        return self.model.catalog.table.row(number - 1, named=True) if number else None

    def unknown_items(self, item_ids: Sequence[str]) -> list[str]:
        """Return the distinct ids that the model does not know."""
        ids = list(dict.fromkeys(item_ids))
        return [item for item, number in zip(ids, self._encode(ids), strict=True) if not number]

    def _conditions(self, request: ServedRequest, numbers: Mapping[str, int]) -> _Conditions:
        """Return the conditions of a request in item numbers. Raises UserError if they are invalid."""
        options: dict[str, Any] = {
            "user_id": request.user_id if request.history is None else None,
            "explain": request.explain,
            "guide_weight": request.guide_weight,
            "objective": request.objective,
        }
        if request.candidates is not None:
            unknown = [item for item in request.candidates if not numbers[item]]
            if unknown or not request.candidates:
                problem = f"no item is called {', '.join(unknown[:5])}" if unknown else "there are none"
                raise UserError(f"candidates: {problem}")
            candidates = sorted({numbers[item] for item in request.candidates})
            return _Conditions(len(candidates), candidates=torch.tensor(candidates), **options)
        if request.k < 1:
            raise UserError(f"k must be at least 1, got {request.k}")
        is_own = request.history is not None or request.user_id is None
        exclude_seen = (is_own or not self.repeats) if request.exclude_seen is None else request.exclude_seen
        return _Conditions(
            request.k,
            mask=self._mask(request.only) if request.only else None,
            excluded=[numbers[item] for item in request.exclude if numbers[item]],
            exclude_seen=exclude_seen,
            unknown_exclusions=tuple(item for item in request.exclude if not numbers[item]),
            **options,
        )

    def _numbers(self, requests: Sequence[ServedRequest]) -> dict[str, int]:
        """Return the numbers of the items that the conditions of some requests name, 0 for an unknown id."""
        ids = list({item for request in requests for item in (*request.exclude, *(request.candidates or ()))})
        return dict(zip(ids, self._encode(ids).tolist(), strict=True)) if ids else {}

    def _encode(self, item_ids: Sequence[str]) -> NDArray[np.int32]:
        return self.model.catalog.ids.lookup([item.strip() for item in item_ids])

    def _mask(self, only: tuple[str, ...]) -> Tensor:
        """Return the items that satisfy the conditions, bool [N + 1]; masks of recent conditions are kept."""
        with self._masks_lock:
            if only not in self._masks:
                allowed = allowed_items(self.model.catalog, Filters(only=only))
                assert allowed is not None, "there are conditions"
                self._masks[only] = allowed[0]
                while len(self._masks) > 1 and len(self._masks) * len(allowed[0]) > MASK_BYTES:
                    self._masks.popitem(last=False)
            self._masks.move_to_end(only)
            return self._masks[only]

    def _constrained(self, batch: SequenceBatch, conditions: Sequence[_Conditions]) -> SequenceBatch:
        """Return the batch with its allow-lists, exclusions and candidates; all conditions have one shape."""
        if conditions[0].candidates is not None:
            rows = Jagged.from_lengths(
                torch.cat([part.candidates for part in conditions if part.candidates is not None]),
                torch.tensor([part.k for part in conditions]),
            )
            allowed = torch.zeros(len(conditions), self.model.num_items + 1, dtype=torch.bool)
            allowed[rows.row_ids(), rows.values] = True
            return replace(batch, allowed=allowed, candidates=rows)
        masks = [part.mask for part in conditions if part.mask is not None]
        is_seen = torch.tensor([part.exclude_seen for part in conditions])[batch.items.row_ids()]
        excluded = [(row, item) for row, part in enumerate(conditions) for item in part.excluded]
        values = torch.cat([batch.items.values[is_seen], torch.tensor([item for _, item in excluded]).long()])
        owners = torch.cat([batch.items.row_ids()[is_seen], torch.tensor([row for row, _ in excluded]).long()])
        order = owners.argsort(stable=True)
        lengths = torch.bincount(owners, minlength=len(conditions))
        return replace(
            batch,
            allowed=torch.stack(masks) if masks else None,
            excluded=Jagged.from_lengths(values[order], lengths) if len(values) else None,
        )


@dataclass(frozen=True)
class _Shape:
    """What requests must have in common to be answered by one call of the model."""

    k: int
    has_mask: bool
    has_candidates: bool
    explain: bool
    guide_weight: float | None
    objective: str | None


@dataclass(frozen=True, eq=False)
class _Conditions:
    """Conditions of one request, in item numbers.

    Attributes:
        k: number of items to return.
        mask: allowed items, bool [N + 1]; None: all.
        excluded: items that must not be returned.
        exclude_seen: whether the items of the history must not be returned.
        candidates: items to order, [k] int64 ascending; None: any.
        unknown_exclusions: ids to exclude that no item has.
        user_id: the user whose known history it is; None: a visitor, or the request has a history of its own.
        explain: whether to explain the list.
        guide_weight: weight of the guide; None: as trained.
        objective: objective that orders the list; None: as trained.

    """

    k: int
    mask: Tensor | None = None
    excluded: Sequence[int] = ()
    exclude_seen: bool = False
    candidates: Tensor | None = None
    unknown_exclusions: tuple[str, ...] = ()
    user_id: str | None = None
    explain: bool = False
    guide_weight: float | None = None
    objective: str | None = None

    @property
    def shape(self) -> _Shape:
        """What requests must have in common to be answered in one batch."""
        has_mask, has_candidates = self.mask is not None, self.candidates is not None
        return _Shape(self.k, has_mask, has_candidates, self.explain, self.guide_weight, self.objective)
