"""Settings of a server."""

from __future__ import annotations

from pydantic import Field

from nextitem.core.config import Config


class ServiceConfig(Config):
    """Settings of a server: how much it accepts, how long it waits, and what it remembers."""

    max_batch: int = Field(64, ge=1, le=4096)
    """Largest number of requests that a model answers at once."""
    max_queue: int = Field(512, ge=1)
    """Largest number of requests that wait for a model; more are refused until some are answered."""
    max_wait: float | None = Field(None, gt=0, le=600)
    """Seconds within which a request must be able to expect its answer when it comes, from the measured time of
    batches; others are refused. None: the time of three full batches, and at
    least 0.3."""
    deadline_seconds: float = Field(2.0, gt=0, le=600)
    """Time after which a request gets a fallback list instead of the model's."""
    max_history: int = Field(1_000, ge=1)
    """Number of a user's latest events in the store that are read."""
    state_bytes: int = Field(256 * 2**20, ge=0)
    """Memory for what each model has read of the histories of recent users, in bytes, shared out among the tenants; 0:
    histories are read anew."""
    last_lists: int = Field(100_000, ge=0)
    """Number of users whose last list is stored for fallback, for each model."""
    explore: float = Field(0.0, ge=0, le=100)
    """Temperature with which lists are sampled from the best items; 0: the list itself. A request may set its own."""
    shadow_queue: int = Field(64, ge=1)
    """Largest number of requests that wait for a shadow model; it does not see the others."""
