"""Open an event store by its URL."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from urllib.parse import urlsplit

from nextitem.core.errors import UserError
from nextitem.serving.stores.store import NAMESPACE, EventStore, StoreConfig, StoreUnavailable

FORMS = "sqlite:///FILE, redis://HOST:PORT/DB or postgresql://USER@HOST:PORT/DATABASE"
DRIVERS = {"redis": "redis", "rediss": "redis", "unix": "redis", "postgresql": "psycopg", "postgres": "psycopg"}

HIDDEN = "..."  # replaces a URL in which the password cannot be told from the rest

logger = logging.getLogger(__name__)


def open_store(url: str, config: StoreConfig | None = None, *, namespace: str = "default") -> EventStore:
    """Open an event store, and create it if it is new.

    A server that does not answer is no error here: its store raises `StoreUnavailable` until it does. `check` tells.

    Args:
        url: `sqlite:///relative/file`, `sqlite:////absolute/file` or `sqlite:///:memory:` (the name of the file is
            read as it is, without escapes); `redis://`, `rediss://` or `unix://`; `postgresql://`.
        config: Settings of the store.
        namespace: Name of the tenant. Stores of different namespaces share a file or server and see nothing of each
            other. Lower-case letters, digits and underscores, a letter first, 40 characters at most.

    Raises:
        UserError: The URL, the namespace or the file is wrong, or the driver is not installed.

    """
    config = config or StoreConfig()
    if not NAMESPACE.fullmatch(namespace):
        raise UserError(
            f"namespace {namespace!r}: use 1 to 40 lower-case letters, digits and underscores, and begin with a letter"
        )
    scheme = url.partition(":")[0].lower()
    if scheme == "sqlite":
        from nextitem.serving.stores.sqlite_store import SqliteStore

        if not url.startswith("sqlite:///") or not (path := url.removeprefix("sqlite:///")):
            raise UserError(f"store {url!r}: write sqlite:///FILE, with three slashes before the name of the file")
        return SqliteStore(path, config, namespace)
    place = without_secrets(url)
    if scheme not in DRIVERS:
        raise UserError(f"store {place}: unknown kind of store; write {FORMS}")
    if place.endswith(HIDDEN):
        raise UserError(
            f"store {place}: not a valid URL; write {FORMS}, and escape special characters of a password (%40 for @)"
        )
    if find_spec(DRIVERS[scheme]) is None:
        raise UserError(f"store {place}: package {DRIVERS[scheme]} is missing: pip install 'nextitem[serve]'")
    store: EventStore
    if DRIVERS[scheme] == "redis":
        from nextitem.serving.stores.redis_store import RedisStore

        store = RedisStore(url, config, namespace, place=place)
    else:
        from nextitem.serving.stores.postgres_store import PostgresStore

        store = PostgresStore(url, config, namespace, place=place)
    try:
        notes = store.check()
    except StoreUnavailable as error:
        notes = (str(error),)
    except BaseException:
        store.close()
        raise
    for note in notes:
        logger.warning("%s", note)
    return store


def without_secrets(url: str) -> str:
    """Return a URL for messages: without password and options; only its scheme if it cannot be read for certain."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        return HIDDEN if ":" in url or "@" in url else url
    try:
        parts = urlsplit(url)
        host, port, user = parts.hostname, parts.port, parts.username
    except ValueError:
        return f"{scheme}://{HIDDEN}"
    if "@" in parts.path + parts.query + parts.fragment or parts.netloc.count("@") > 1:
        return f"{scheme}://{HIDDEN}"  # a password with a special character ends up in these parts
    place = f"{user}@" if user else ""
    place += (f"[{host}]" if ":" in host else host) if host else ""
    return f"{scheme}://{place}{f':{port}' if port else ''}{parts.path}"
