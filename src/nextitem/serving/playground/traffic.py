"""Traffic: the latest answers of a server, for a live view. Nothing in it tells who asked."""

from __future__ import annotations

import time
from collections import deque
from itertools import count
from threading import Lock

from pydantic import BaseModel

from nextitem.pipeline.recommend import RecommendationList

NUM_TITLES = 3  # of each answer


class AnsweredRequest(BaseModel):
    """One answered request, without user, history or ids."""

    number: int
    """Number of the answer since the server started, from 1."""
    time: float
    """Seconds since 1970 (UTC)."""
    route: str
    """What was asked for: recommend or rank."""
    model: str
    milliseconds: float
    """Time from the start of the request to its answer."""
    num_items: int
    """Number of items in the list."""
    fallback_reason: str | None
    """Why the list is not an answer of the model; none: it is one."""
    titles: list[str]
    """Titles of the first items."""


class Traffic:
    """Buffer of the latest answers, which forgets the oldest one when it is full."""

    def __init__(self, size: int = 500) -> None:
        self._answers: deque[AnsweredRequest] = deque(maxlen=size)
        self._numbers = count(1)
        self._lock = Lock()

    def record(
        self, route: str, model: str, result: RecommendationList, *, fallback_reason: str | None, seconds: float
    ) -> None:
        """Add the list with which a model answered after some seconds."""
        titles = result.titles or [str(item) for item in result.item_ids]
        with self._lock:
            self._answers.append(
                AnsweredRequest(
                    number=next(self._numbers),
                    time=time.time(),
                    route=route,
                    model=model,
                    milliseconds=round(seconds * 1000, 2),
                    num_items=len(result.item_ids),
                    fallback_reason=fallback_reason,
                    titles=titles[:NUM_TITLES],
                )
            )

    def latest(self, limit: int, *, after: int = 0) -> list[AnsweredRequest]:
        """Return at most `limit` of the latest answers whose number is above `after`, oldest first."""
        with self._lock:
            answers = [answer for answer in self._answers if answer.number > after]
        return answers[-limit:]
