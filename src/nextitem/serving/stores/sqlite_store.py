"""Event store in one SQLite file: nothing to install, one machine, several threads and processes."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nextitem.core.errors import UserError
from nextitem.serving.stores.pool import Pool
from nextitem.serving.stores.store import (
    SCHEMA_VERSION,
    EventPage,
    EventStore,
    StoreConfig,
    StoredEvent,
    StoreUnavailable,
    check_version,
)

APPLICATION_ID = 0x6E786974  # "nxit" in the header of the file, where `file` and SQLite look for it
COLUMNS = "event_id, user_id, item_id, action, timestamp_ms, request_id"
PRUNE_STEP = 20_000  # positions of one transaction, so that writers wait for milliseconds only
MEMORY = ":memory:"


class SqliteStore(EventStore):
    """Event store in an SQLite file with a write-ahead log.

    One connection writes, under a lock; reading connections are pooled and wait for nobody. Another process waits
    for the file's own lock. Each namespace is one table. A position is never used twice (AUTOINCREMENT), and as one
    transaction writes at a time, positions are in order of commit.

    Args:
        path: File, or ":memory:" for a store that ends with the process.
        config: Settings of the store.
        namespace: Checked name of the tenant.

    """

    def __init__(self, path: str, config: StoreConfig, namespace: str) -> None:
        super().__init__(config, f"sqlite:///{path}")
        self._path = path
        self._lock = threading.Lock()
        self._table = f'"nextitem_{namespace}_events"'  # the namespace has letters, digits and underscores only
        self._index = f'"nextitem_{namespace}_by_user"'
        if path != MEMORY and not Path(path).absolute().parent.is_dir():
            raise UserError(f"{self.place}: folder {Path(path).absolute().parent} does not exist; create it first")
        self._writer: sqlite3.Connection | None = None
        self._readers = Pool(lambda: self._connect("ro"), sqlite3.Connection.close)
        try:
            self._writer = self._connect("rwc")
            self._prepare(self._writer)
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.OperationalError):
                raise UserError(f"{self.place}: the file cannot be opened for writing ({error})") from error
            if isinstance(error, sqlite3.DatabaseError):
                raise UserError(
                    f"{self.place}: damaged or no SQLite database ({error}); restore it or name another file"
                ) from error
            raise

    def _check(self) -> tuple[str, ...]:
        with self._reading() as connection:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        return (f"{self.place}: events are kept in memory and end with the process",) if self._path == MEMORY else ()

    def _close(self) -> None:
        with self._lock:
            self._readers.clear()
            if self._writer is not None:
                self._writer.close()
            self._writer = None

    def _append(self, events: Sequence[StoredEvent]) -> int:
        with self._writing() as connection:
            statement = f"INSERT INTO {self._table} ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
            return connection.executemany(statement, events).rowcount

    def _histories(self, user_ids: Sequence[str], limit: int) -> list[list[StoredEvent]]:
        statement = (
            f"SELECT {COLUMNS} FROM {self._table} WHERE user_id = ? ORDER BY timestamp_ms DESC, position DESC LIMIT ?"
        )
        with self._reading() as connection:
            rows = [connection.execute(statement, (user, limit)).fetchall() for user in user_ids]
        return [[StoredEvent._make(row) for row in reversed(of_user)] for of_user in rows]

    def _events_after(self, cursor: int, limit: int) -> EventPage:
        statement = f"SELECT position, {COLUMNS} FROM {self._table} WHERE position > ? ORDER BY position LIMIT ?"
        with self._reading() as connection:
            rows = connection.execute(statement, (min(cursor, 2**63 - 1), limit)).fetchall()
        return EventPage([StoredEvent(*row[1:]) for row in rows], rows[-1][0] if rows else cursor)

    def _delete_user(self, user_id: str) -> int:
        with self._writing() as connection:
            num_events = connection.execute(f"DELETE FROM {self._table} WHERE user_id = ?", (user_id,)).rowcount
            if num_events:  # part of the same transaction: a removal that is interrupted after it is completed later
                connection.execute("INSERT INTO nextitem_unfinished_removals VALUES (1)")
        with self._writer_connection() as connection:
            self._finish_removals(connection)
        return num_events

    def _prune(self, before_ms: int) -> int:
        with self._reading() as connection:
            first, last = connection.execute(f"SELECT min(position), max(position) FROM {self._table}").fetchone()
        num_events = 0
        statement = f"DELETE FROM {self._table} WHERE position BETWEEN ? AND ? AND timestamp_ms < ?"
        for start in range(first or 0, (last or 0) + 1, PRUNE_STEP):
            with self._writing() as connection:
                num_events += connection.execute(statement, (start, start + PRUNE_STEP - 1, before_ms)).rowcount
        return num_events

    def _finish_removals(self, connection: sqlite3.Connection) -> None:
        """Rewrite the file without the bytes of removed events, if a removal has not done so.

        `secure_delete` overwrites what is removed, but not the copies that remain in pages whose rows were moved when
        a page was split. VACUUM writes all pages anew; the write-ahead log is emptied after it.
        """
        num_removals = "SELECT count(*) FROM nextitem_unfinished_removals"
        if not connection.execute(num_removals).fetchone()[0]:
            return
        connection.execute("VACUUM")
        is_blocked, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_blocked:
            raise StoreUnavailable(
                f"{self.place}: the events are removed, but a reader delays the clearing of the log; repeat the call"
            )
        connection.execute("DELETE FROM nextitem_unfinished_removals")

    def _connect(self, mode: str) -> sqlite3.Connection:
        """Open a connection; "rwc" creates the file, "ro" only reads."""
        is_memory = self._path == MEMORY
        # A reading connection is opened for writing, as SQLite needs it for the shared memory of the log.
        name = (
            MEMORY if is_memory else f"{Path(self._path).absolute().as_uri()}?mode={'rwc' if mode == 'rwc' else 'rw'}"
        )
        connection = sqlite3.connect(
            name, timeout=self.config.timeout, isolation_level=None, check_same_thread=False, uri=not is_memory
        )
        try:
            if mode == "ro":
                connection.execute("PRAGMA query_only = ON")
            else:
                connection.execute("PRAGMA synchronous = FULL")  # a commit is synced to disk before it returns
                connection.execute("PRAGMA secure_delete = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Create the tables of the namespace; refuse a file that another program or a newer version wrote."""
        connection.execute("BEGIN")  # one state of the file: another process may be creating the tables
        try:
            self._refuse_foreign(connection)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if self._path != MEMORY and self._switch_to_log(connection) != "wal":
            raise UserError(f"{self.place}: the file system allows no write-ahead log; use a local disk")
        with self._transaction(connection):
            self._refuse_foreign(connection)
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {self._table} (position INTEGER PRIMARY KEY AUTOINCREMENT, "
                "event_id TEXT NOT NULL UNIQUE, user_id TEXT NOT NULL, item_id TEXT NOT NULL, action TEXT, "
                "timestamp_ms INTEGER NOT NULL, request_id TEXT)"
            )
            connection.execute(
                f"CREATE INDEX IF NOT EXISTS {self._index} ON {self._table} (user_id, timestamp_ms, position)"
            )
            connection.execute("CREATE TABLE IF NOT EXISTS nextitem_unfinished_removals (mark INTEGER)")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._finish_removals(connection)

    def _refuse_foreign(self, connection: sqlite3.Connection) -> None:
        """Raise a `UserError` if the file is no event store of a version that can be read."""
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        num_objects = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if application != APPLICATION_ID and (application or num_objects):
            raise UserError(f"{self.place}: the file is no event store of nextitem; name another file")
        if application == APPLICATION_ID:
            check_version(connection.execute("PRAGMA user_version").fetchone()[0], self.place)

    def _switch_to_log(self, connection: sqlite3.Connection) -> str:
        """Turn on the write-ahead log and return the mode that is on; wait for other processes that do the same."""
        deadline = time.monotonic() + self.config.timeout
        while True:
            try:
                mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                return mode
            except sqlite3.OperationalError:  # SQLite does not wait by itself here
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Run a block as one transaction that may write."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Lend the writing connection, within a transaction."""
        with self._writer_connection() as connection, self._transaction(connection):
            yield connection

    @contextmanager
    def _writer_connection(self) -> Iterator[sqlite3.Connection]:
        """Lend the writing connection to one thread at a time."""
        if not self._lock.acquire(timeout=self.config.timeout):
            raise StoreUnavailable(f"{self.place}: another thread writes for more than {self.config.timeout:g} seconds")
        try:
            if self._writer is None:
                raise StoreUnavailable(f"{self.place}: the store is closed")
            with self._translated():
                yield self._writer
        finally:
            self._lock.release()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a reading connection, within a transaction: its statements see the same state of the store."""
        if self._path == MEMORY:
            with self._writer_connection() as connection:
                yield connection
            return
        if self._writer is None:
            raise StoreUnavailable(f"{self.place}: the store is closed")
        with self._translated(), self._readers.connection() as connection:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of SQLite into `StoreUnavailable`."""
        try:
            yield
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self.place}: {error}") from error
