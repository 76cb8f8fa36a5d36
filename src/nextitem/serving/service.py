"""Service: the models, their queues and the tenants behind the HTTP API, without anything of HTTP.

A request that is not answered in time, or on which the model fails, gets the last good list of the user, or the most
popular allowed items, and says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nextitem.core.errors import UserError
from nextitem.pipeline.recommend import RecommendationList
from nextitem.pipeline.runs import Run
from nextitem.pipeline.updating.deletions import delete_user
from nextitem.serving.assignment import assigned, shares_of
from nextitem.serving.batching import ClosedError, QueueFullError
from nextitem.serving.config import ServiceConfig
from nextitem.serving.exploration import head_size, sampled_list
from nextitem.serving.impressions import ImpressionLog, ShownList
from nextitem.serving.metrics import Metrics
from nextitem.serving.requests import ServedRequest
from nextitem.serving.served_model import ServedModel, TenantRequest, VersionedList
from nextitem.serving.shadows import Shadows
from nextitem.serving.stores.store import EventStore, StoredEvent, StoreUnavailable
from nextitem.serving.swapping import VersionWatcher
from nextitem.serving.tenants import Tenant
from nextitem.serving.updater import Updater

log = logging.getLogger("nextitem.serving")


@dataclass(frozen=True)
class Answer:
    """A list with what the API says about it.

    Attributes:
        request_id: name of the answer.
        model: the model.
        version: fingerprint of the model.
        result: the list.
        fallback_reason: why it is not the model's answer: no history, deadline or error; None: it is.
        propensities: if the list was sampled, the probability of each item to be chosen for its slot.
        exploration: temperature of the sampling, 0 if there was none.

    """

    request_id: str
    model: ServedModel
    version: str
    result: RecommendationList
    fallback_reason: str | None
    propensities: Sequence[float] | None = None
    exploration: float = 0.0

    @property
    def policy(self) -> str:
        """What made the list, as the log of impressions has it."""
        explored = f" explore {self.exploration:g}" if self.propensities is not None else ""
        fallback = f" fallback: {self.fallback_reason}" if self.fallback_reason else ""
        return f"{self.model.name} {self.version}{explored}{fallback}"

    def shown_list(self, user_id: str | None) -> ShownList:
        """Return the list as the log of impressions has it."""
        items = [str(item) for item in self.result.item_ids]
        chances = [1.0] * len(items) if self.propensities is None else list(self.propensities)
        return ShownList(self.request_id, user_id, items, int(time.time() * 1000), chances, self.policy)


class Service:
    """The models and the tenants of a server.

    Attributes:
        models: the models that answer, by name; the first is the default.
        shadows: the models that get copies of the requests.
        tenants: the tenants, by namespace; the first is the default.
        metrics: figures for whoever watches.

    """

    def __init__(
        self,
        runs: Mapping[str, Run],
        tenants: EventStore | Sequence[Tenant],
        config: ServiceConfig | None = None,
        *,
        impressions: ImpressionLog | None = None,
        weights: Mapping[str, float] | None = None,
        shadows: Mapping[str, Run] | None = None,
    ) -> None:
        """Load the models' data, and start the threads of models, events and logs.

        Args:
            runs: the runs by the names of their models; the first is the default.
            tenants: the tenants, the default one first; or the store of the only one.
            config: settings.
            impressions: with a store, where lists are logged; None: nowhere.
            weights: shares of the users by model; the others share the rest.
            shadows: the runs of shadow models by name.

        Raises:
            UserError: there is no run, two have one name, the data set of a run cannot be loaded, or a weight is wrong.

        """
        if not runs:
            raise UserError("there is no run to serve; pass at least one folder of a run")
        shadows = shadows or {}
        for name in set(runs) & set(shadows):
            raise UserError(f"a run and a shadow are called {name}; rename one of the folders")
        self.config, self.metrics = config or ServiceConfig(), Metrics()
        shares = shares_of(list(runs), weights or {})
        if isinstance(tenants, EventStore):
            tenants = [Tenant("default", tenants, impressions=impressions)]
        self.tenants = {tenant.namespace: tenant for tenant in tenants}
        names = list(self.tenants)
        self.models = {
            name: ServedModel(name, run, self.config, namespaces=names, weight=shares[name])
            for name, run in runs.items()
        }
        self.shadows = Shadows(
            [
                ServedModel(name, run, self.config, namespaces=names, weight=0.0, is_shadow=True)
                for name, run in shadows.items()
            ],
            self.metrics,
        )
        self._shares = {name: share for name, share in shares.items() if share > 0}
        self.watcher: VersionWatcher | None = None
        self.updater: Updater | None = None

    @property
    def store(self) -> EventStore:
        """The events of the default tenant."""
        return self.default_tenant.store

    @property
    def impressions(self) -> ImpressionLog | None:
        """The log of the lists of the default tenant."""
        recorder = self.default_tenant.recorder
        return None if recorder is None else recorder.impressions

    @property
    def default_tenant(self) -> Tenant:
        """The tenant of requests that name none."""
        return next(iter(self.tenants.values()))

    @property
    def all_models(self) -> list[ServedModel]:
        """The models that answer, and the shadow models."""
        return [*self.models.values(), *self.shadows.models]

    def warm_up(self) -> None:
        """Answer requests with every model, so that the first of a user does not wait for what is built once."""
        for model in self.all_models:
            model.warm_up(self.default_tenant)

    def watch(self, folders: Mapping[str, Path], open_run: Callable[[Path], Run], *, seconds: float = 2.0) -> None:
        """Take new versions of the runs into use from now on; see `VersionWatcher`.

        Args:
            folders: folders of the runs by the names of their models.
            open_run: opens a run as those were opened that are served now.
            seconds: time between two looks.

        """
        self.watcher = VersionWatcher(self.all_models, folders, open_run, self.metrics, seconds=seconds)
        self.watcher.start()

    def look_for_versions(self) -> None:
        """Look for new versions at once, if the runs are watched."""
        if self.watcher is not None:
            self.watcher.wake()

    def update_with(self, updater: Updater) -> None:
        """Run updates beside the server from now on, until it is closed."""
        self.updater = updater
        updater.start()

    def observe(self) -> None:
        """Set the metrics that are computed when they are read; this takes some 100 milliseconds at most."""
        updates = {} if self.updater is None else self.updater.figures()
        for model in self.all_models:
            self.metrics.waiting.labels(model.name).set(len(model.batcher))
            self.metrics.expected.labels(model.name).set(model.batcher.expected_seconds())
            figures = {**model.version.drift.figures(), **updates.get(model.name, {})}
            self.metrics.set_figures(model.name, figures, model.cache_figures())

    def close(self, timeout: float = 30.0) -> None:
        """Accept no more requests, answer those that wait, and close logs and stores."""
        if self.updater is not None:
            self.updater.stop()
        if self.watcher is not None:
            self.watcher.close(timeout)
        for model in self.all_models:
            model.batcher.close(timeout)
        for tenant in self.tenants.values():
            tenant.close(timeout)

    def model_for(self, name: str | None, user_id: str | None) -> ServedModel:
        """Return a model by name, or the one that a user is assigned to: always the same, in shares by weight.

        Raises UserError for an unknown name.
        """
        if name is None and (user_id is None or len(self._shares) == 1):
            name = next(iter(self._shares))
        elif name is None:
            name = assigned(self._shares, str(user_id))
        if name not in self.models:
            raise UserError(f"no model is called {name!r}; there are {', '.join(self.models)}")
        return self.models[name]

    def refusal(self, num_inside: int = 0, *, waited: float = 0.0) -> QueueFullError | None:
        """Return why no model accepts a request now, or None if one does.

        Args:
            num_inside: number of requests that the server has begun to read and not answered yet; each model counts
                with an equal part of them.
            waited: seconds that the request has waited already.

        """
        part = num_inside // len(self.models)
        refusals = [model.batcher.refusal(part, waited=waited) for model in self.models.values()]
        full = [refusal for refusal in refusals if refusal is not None]
        return min(full, key=lambda each: each.retry_after) if len(full) == len(refusals) else None

    async def recommend(
        self,
        model: ServedModel,
        request: ServedRequest,
        *,
        tenant: Tenant | None = None,
        explore: float | None = None,
    ) -> Answer:
        """Return the list of a request, from the model or by fallback.

        Args:
            model: the model that answers.
            request: the request.
            tenant: whose user it is about; None: the default tenant's.
            explore: temperature of sampling; None: that of the settings. Candidates are ordered without it.

        Raises:
            UserError: the request is invalid.
            QueueFullError: too many requests wait.
            ClosedError: the server stops.
            StoreUnavailable: the log of impressions is synced, and cannot be written.

        """
        tenant, user_id = tenant or self.default_tenant, request.user_id
        if user_id is None:
            return await self._recommend(model, request, tenant, explore)
        in_progress: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        tenant.track(user_id, in_progress)
        try:
            return await self._recommend(model, request, tenant, explore)
        finally:
            in_progress.set_result(None)

    async def _recommend(
        self, model: ServedModel, request: ServedRequest, tenant: Tenant, explore: float | None
    ) -> Answer:
        request_id, propensities, is_ranking = uuid.uuid4().hex, None, request.candidates is not None
        temperature = 0.0 if is_ranking else self.config.explore if explore is None else explore
        wide = replace(request, k=head_size(request.k)) if temperature > 0 else request
        future = asyncio.wrap_future(model.batcher.submit(TenantRequest(tenant, wide)))
        try:
            answer = await asyncio.wait_for(future, self.config.deadline_seconds)
            reason = "no history" if answer.result.fallback else None
            if temperature > 0:
                result, propensities = sampled_list(
                    answer.result, k=request.k, temperature=temperature, seed=request_id
                )
                answer = VersionedList(answer.version, result)
            if request.user_id is not None and reason is None and not is_ranking:
                model.remember(tenant, request.user_id, answer)
        except TimeoutError:
            answer, reason = model.fallback(tenant, request), "deadline"
        except (UserError, ClosedError):
            raise
        except Exception:
            log.exception("request %s: the model %s failed", request_id, model.name)
            answer, reason = model.fallback(tenant, request), "error"
        version = answer.version.fingerprint
        final = Answer(request_id, model, version, answer.result, reason, propensities, temperature)
        if reason is not None:
            self.metrics.fallbacks.labels(model.name, reason).inc()
        if not is_ranking and not request.is_preview:
            scores = answer.result.scores
            answer.version.drift.add_list(answer.result.item_ids, scores, is_fallback=reason is not None)
            if tenant.recorder is not None:
                await tenant.recorder.record(final.shown_list(request.user_id))
            self.shadows.copy(tenant, request, final)
        return final

    async def append(self, events: list[StoredEvent], *, tenant: Tenant | None = None) -> None:
        """Store events durably, and count them in the histories from now on.

        Raises:
            UserError: an event is invalid.
            StoreUnavailable: nothing was acknowledged.
            QueueFullError: too many calls wait.

        """
        tenant = tenant or self.default_tenant
        await tenant.append(events)
        latest, items = max(event.timestamp_ms for event in events), [event.item_id for event in events]
        for model in self.all_models:
            model.version.engines[tenant.namespace].histories.advance(latest)
            model.version.drift.add_events(items)

    async def delete_user(self, user_id: str, *, tenant: Tenant | None = None) -> int:
        """Delete every trace of a user of a tenant, and return the number of events that the store had.

        That is in the store, in logs, in memory and in the data of all versions of the runs.

        Requests of the user that are being answered are waited for, with their copies for shadow models, so that
        nothing of them is stored afterwards.

        Raises StoreUnavailable if not everything could be deleted; the same call may be repeated.
        """
        tenant = tenant or self.default_tenant
        await tenant.finished(user_id)
        for model in self.all_models:
            await asyncio.wrap_future(model.forget(tenant, user_id))
        num_events = await tenant.delete_user(user_id)
        if tenant is self.default_tenant:  # updates learn the events of no other one
            for root in dict.fromkeys(model.run.root for model in self.all_models):
                await asyncio.to_thread(_delete_from_run, root, user_id)
        return num_events

    def unknown_items(self, item_ids: Sequence[str]) -> list[str]:
        """Return the distinct ids that no model knows."""
        unknown = list(dict.fromkeys(item_ids))
        for model in self.models.values():
            unknown = model.engine.unknown_items(unknown) if unknown else []
        return unknown


def _delete_from_run(root: Path, user_id: str) -> None:
    """Delete a user from all versions of a run, and note it for later ones; a run that cannot be updated has none."""
    if not (root / "versions").is_dir() and not os.access(root, os.W_OK):
        return
    try:
        delete_user(root, user_id)
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreUnavailable(f"the versions of {root.name} still contain the user ({reason})") from None


def stored_event(
    event_id: str, user_id: str, item_id: str, action: str | None, timestamp_ms: int | None, request_id: str | None
) -> StoredEvent:
    """Return an event with the present time if it has none."""
    now = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
    return StoredEvent(event_id, user_id, item_id, action, now, request_id)
