"""The SQLite store: files that are refused, locks, and removal without a trace."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from support.store_places import all_events, event

from nextitem.core.errors import UserError
from nextitem.serving.stores import StoreConfig, StoredEvent, StoreUnavailable, open_store
from nextitem.serving.stores.sqlite_store import SqliteStore

QUICK = StoreConfig(timeout=0.3)


def bytes_of(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()))


@pytest.mark.parametrize("name", ["my shop.db", "магазин 漢字.db", "100%41 #?&.db", "a'b\"c.db"])
def test_the_name_of_a_file_is_read_as_it_is(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(f"sqlite:///{tmp_path}/{name}") as store:
        store.append([event("e1")])
        assert (tmp_path / name).is_file()
    monkeypatch.chdir(tmp_path)
    with open_store(f"sqlite:///{name}") as store:
        assert store.histories(["ada"], limit=1)["ada"] == [event("e1")]


def write_nothing(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)


def damage(path: Path) -> None:
    with open_store(f"sqlite:///{path}") as store:
        store.append(event(f"e{number}") for number in range(500))
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xff" * 4000 + data[4100:])


def make_foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE events (id INTEGER)")


def make_newer(path: Path) -> None:
    open_store(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (write_nothing, "damaged or no SQLite"),
        (damage, "damaged or no SQLite"),
        (make_foreign, "no event store of nextitem"),
        (make_newer, "format 99"),
        (Path.mkdir, "cannot be opened"),
    ],
)
def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(tmp_path: Path, prepare, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "events.db"
    prepare(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(UserError, match=message) as error:
        open_store(f"sqlite:///{path}")
    assert str(path) in str(error.value)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_file_that_is_damaged_while_it_is_open_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with open_store(f"sqlite:///{path}") as store:
        store.append(event(f"e{number}") for number in range(2000))
    with open_store(f"sqlite:///{path}") as store:
        data = path.read_bytes()
        path.write_bytes(data[:8192] + b"\xff" * (len(data) - 8192))
        with pytest.raises(StoreUnavailable, match=r"events\.db"):
            all_events(store)


def test_a_missing_folder_is_an_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.* does not exist"):
        open_store(f"sqlite:///{tmp_path}/nowhere/events.db")


@contextmanager
def ordinary_account() -> Iterator[None]:
    """Give up the rights of root, which may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_read_only_folder_is_an_error_of_the_user(is_new: bool) -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's folders are closed to other accounts
    try:
        if not is_new:
            open_store(f"sqlite:///{folder}/events.db").close()
        folder.chmod(0o555)
        with ordinary_account(), pytest.raises(UserError, match="cannot be opened for writing"):
            open_store(f"sqlite:///{folder}/events.db")
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_lock_of_another_program_makes_the_store_unavailable_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with open_store(f"sqlite:///{path}", QUICK) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        store.append([event("e1")])
        other.execute("BEGIN IMMEDIATE")
        for call in (lambda: store.append([event("e2")]), lambda: store.delete_user("ada"), lambda: store.prune(9)):
            start = time.monotonic()
            with pytest.raises(StoreUnavailable, match="locked"):
                call()
            assert time.monotonic() - start < 2
        assert store.histories(["ada"], limit=9)["ada"] == [event("e1")]  # readers wait for nobody
        store.check()
        other.execute("COMMIT")
        assert store.append([event("e2")]).num_new == 1


def test_many_threads_can_create_one_file(tmp_path: Path) -> None:
    stores, errors = [], []

    def create(number: int) -> None:
        try:
            stores.append(
                open_store(f"sqlite:///{tmp_path}/events.db", StoreConfig(timeout=20), namespace=f"n{number % 2}")
            )
            stores[-1].append([event(f"e{number}")])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(all_events(stores[0])) == 3
    for store in stores:
        store.close()


def fill(store: SqliteStore, num_events: int, seed: int) -> int:
    """Append events of many users in random order; one of seven is of the user that will be removed."""
    generator = random.Random(seed)
    num_secret = 0
    for _ in range(num_events // 50):
        batch = []
        for _ in range(50):
            is_secret = generator.random() < 1 / 7
            num_secret += is_secret
            start = "secret-" if is_secret else ""
            name = start + str(uuid.UUID(int=generator.getrandbits(128)))
            user = "secret-ada" if is_secret else f"user-{generator.randrange(500)}"
            batch.append(StoredEvent(name, user, f"{start}tent", "clicked", generator.randrange(10**12), name))
        store.append(batch)
    return num_secret


def test_a_removed_user_leaves_no_byte_in_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.db"
    with SqliteStore(str(path), StoreConfig(), "default") as store:
        num_secret = fill(store, 8_000, seed=2)  # secure_delete alone leaves a byte of this one (SQLite 3.40)
        assert bytes_of(tmp_path).count(b"secret") >= num_secret * 4
        monkeypatch.setattr(store, "_finish_removals", lambda connection: None)  # a process that ends in between
        assert store.delete_user("secret-ada") == num_secret
        assert store.histories(["secret-ada"], limit=9)["secret-ada"] == []
        monkeypatch.undo()
        assert b"secret" in bytes_of(tmp_path)
        assert store.delete_user("secret-ada") == 0  # completes the removal
        assert bytes_of(tmp_path).count(b"secret") == 0
        assert len(all_events(store, 10**5)) == 8_000 - num_secret


def test_a_removal_that_was_interrupted_is_completed_by_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with SqliteStore(str(path), StoreConfig(), "default") as store:
        store.append([event(f"secret-{number}", "secret") for number in range(300)])
        store._finish_removals = lambda connection: None  # type: ignore[method-assign]
        assert store.delete_user("secret") == 300
    with SqliteStore(str(path), StoreConfig(), "default"):
        assert b"secret" not in bytes_of(tmp_path)


def test_a_reader_that_delays_the_removal_of_bytes_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with (
        SqliteStore(str(path), QUICK, "default") as store,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        store.append([event("secret", "secret")])
        other.execute("BEGIN")
        other.execute("SELECT * FROM sqlite_schema").fetchall()
        with pytest.raises(StoreUnavailable, match=r"locked|repeat the call"):
            store.delete_user("secret")
        other.execute("COMMIT")
        assert store.delete_user("secret") == 0
        assert b"secret" not in bytes_of(tmp_path)


def test_histories_and_pages_read_an_index(tmp_path: Path) -> None:
    statements: list[str] = []
    with SqliteStore(str(tmp_path / "events.db"), StoreConfig(), "default") as store:
        store.append([event("e1")])
        with store._reading() as connection:
            connection.set_trace_callback(statements.append)
        store.histories(["ada"], limit=3)
        store.events_after(0, limit=3)
        with store._reading() as connection:
            connection.set_trace_callback(None)
            selects = [statement for statement in statements if statement.startswith("SELECT")]
            plans = [connection.execute(f"EXPLAIN QUERY PLAN {select}").fetchall() for select in selects]
    assert [[row[3] for row in plan] for plan in plans] == [
        ["SEARCH nextitem_default_events USING INDEX nextitem_default_by_user (user_id=?)"],
        ["SEARCH nextitem_default_events USING INTEGER PRIMARY KEY (rowid>?)"],
    ]
