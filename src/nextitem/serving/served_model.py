"""A model that is served: the version in use, the queue of its requests, and the last lists of its users.

The version is one object, which is replaced in one step. A batch reads it once, so an answer comes from one version. A
batch that is being answered when the version is replaced ends with the old one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from nextitem.pipeline.recommend import RecommendationList
from nextitem.pipeline.runs import Run
from nextitem.pipeline.updating.deletions import read_deletions
from nextitem.pipeline.versions import FIRST
from nextitem.serving.batching import Admission, Batcher
from nextitem.serving.config import ServiceConfig
from nextitem.serving.drift import DriftMonitor
from nextitem.serving.engine import Engine
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.serving.tenants import Tenant


class TenantRequest(NamedTuple):
    """A request, and the tenant whose users it is about."""

    tenant: Tenant
    request: ServedRequest


class VersionedList(NamedTuple):
    """A list, and the version of the model that it comes from."""

    version: ModelVersion
    result: RecommendationList


@dataclass(eq=False)
class ModelVersion:
    """One version of a model, with its data.

    Each tenant has an engine of its own around the same model, so that nothing about users is shared: neither what is
    stored of them, nor the time of the latest event. The users of the data set are those of the default tenant.

    Attributes:
        run: the run in this version.
        fingerprint: hash of weights and settings.
        engines: the engine of each tenant, by namespace; the first is that of the default tenant.
        drift: figures of its lists and of the events of its items.
        last_lists: the last list of recent users, by tenant and user, the most recent last.

    """

    run: Run
    fingerprint: str
    engines: dict[str, Engine]
    drift: DriftMonitor
    last_lists: OrderedDict[tuple[str, str], RecommendationList] = field(default_factory=OrderedDict)

    @classmethod
    def of(cls, run: Run, namespaces: Sequence[str], *, state_bytes: int = 0) -> ModelVersion:
        """Load the data of a run, and prepare it to answer.

        Args:
            run: the run.
            namespaces: the tenants; the users of the data set are those of the first.
            state_bytes: as in `ServiceConfig`.

        Raises:
            UserError: the data set of the run cannot be loaded.

        """
        part = state_bytes // len(namespaces)
        first = Engine(run.model, run.dataset, state_bytes=part)
        if run.root == run.folder:  # the data of a later version have lost the deleted users
            first.histories.forget(read_deletions(run.root).user_numbers(run.dataset.users.ids))
        others = {name: first.for_other_users(state_bytes=part) for name in namespaces[1:]}
        return cls(run, run.model.weights_fingerprint(), {namespaces[0]: first, **others}, DriftMonitor(run.model))

    @property
    def name(self) -> str:
        """Name of the version, as in RUN/versions."""
        return FIRST if self.run.root == self.run.folder else self.run.folder.name

    @property
    def engine(self) -> Engine:
        """Engine of the default tenant."""
        return next(iter(self.engines.values()))

    def continue_from(self, former: ModelVersion) -> None:
        """Let the time of requests go on from that of the version before."""
        for namespace, engine in self.engines.items():
            engine.histories.advance(former.engines[namespace].histories.latest_ms)


@dataclass(frozen=True)
class RefusedVersion:
    """A version that could not be taken into use: its name, and why."""

    name: str
    reason: str


class ServedModel:
    """One model that is served.

    Attributes:
        name: name in the API: that of the run's folder.
        version: the version in use; replace it by `use`.
        weight: share of the users who are assigned to it; 0 for a shadow model.
        is_shadow: whether it gets copies of requests, and nobody sees its lists.
        refused: the last version that could not be used, until another one is used.
        batcher: queue of its requests.

    """

    def __init__(
        self,
        name: str,
        run: Run,
        config: ServiceConfig,
        *,
        namespaces: Sequence[str],
        weight: float,
        is_shadow: bool = False,
    ) -> None:
        """Load the data of the run, and start the thread that answers. Raises UserError as `ModelVersion.of` does."""
        self.name, self.weight, self.is_shadow, self.config = name, weight, is_shadow, config
        self.version = ModelVersion.of(run, namespaces, state_bytes=config.state_bytes)
        self.refused: RefusedVersion | None = None
        queue = config.shadow_queue if is_shadow else config.max_queue
        max_wait = config.deadline_seconds if is_shadow else config.max_wait
        self.batcher: Batcher[TenantRequest, VersionedList] = Batcher(
            self._answer,
            max_batch=config.max_batch,
            max_queue=queue,
            name=f"model-{name}",
            admission=Admission(queue, max_wait, config.deadline_seconds),
            niceness=10 if is_shadow else 0,
        )

    @property
    def run(self) -> Run:
        """The run in the version that is used."""
        return self.version.run

    @property
    def engine(self) -> Engine:
        """The engine of the version that is used."""
        return self.version.engine

    def use(self, version: ModelVersion) -> None:
        """Use another version from the next batch on."""
        former = self.version
        version.continue_from(former)
        self.version, self.refused = version, None
        version.continue_from(former)  # an event may have come in between
        self.batcher.measure_anew()

    def warm_up(self, tenant: Tenant) -> None:
        """Answer one request and two full batches, so that what is built once is there, and their times are known.

        The requests are those of users of the data set: shorter histories would make the model look faster than it is.
        """
        users = self.run.dataset.users.ids.external
        count = self.config.max_batch
        some_users = users.gather_every(max(1, len(users) // count)).head(count)
        requests = [TenantRequest(tenant, ServedRequest(user_id=str(user), k=10)) for user in some_users]
        item = str(self.run.model.catalog.ids.external[0])
        visitor = TenantRequest(tenant, ServedRequest(history=(HistoryEvent(item),), k=10))
        full_batch = (requests * count)[:count]
        for batch in ([visitor], full_batch, full_batch, requests[:1]):
            for future in self.batcher.submit_together(batch):
                future.result()

    def cache_figures(self) -> dict[str, float]:
        """Return the figures of the states of histories of all tenants: hits, misses, evictions and bytes."""
        caches = [engine.states for engine in self.version.engines.values() if engine.states is not None]
        names = ("hits", "misses", "evictions", "num_bytes")
        return {name: float(sum(getattr(cache, name) for cache in caches)) for name in names} if caches else {}

    def remember(self, tenant: Tenant, user_id: str, answer: VersionedList) -> None:
        """Store the last list of a user, for fallback."""
        lists, key = answer.version.last_lists, (tenant.namespace, user_id)
        lists[key] = answer.result
        lists.move_to_end(key)
        while len(lists) > self.config.last_lists:
            lists.popitem(last=False)

    def fallback(self, tenant: Tenant, request: ServedRequest) -> VersionedList:
        """Return the last list of the user, as far as the request allows it, filled with the most popular items."""
        version = self.version
        last = version.last_lists.get((tenant.namespace, request.user_id or ""))
        first = () if last is None else last.item_ids
        return VersionedList(version, version.engines[tenant.namespace].popular(request, first=first))

    def forget(self, tenant: Tenant, user_id: str) -> Future[None]:
        """Remove what is stored of a user in memory, after the requests that wait now."""

        def remove() -> None:
            version = self.version
            version.last_lists.pop((tenant.namespace, user_id), None)
            version.engines[tenant.namespace].forget(user_id)

        return self.batcher.call(remove)

    def _answer(self, requests: Sequence[TenantRequest]) -> Sequence[VersionedList | Exception]:
        """Answer a batch, the requests of each tenant together, by one version."""
        version = self.version
        answers: dict[int, VersionedList | Exception] = {}
        rows_of: dict[Tenant, list[int]] = {}
        for row, (tenant, _) in enumerate(requests):
            rows_of.setdefault(tenant, []).append(row)
        for tenant, rows in rows_of.items():
            part = [requests[row].request for row in rows]
            users = {each.user_id for each in part if each.history is None and each.user_id is not None}
            new_events = tenant.new_events(users, limit=self.config.max_history)
            for row, answer in zip(rows, version.engines[tenant.namespace].recommend(part, new_events), strict=True):
                answers[row] = VersionedList(version, answer) if isinstance(answer, RecommendationList) else answer
        return [answers[row] for row in range(len(requests))]
