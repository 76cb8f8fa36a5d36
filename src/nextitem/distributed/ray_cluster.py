"""Connection to Ray, which spreads work over the cores of this machine or over a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from nextitem.core.errors import UserError

OBJECT_STORE_BYTES = 256 * 2**20  # results that travel between processes are small: names and counts

ENVIRONMENT = {  # unless the user has set them; Ray reads them when it is imported, and so do its processes
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would report its use to its makers
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what concerns the user is raised
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # its future default, without the warning
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # on a busy machine the proxy of Ray Serve needs more than 5 seconds
}


def check_ray() -> None:
    """Raise UserError unless Ray is installed."""
    if find_spec("ray") is None:
        raise UserError("the package ray is missing: pip install 'nextitem[ray]'")


@contextmanager
def ray_cluster(*, num_cpus: int | None = None, object_store_bytes: int = OBJECT_STORE_BYTES) -> Iterator[Any]:
    """Connect to Ray, yield its module, and disconnect when the `with` block ends.

    If the environment variable RAY_ADDRESS names a cluster, it is used as it is. Otherwise Ray starts on this machine,
    and its processes end with this one, also if this one is killed. A connection that exists already is used and stays.

    Args:
        num_cpus: number of cores that Ray may use on this machine; None: all.
        object_store_bytes: size of the shared memory of Ray on this machine.

    Raises:
        UserError: Ray is not installed, or the cluster does not answer.

    """
    check_ray()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    own: dict[str, Any] = {"num_cpus": num_cpus, "object_store_memory": object_store_bytes, "include_dashboard": False}
    try:
        ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else own)
        )
    except ConnectionError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); start one, or unset it"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def raised_mistake(error: BaseException | None) -> UserError | None:
    """Return the mistake of a user that an error of Ray reports, or None."""
    while error is not None:
        cause = getattr(error, "cause", None)
        for candidate in (error, cause):
            if isinstance(candidate, UserError):
                return UserError(str(candidate).strip().splitlines()[-1])
        error = cause if isinstance(cause, BaseException) else error.__cause__
    return None
