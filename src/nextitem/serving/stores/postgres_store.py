"""Event store in a PostgreSQL database, for several servers at once."""

from __future__ import annotations

import re
import selectors
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.abc import PQGen

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

T = TypeVar("T")
COLUMNS = sql.SQL("event_id, user_id, item_id, action, timestamp_ms, request_id")
MARK = "nextitem events, version "  # comment of the table
LOCK_CLASS = 0x6E786974  # first half of the number of our advisory locks
PRUNE_STEP = 20_000  # positions of one statement
MAINTENANCE_TIMEOUT = 600.0  # seconds that VACUUM of a large table may last
# A host that disappears during a long statement is noticed within seconds. A URL may have other values.
KEEP_ALIVE = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}


class DeadlineConnection(psycopg.Connection[tuple[Any, ...]]):
    """Connection that is closed if the server does not answer in time, for example because its disk hangs."""

    seconds = 2.0  # until the answer of one statement

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Run a step of the protocol; wait no longer than `seconds`."""
        try:
            return super().wait(gen, interval, self.seconds if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:  # it still waits for the answer
                self.pgconn.finish()
            raise


class PostgresStore(EventStore):
    """Event store in a PostgreSQL database; each namespace is one table.

    Appending takes a lock of the namespace until its transaction has ended. So positions are in order of commit, and
    a reader of `events_after` never sees a position before all smaller ones are visible or belong to no event.

    Args:
        url: URL as libpq reads it.
        config: Settings of the store.
        namespace: Checked name of the tenant.
        place: URL without secrets, for messages.

    """

    def __init__(self, url: str, config: StoreConfig, namespace: str, *, place: str) -> None:
        super().__init__(config, place)
        try:
            self._parameters: dict[str, Any] = {**KEEP_ALIVE, **psycopg.conninfo.conninfo_to_dict(url)}
        except psycopg.Error:  # its message may contain the password
            raise UserError(f"store {place}: not a valid URL; write postgresql://USER@HOST:PORT/DATABASE") from None
        self._parameters |= {"connect_timeout": max(1, round(config.timeout)), "application_name": "nextitem"}
        self._table_name = f"nextitem_{namespace}_events"
        self._lock_key = (LOCK_CLASS, zlib.crc32(namespace.encode()) - 2**31)
        names = {
            "table": sql.Identifier(self._table_name),
            "index": sql.Identifier(f"nextitem_{namespace}_by_user"),
            "columns": COLUMNS,
        }
        self._names = names
        self._insert = sql.SQL(
            "INSERT INTO {table} ({columns}) SELECT {columns} FROM unnest(%s::text[], %s::text[], %s::text[], "
            "%s::text[], %s::bigint[], %s::text[]) WITH ORDINALITY AS new ({columns}, place) ORDER BY place "
            "ON CONFLICT DO NOTHING"
        ).format(**names)
        self._select_histories = sql.SQL(
            "SELECT place, {columns} FROM unnest(%s::text[]) WITH ORDINALITY AS users (wanted_id, place) CROSS JOIN "
            "LATERAL (SELECT position, {columns} FROM {table} WHERE user_id = wanted_id "
            "ORDER BY timestamp_ms DESC, position DESC LIMIT %s) AS history ORDER BY place, timestamp_ms, position"
        ).format(**names)
        self._select_after = sql.SQL(
            "SELECT position, {columns} FROM {table} WHERE position > %s ORDER BY position LIMIT %s"
        ).format(**names)
        self._is_open = True
        self._is_prepared = False
        self._pool = Pool(self._connect, DeadlineConnection.close, _is_alive)

    def _check(self) -> tuple[str, ...]:
        self._is_prepared = False
        with self._connection() as connection:
            names = ("fsync", "full_page_writes")
            off = [name for name in names if connection.execute(f"SHOW {name}").fetchone() == ("off",)]
        return tuple(f"{self.place}: the server may lose events in a crash; set {name} = on" for name in off)

    def _close(self) -> None:
        self._is_open = False
        self._pool.clear()

    def _append(self, events: Sequence[StoredEvent]) -> int:
        columns = [list(column) for column in zip(*events, strict=True)]
        with self._connection() as connection:
            with connection.pipeline(), connection.transaction():  # one round trip: the lock never waits for a client
                connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", self._lock_key)
                cursor = connection.execute(self._insert, columns)
            return cursor.rowcount

    def _histories(self, user_ids: Sequence[str], limit: int) -> list[list[StoredEvent]]:
        histories: list[list[StoredEvent]] = [[] for _ in user_ids]
        with self._connection() as connection:
            for place, *fields in connection.execute(self._select_histories, (list(user_ids), limit)):
                histories[place - 1].append(StoredEvent._make(fields))
        return histories

    def _events_after(self, cursor: int, limit: int) -> EventPage:
        with self._connection() as connection:
            rows = connection.execute(self._select_after, (min(cursor, 2**63 - 1), limit)).fetchall()
        return EventPage([StoredEvent(*row[1:]) for row in rows], rows[-1][0] if rows else cursor)

    def _delete_user(self, user_id: str) -> int:
        with self._connection() as connection:
            connection.seconds = MAINTENANCE_TIMEOUT
            num_events = connection.execute(self._sql("DELETE FROM {table} WHERE user_id = %s"), (user_id,)).rowcount
            # Without the option, PostgreSQL leaves few removed rows in the indexes. Always, as the vacuum of an earlier
            # call may have been interrupted; it is quick if nothing was removed.
            connection.execute(self._sql("VACUUM (INDEX_CLEANUP ON) {table}"))
            connection.seconds = self.config.timeout
        return num_events

    def _prune(self, before_ms: int) -> int:
        num_events = 0
        with self._connection() as connection:
            connection.seconds = MAINTENANCE_TIMEOUT
            ends = connection.execute(self._sql("SELECT min(position), max(position) FROM {table}")).fetchone()
            first, last = ends or (None, None)
            statement = self._sql("DELETE FROM {table} WHERE position BETWEEN %s AND %s AND timestamp_ms < %s")
            for start in range(first or 0, (last or 0) + 1, PRUNE_STEP):
                num_events += connection.execute(statement, (start, start + PRUNE_STEP - 1, before_ms)).rowcount
            connection.seconds = self.config.timeout
        return num_events

    def _sql(self, text: Any) -> sql.Composed:
        """Return a statement with the quoted names of the namespace in the place of {table}, {index}, {columns}."""
        return sql.SQL(text).format(**self._names)

    def _connect(self) -> DeadlineConnection:
        connection: DeadlineConnection = DeadlineConnection.connect(**self._parameters, autocommit=True)
        connection.seconds = self.config.timeout + 0.5  # after lock_timeout, which has the better message
        connection.execute(
            # A commit that returns is on disk; a stricter setting, such as remote_apply, stays.
            "SELECT set_config('lock_timeout', %s, false), set_config('client_encoding', 'UTF8', false), "
            "set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
            "ELSE current_setting('synchronous_commit') END, false)",
            (f"{round(self.config.timeout * 1000)}ms",),
        )
        return connection

    def _prepare(self, connection: DeadlineConnection) -> None:
        """Create the table of the namespace; refuse one that another program or a newer version made."""
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", self._lock_key)
            row = connection.execute(
                "SELECT current_setting('server_encoding'), to_regclass(%s) IS NOT NULL, "
                "obj_description(to_regclass(%s), 'pg_class')",
                (self._table_name, self._table_name),
            ).fetchone()
            encoding, has_table, comment = row or ("", False, None)
            if encoding != "UTF8":
                raise UserError(f"{self.place}: the database has encoding {encoding}; create one with encoding UTF8")
            if not has_table:
                self._create(connection)
                return
        version = re.fullmatch(rf"{MARK}(\d+)", comment or "")
        if version is None:
            raise UserError(
                f"{self.place}: table {self._table_name} is not of nextitem; use another database or namespace"
            )
        check_version(int(version[1]), self.place)

    def _create(self, connection: DeadlineConnection) -> None:
        try:
            connection.execute(
                self._sql(
                    "CREATE TABLE {table} (position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
                    "event_id text NOT NULL UNIQUE, user_id text NOT NULL, item_id text NOT NULL, action text, "
                    "timestamp_ms bigint NOT NULL, request_id text)"
                )
            )
        except psycopg.errors.InsufficientPrivilege:
            raise UserError(f"{self.place}: the account may not create tables; grant it CREATE on the schema") from None
        connection.execute(self._sql("CREATE INDEX {index} ON {table} (user_id, timestamp_ms, position)"))
        for column in ("event_id", "user_id", "item_id", "request_id"):
            # Statistics would copy frequent ids into the system catalogue, where they outlive the removal of a user.
            column_name = sql.Identifier(column)
            statement = sql.SQL("ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0")
            connection.execute(statement.format(table=self._names["table"], column=column_name))
        comment = sql.SQL("COMMENT ON TABLE {table} IS {comment}")
        connection.execute(comment.format(table=self._names["table"], comment=sql.Literal(f"{MARK}{SCHEMA_VERSION}")))

    @contextmanager
    def _connection(self) -> Iterator[DeadlineConnection]:
        """Lend a connection; turn errors of the driver into `StoreUnavailable`."""
        if not self._is_open:
            raise StoreUnavailable(f"{self.place}: the store is closed")
        try:
            with self._pool.connection() as connection:
                if not self._is_prepared:
                    self._prepare(connection)
                    self._is_prepared = True
                yield connection
        except psycopg.Error as error:
            self._pool.clear()
            # The next call looks for the table again: the server that comes back may be another one.
            self._is_prepared = False
            reason = " ".join(str(error).split())
            raise StoreUnavailable(f"{self.place}: {reason}") from error


def _is_alive(connection: DeadlineConnection) -> bool:
    """Return whether an idle connection is open; a server that stops sends something before it closes."""
    if connection.closed or connection.broken:
        return False
    with selectors.DefaultSelector() as selector:
        selector.register(connection.pgconn.socket, selectors.EVENT_READ)
        return not selector.select(0)
