"""Service: the models, their batches and the store behind the HTTP API, without anything of HTTP.

Each model has an engine, a batcher and the last lists of its users. A request that is not answered in time, or on which
the model fails, gets the last good list of the user, or the most popular allowed items, and says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nextitem.core.config import Config
from nextitem.core.errors import UserError
from nextitem.pipeline.recommend import RecommendationList
from nextitem.pipeline.runs import Run
from nextitem.serving.batching import Batcher
from nextitem.serving.engine import Engine
from nextitem.serving.impressions import ImpressionLog, ShownList
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.serving.stores.store import AppendOutcome, EventStore, StoredEvent, StoreUnavailable

log = logging.getLogger("nextitem.serving")


class ServiceConfig(Config):
    """Settings of a server."""

    max_batch: int = 64
    """Largest number of requests that a model answers at once."""
    max_queue: int = 512
    """Largest number of requests that wait for a model; more are refused until some are answered."""
    deadline_seconds: float = 2.0
    """Time after which a request gets a fallback list instead of the model's."""
    max_history: int = 1_000
    """Number of a user's latest events in the store that are read."""
    state_bytes: int = 256 * 2**20
    """Memory for what each model has read of the histories of recent users, in bytes; 0: histories are read anew."""
    last_lists: int = 100_000
    """Number of users whose last list is kept for fallback."""


@dataclass
class ServedModel:
    """One model that is served.

    Attributes:
        name: name in the API: that of the run's folder.
        run: the run.
        engine: answers its requests.
        batcher: collects its requests.
        weight: share of the users who are assigned to it.
        version: fingerprint of weights and settings.
        last_lists: the last list of recent users, the most recent last.

    """

    name: str
    run: Run
    engine: Engine
    batcher: Batcher[ServedRequest, RecommendationList]
    weight: float
    version: str
    last_lists: OrderedDict[str, RecommendationList] = field(default_factory=OrderedDict)


@dataclass(frozen=True)
class Answer:
    """A list with what the API says about it."""

    request_id: str
    model: ServedModel
    result: RecommendationList
    fallback_reason: str | None


class Service:
    """The models and the store of a server."""

    def __init__(
        self,
        runs: Mapping[str, Run],
        store: EventStore,
        config: ServiceConfig | None = None,
        *,
        impressions: ImpressionLog | None = None,
    ) -> None:
        """Load the models' data, and start a thread for each model and one for writing events.

        Args:
            runs: the runs by the names of their models; the first is the default.
            store: the events since the data sets.
            config: settings.
            impressions: where the lists that are recommended are logged; None: nowhere.

        Raises:
            UserError: there is no run, or the data set of a run cannot be loaded.

        """
        if not runs:
            raise UserError("there is no run to serve; pass at least one folder of a run")
        self.config = config or ServiceConfig()
        self.store = store
        self.models = {name: self._served(name, run, 1 / len(runs)) for name, run in runs.items()}
        self._writer: Batcher[list[StoredEvent], AppendOutcome] = Batcher(
            self._append, max_batch=100, max_queue=1_000, name="event-writer"
        )
        self.impressions = impressions
        self._recorder: Batcher[ShownList, None] = Batcher(
            self._record, max_batch=1_000, max_queue=100_000, name="impression-writer"
        )

    def _served(self, name: str, run: Run, weight: float) -> ServedModel:
        engine = Engine(run.model, run.dataset, state_bytes=self.config.state_bytes)
        batcher: Batcher[ServedRequest, RecommendationList] = Batcher(
            lambda requests: self._answer_batch(engine, requests),
            max_batch=self.config.max_batch,
            max_queue=self.config.max_queue,
            name=f"model-{name}",
        )
        return ServedModel(name, run, engine, batcher, weight, run.model.weights_fingerprint())

    def warm_up(self) -> None:
        """Answer one request with every model, so that the first of a user does not wait for what is built once."""
        for model in self.models.values():
            item = str(model.run.model.catalog.ids.external[0])
            model.batcher.submit(ServedRequest(history=(HistoryEvent(item),), k=10)).result()

    def close(self, timeout: float = 30.0) -> None:
        """Accept no more requests, answer those that wait, and close the store."""
        for model in self.models.values():
            model.batcher.close(timeout)
        self._writer.close(timeout)
        self._recorder.close(timeout)
        if self.impressions is not None:
            self.impressions.close()
        self.store.close()

    def model_for(self, name: str | None, user_id: str | None) -> ServedModel:
        """Return a model by name, or the one that a user is assigned to: always the same, in shares by weight.

        Raises UserError for an unknown name.
        """
        if name is not None:
            if name not in self.models:
                raise UserError(f"no model is called {name!r}; there are {', '.join(self.models)}")
            return self.models[name]
        models = list(self.models.values())
        if user_id is None or len(models) == 1:
            return models[0]
        digest = hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64 * sum(model.weight for model in models)
        for model in models:
            place -= model.weight
            if place < 0:
                return model
        return models[-1]

    async def recommend(self, model: ServedModel, request: ServedRequest) -> Answer:
        """Return the list of a request, from the model or by fallback.

        Raises:
            UserError: the request is invalid.
            QueueFullError: too many requests wait.
            ClosedError: the server stops.
            StoreUnavailable: the log of impressions is synced, and cannot be written.

        """
        request_id, reason = uuid.uuid4().hex, None
        future = asyncio.wrap_future(model.batcher.submit(request))
        try:
            result = await asyncio.wait_for(future, self.config.deadline_seconds)
            reason = "no history" if result.fallback else None
            if request.user_id is not None and not result.fallback and request.candidates is None:
                self._keep(model, request.user_id, result)
        except TimeoutError:
            result, reason = self._fallback(model, request), "deadline"
        except UserError:
            raise
        except Exception:
            log.exception("request %s: the model %s failed", request_id, model.name)
            result, reason = self._fallback(model, request), "error"
        if self.impressions is not None and request.candidates is None and not request.is_preview:
            await self._log(self.impressions, request_id, model, request, result, reason)
        return Answer(request_id, model, result, reason)

    async def _log(
        self,
        impressions: ImpressionLog,
        request_id: str,
        model: ServedModel,
        request: ServedRequest,
        result: RecommendationList,
        reason: str | None,
    ) -> None:
        items = [str(item) for item in result.item_ids]
        policy = f"{model.name} {model.version}" + (f" fallback: {reason}" if reason else "")
        shown_list = ShownList(request_id, request.user_id, items, int(time.time() * 1000), [1.0] * len(items), policy)
        future = self._recorder.submit(shown_list)
        if impressions.is_synced:
            await asyncio.wrap_future(future)

    def _record(self, lists: Sequence[ShownList]) -> Sequence[Exception | None]:
        assert self.impressions is not None
        try:
            self.impressions.append(lists)
        except OSError as error:
            log.error("%d lists were not logged: %s", len(lists), error)
            return [StoreUnavailable(f"the log of impressions cannot be written: {error.strerror}")] * len(lists)
        return [None] * len(lists)

    def _keep(self, model: ServedModel, user_id: str, result: RecommendationList) -> None:
        model.last_lists[user_id] = result
        model.last_lists.move_to_end(user_id)
        while len(model.last_lists) > self.config.last_lists:
            model.last_lists.popitem(last=False)

    def _fallback(self, model: ServedModel, request: ServedRequest) -> RecommendationList:
        """Return the last list of the user, as far as this request allows it, filled with the most popular items."""
        last = model.last_lists.get(request.user_id or "")
        return model.engine.popular(request, first=() if last is None else last.item_ids)

    def _answer_batch(
        self, engine: Engine, requests: Sequence[ServedRequest]
    ) -> Sequence[RecommendationList | Exception]:
        users = {request.user_id for request in requests if request.history is None and request.user_id is not None}
        new_events: dict[str, list[HistoryEvent]] = {}
        if users:
            try:
                stored = self.store.histories(users, limit=self.config.max_history)
                new_events = {
                    user: [_history_event(event) for event in events] for user, events in stored.items() if events
                }
            except StoreUnavailable as error:
                log.warning("histories are read without the store: %s", error)
        return engine.recommend(requests, new_events)

    async def append(self, events: list[StoredEvent]) -> None:
        """Store events durably, and count them in the histories from now on.

        Raises:
            UserError: an event is invalid.
            StoreUnavailable: nothing was acknowledged.
            QueueFullError: too many calls wait.

        """
        await asyncio.wrap_future(self._writer.submit(events))
        latest = max(event.timestamp_ms for event in events)
        for model in self.models.values():
            model.engine.histories.advance(latest)

    def _append(self, calls: Sequence[list[StoredEvent]]) -> Sequence[AppendOutcome | Exception]:
        """Store the events of several calls in one transaction; if one of them is invalid, each call in its own.

        The outcome of a shared transaction is returned for each of its calls.
        """
        try:
            return [self.store.append([event for events in calls for event in events])] * len(calls)
        except UserError as error:
            if len(calls) == 1:
                return [error]
        except StoreUnavailable as error:
            return [error] * len(calls)
        return [answer for events in calls for answer in self._append([events])]

    async def delete_user(self, user_id: str) -> int:
        """Delete every trace of a user from the store and from memory, and return the number of deleted events."""
        for model in self.models.values():
            model.last_lists.pop(user_id, None)
            model.engine.forget(user_id)
        if self.impressions is not None:
            await asyncio.to_thread(self.impressions.delete_user, user_id)
        return await asyncio.to_thread(self.store.delete_user, user_id)

    def unknown_items(self, item_ids: Sequence[str]) -> list[str]:
        """Return the distinct ids that no model knows."""
        unknown = list(dict.fromkeys(item_ids))
        for model in self.models.values():
            unknown = model.engine.unknown_items(unknown) if unknown else []
        return unknown


def stored_event(
    event_id: str, user_id: str, item_id: str, action: str | None, timestamp_ms: int | None, request_id: str | None
) -> StoredEvent:
    """Return an event with the present time if it has none."""
    now = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
    return StoredEvent(event_id, user_id, item_id, action, now, request_id)


def _history_event(event: StoredEvent) -> HistoryEvent:
    return HistoryEvent(event.item_id, event.action, event.timestamp_ms)
