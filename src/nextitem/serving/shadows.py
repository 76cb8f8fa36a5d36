"""Shadow models: they get copies of the requests after these were answered, and nobody sees their lists.

Their lists are logged in a folder of their own, as they led to nothing that could be learned from. Their threads yield
to those that answer, and if a shadow is slower than the requests come, it does not see some of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nextitem.core.errors import UserError
from nextitem.serving.batching import ClosedError, QueueFullError
from nextitem.serving.impressions import ShownList
from nextitem.serving.metrics import Metrics
from nextitem.serving.requests import ServedRequest
from nextitem.serving.served_model import ServedModel, TenantRequest
from nextitem.serving.tenants import Tenant

if TYPE_CHECKING:
    from nextitem.serving.service import Answer

log = logging.getLogger("nextitem.serving")


class Shadows:
    """The shadow models of a server."""

    def __init__(self, models: Sequence[ServedModel], metrics: Metrics) -> None:
        self.models, self.metrics = list(models), metrics
        self._tasks: set[asyncio.Future[object]] = set()

    def copy(self, tenant: Tenant, request: ServedRequest, answer: Answer) -> None:
        """Let each shadow answer a request, once the loop has nothing else to do for the request itself."""
        for model in self.models:
            task: asyncio.Future[object] = asyncio.ensure_future(self._answer(model, tenant, request, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if request.user_id is not None:
                tenant.track(request.user_id, task)

    async def finished(self) -> None:
        """Wait until all copies that were made so far are answered."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _answer(self, model: ServedModel, tenant: Tenant, request: ServedRequest, answer: Answer) -> None:
        """Answer a request, compare the lists, and log the shadow's."""
        started = time.perf_counter()
        try:
            shadow = await asyncio.wrap_future(model.batcher.submit(TenantRequest(tenant, request)))
        except (QueueFullError, ClosedError):
            self.metrics.shadow_dropped.labels(model.name).inc()
            return
        except UserError as error:  # it may know other columns or items than the model that answered
            log.debug("the shadow %s cannot answer a request: %s", model.name, error)
            self.metrics.shadow_dropped.labels(model.name).inc()
            return
        except Exception as error:
            log.warning("the shadow %s failed: %s", model.name, type(error).__name__)
            self.metrics.shadow_dropped.labels(model.name).inc()
            return
        self.metrics.shadow_seconds.labels(model.name).observe(time.perf_counter() - started)
        version, result = shadow
        items = [str(item) for item in result.item_ids]
        shown_items = {str(item) for item in answer.result.item_ids}
        if shown_items:
            overlap = len(shown_items.intersection(items)) / len(shown_items)
            self.metrics.shadow_overlap.labels(answer.model.name, model.name).observe(overlap)
        if tenant.shadow_recorder is not None:
            policy = f"shadow {model.name} {version.fingerprint}" + (" fallback: no history" if result.fallback else "")
            chances = [1.0] * len(items)
            shadow_list = ShownList(answer.request_id, request.user_id, items, int(time.time() * 1000), chances, policy)
            await tenant.shadow_recorder.record(shadow_list)
