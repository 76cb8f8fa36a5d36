"""URLs of stores: what is refused, with which way out, and no password in any message."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nextitem.core.errors import UserError
from nextitem.serving.stores import open_store
from nextitem.serving.stores.urls import without_secrets


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///", "three slashes"),
        ("sqlite://events.db", "three slashes"),
        (
            "events.db",
            "store events.db: unknown kind of store; write sqlite:///FILE, redis://HOST:PORT/DB or postgresql://",
        ),
        ("", "unknown kind"),
        ("mysql://ada:secret@host/db", "store mysql://ada@host/db: unknown kind"),
        ("redis://:secret@host:port/0", r"store redis://\.\.\.: not a valid URL"),
        ("redis://:secret@host:6379/first?socket_timeout=never", "not a valid URL"),
        ("postgresql://ada:sec/secret@host/db", r"store postgresql://\.\.\.: not a valid URL.*%40 for @"),
        ("postgresql://ada:secret@host/db?unknown=1", "store postgresql://ada@host/db: not a valid URL"),
    ],
)
def test_a_wrong_url_is_an_error_of_the_user(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        open_store(url)
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize("namespace", ["", "A", "a-b", "a;b", 'a"b', "1a", "a" * 41, "a\n", "ä"])
def test_a_wrong_namespace_is_an_error_of_the_user(namespace: str) -> None:
    with pytest.raises(UserError, match="namespace"):
        open_store("sqlite:///:memory:", namespace=namespace)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://localhost", "redis://localhost"),
        ("redis://:secret@localhost:6379/2?password=secret", "redis://localhost:6379/2"),
        ("rediss://ada:secret@[::1]:6379/2", "rediss://ada@[::1]:6379/2"),
        ("unix:///run/redis.sock?db=1&password=secret", "unix:///run/redis.sock"),
        ("postgresql://ada:secret@db.example:5432/shop?sslmode=require", "postgresql://ada@db.example:5432/shop"),
        ("postgresql://ada:se@secret@host/shop", "postgresql://..."),
        ("postgresql://ada:12/secret@host/shop", "postgresql://..."),
        ("postgresql://ada:se#secret@host/shop", "postgresql://..."),
        ("postgresql://ada:se?secret@host/shop", "postgresql://..."),
        ("postgresql:///shop?user=ada&password=secret", "postgresql:///shop"),
        ("events.db", "events.db"),
        ("ada:secret@host", "..."),
    ],
)
def test_messages_have_no_password(url: str, place: str) -> None:
    assert without_secrets(url) == place


@pytest.mark.parametrize(("url", "package"), [("redis://host", "redis"), ("postgresql://host/db", "psycopg")])
def test_a_missing_driver_is_told_with_the_way_to_install_it(
    url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextitem.serving.stores.urls.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"package {package} is missing: pip install 'nextitem\[serve\]'"):
        open_store(url)


def test_the_drivers_are_loaded_only_when_they_are_needed() -> None:
    code = (
        "import sys, nextitem, nextitem.cli.main, nextitem.serving.stores as stores\n"
        "stores.open_store('sqlite:///:memory:').close()\n"
        "print([name for name in ('redis', 'psycopg', 'fastapi', 'torch') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
