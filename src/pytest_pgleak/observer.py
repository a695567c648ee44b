"""The plugin's own connection to a server: reads ``pg_stat_activity`` and never disturbs.

It speaks through ``psycopg.pq``, libpq itself: nothing of it passes through the classes that are watched, and one
prepared query costs 11 µs instead of 16. It runs outside of transactions (inside one the view is a frozen copy:
PostgreSQL manual, section 27.2.2) and in the maintenance database, for suites drop the database under test and
terminate every backend in it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_pgleak.activity import Backend
from pytest_pgleak.connecting import (
    ObserverError,
    UnreachableError,
    keep_away_if_crowded,
    open_first,
    open_when_there_is_room,
)
from pytest_pgleak.descriptors import Places
from pytest_pgleak.observer_statements import STATEMENTS, Rows, array, backends_of, has_transaction_ids, rows_of

__all__ = ["Identity", "Observer", "ObserverError"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the observer is on its server.

    Attributes:
        user: Its role.
        sees_all: Whether the role may read other roles' rows (superuser, or member of ``pg_read_all_stats``).
        client_addr: Its own address as the server sees it; None over a Unix socket.
        pid: Its backend.
        server_start: Since when the server has been running, as its text.
        max_connections: How many connections it takes.
    """

    user: str
    sees_all: bool
    client_addr: str | None
    pid: int
    server_start: str = ""
    max_connections: int = 0


class _Lock:
    """A lock that knows its thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None

    @property
    def held_here(self) -> bool:
        """Whether this very thread holds it: its finalizers run in the middle of a query."""
        return self._thread == threading.get_ident()

    def acquire(self, blocking: bool = True) -> bool:
        if not self._lock.acquire(blocking):
            return False
        self._thread = threading.get_ident()
        return True

    def release(self) -> None:
        self._thread = None
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Observer:
    """One prepared connection to one server; opened when first needed, opened again when it was killed.

    Args:
        conninfos: Conninfo strings to try in this order, the maintenance database first.
        places: Keep it a place among the file descriptors.
        is_guest: Whether it uses what is the application's: then it keeps away where there is no room.
    """

    def __init__(self, conninfos: Sequence[str], places: Places | None = None, is_guest: bool = False) -> None:
        # Now, for a test may put a mock into `sys.modules` later on.
        from psycopg import conninfo, pq

        self._pq, self._make_conninfo = pq, conninfo.make_conninfo
        self._conninfos = tuple(conninfos)
        self._places = places or Places()
        self._is_guest = is_guest
        self.failure: ObserverError | None = None
        """Why it could not connect when it tried last."""
        self._connection: Any = None
        self._prepared: set[str] = set()
        self._process = os.getpid()
        # The garbage collector may run a finalizer, and with it `row_now`, in the middle of one of our own queries.
        self._lock = _Lock()
        self.identity: Identity | None = None

    def connect(self) -> Identity:
        """Connect, unless it is connected.

        Raises:
            ObserverError: The server cannot be reached, or does not let this role look.
        """
        with self._lock:
            self._connected()
        assert self.identity is not None
        return self.identity

    @property
    def server(self) -> tuple[str, str]:
        """Host and port it is connected to, as libpq says them.

        Raises:
            ObserverError: As `connect`.
        """
        with self._lock:
            connection = self._connected()
            return connection.host.decode(errors="replace"), connection.port.decode(errors="replace")

    def make_way(self) -> bool:
        """Close the connection where the server is shutting down: it may wait until all of its clients have gone.

        Returns:
            Whether it was closed.
        """
        with self._lock:
            if self._connection is None:
                return False
            try:
                open_first(self._conninfos, self._pq).finish()
            except UnreachableError as error:
                if "shutting down" in str(error):
                    self._drop_connection()
                    return True
            except ObserverError:
                pass  # a pooler, since when?
        return False

    def backends(self, pids: Iterable[int]) -> tuple[Backend, ...]:
        """Read the rows of some backends, with their locks.

        Raises:
            ObserverError: As `connect`.
        """
        wanted = sorted(set(pids))
        if not wanted:
            return ()
        with self._lock:
            return backends_of(self._query("pgleak_by_pid", array(wanted)))

    def present(self, databases: Iterable[str]) -> tuple[frozenset[tuple[int, str | None]], bool]:
        """Return who is in some databases and comes from this machine, beside the observer.

        Args:
            databases: Their names.

        Returns:
            The identity of each: its pid, and since when it is there; and whether there are transaction ids, as `count`
            says it.

        Raises:
            ObserverError: As `connect`.
        """
        with self._lock:
            ((listed, snapshot, age),) = self._query("pgleak_present", array(databases))
        pairs = (each.partition(" ") for each in (listed or "").split(",") if each)
        present = frozenset((int(pid), backend_start or None) for pid, _, backend_start in pairs)
        return present, has_transaction_ids(snapshot, age)

    def younger(self, pids: Iterable[int], seconds: float) -> frozenset[int]:
        """Return those of some backends that have begun less than so many seconds ago.

        Raises:
            ObserverError: As `connect`.
        """
        with self._lock:
            rows = self._query("pgleak_younger", array(pids), str(seconds).encode())
        return frozenset(int(pid or 0) for (pid,) in rows)

    def count(self, databases: Iterable[str]) -> tuple[int, bool]:
        """Count the backends of some databases: the quick look, 2 µs over a bare round trip.

        Returns:
            Their number; and whether some transaction of the server that has not ended has a transaction id.

        Raises:
            ObserverError: As `connect`.
        """
        with self._lock:
            ((number, snapshot, age),) = self._query("pgleak_number", array(databases))
        return int(number or 0), has_transaction_ids(snapshot, age)

    def terminate(self, pids: Iterable[int]) -> None:
        """End some backends.

        Raises:
            ObserverError: As `connect`, or the role may not.
        """
        with self._lock:
            self._query("pgleak_terminate", array(pids))

    def row_now(self, pid: int, wait: bool = False) -> Backend | None:
        """Read what the transaction of one backend has written. Never raises.

        Args:
            pid: The backend.
            wait: Whether to wait for another thread that uses this observer; a finalizer must not, for it may run in
                the middle of one of this very thread's queries.
        """
        return self._now("pgleak_writes", str(pid).encode(), wait)

    def backend_now(self, pid: int, wait: bool = False) -> Backend | None:
        """Read the row of one backend. Never raises; arguments as for `row_now`."""
        return self._now("pgleak_by_pid", array([pid]), wait)

    def _now(self, name: str, parameter: bytes, wait: bool) -> Backend | None:
        if self._lock.held_here or not self._lock.acquire(blocking=wait):
            return None
        try:
            rows = backends_of(self._query(name, parameter))
        except Exception:  # noqa: BLE001 - an exception inside the user's __del__ would be printed as theirs
            return None
        finally:
            self._lock.release()
        return rows[0] if rows else None

    def ask(self, name: str, *parameters: Iterable[object]) -> Rows:
        """Run one of the statements of `pytest_pgleak.hangs.lock_queries`.

        Args:
            name: Its name.
            parameters: Texts as they are, anything else as an array.

        Raises:
            ObserverError: As `connect`.
        """
        values = [value.encode() if isinstance(value, str) else array(value) for value in parameters]
        with self._lock:
            return self._query(name, *values)

    def visit(self, dbname: str, statement: str, *parameters: str) -> Rows:
        """Run one statement on a connection of its own into a database, for what can be known only there.

        Args:
            dbname: The database.
            statement: SQL with ``$1``, ``$2``, ….
            parameters: Their values, as text.

        Raises:
            ObserverError: The database cannot be reached, or refuses the statement.
        """
        status = self._pq.ExecStatus
        connection = open_first([self._make_conninfo(self._conninfos[-1], dbname=dbname)], self._pq)
        try:
            result = connection.exec_params(statement.encode(), [value.encode() for value in parameters] or None)
            if result.status not in (status.TUPLES_OK, status.COMMAND_OK):
                raise ObserverError(result.error_message.decode(errors="replace").strip())
            return rows_of(result)
        finally:
            connection.finish()

    def close(self) -> None:
        """Close the connection; `connect` would open it again."""
        with self._lock:
            if self._process == os.getpid():
                self._drop_connection()

    def _query(self, name: str, *parameters: bytes) -> Rows:
        for attempt in (1, 2):
            connection = self._connected()
            result = self._execute(connection, name, parameters)
            if result is not None:
                return rows_of(result)
            # Killed by a suite that terminates every backend, or by a restart: the second attempt has a new socket.
            self._drop_connection()
            if attempt == 2:
                break
        raise ObserverError("the server closed pgleak's own connection twice in a row")

    def _execute(self, connection: Any, name: str, parameters: Sequence[bytes]) -> Any:
        status = self._pq.ExecStatus
        if name not in self._prepared:
            prepared = connection.prepare(name.encode(), STATEMENTS[name].encode())
            if prepared.status != status.COMMAND_OK:
                return self._explain(connection, prepared)
            self._prepared.add(name)
        result = connection.exec_prepared(name.encode(), list(parameters))
        return result if result.status == status.TUPLES_OK else self._explain(connection, result)

    def _explain(self, connection: Any, result: Any) -> None:
        if connection.status == self._pq.ConnStatus.BAD:
            return
        message = result.error_message.decode(errors="replace").strip()
        user = self.identity.user if self.identity else connection.user.decode(errors="replace")
        raise ObserverError(_refused(user, message))

    def _connected(self) -> Any:
        if self._process != os.getpid():
            # A forked child must not speak on its parent's socket.
            self._connection, self._process = None, os.getpid()
            self._prepared.clear()
        if self._connection is None:
            self.failure = None
            try:
                with self._places.vacated():
                    self._connect()
            except ObserverError as error:
                self.failure = error
                raise
        return self._connection

    def _connect(self) -> None:
        connection = self._open_as_guest() if self._is_guest else open_first(self._conninfos, self._pq)
        # What the role's own settings put first must not stand before the system's views.
        connection.exec_(b"set search_path = pg_catalog")
        try:
            result = self._execute(connection, "pgleak_who", ())
            if result is None:
                raise ObserverError("the server closed pgleak's own connection at once")
            user, sees_all, address, pid, server_start, most, is_shown = rows_of(result)[0]
            if is_shown != "t":
                raise ObserverError("its pg_stat_activity shows no connections, as that of PGlite")
        except ObserverError:
            connection.finish()
            self._prepared.clear()
            raise
        self._connection = connection
        self.identity = Identity(
            user or "", sees_all == "t", address, int(pid or 0), server_start or "", int(most or 0)
        )

    def _open_as_guest(self) -> Any:
        maintenance, *others = self._conninfos
        try:
            connection = open_when_there_is_room(maintenance, self._pq)
        except UnreachableError as error:
            trouble = str(error)
        else:
            keep_away_if_crowded(connection)
            return connection
        # Only to know whether that was a pooler. Nobody stays in a database of the application: DROP DATABASE, and
        # CREATE DATABASE with it as the template, need it to be empty.
        for conninfo in others:
            open_first([conninfo], self._pq).finish()
        raise UnreachableError(
            f"pgleak cannot enter the database postgres, where it is in nobody's way: {trouble}\n"
            "  Name a role that may enter it with --pgleak-dsn (pgleak_dsn, PGLEAK_DSN)."
        )

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.finish()
            self._places.returned()
        self._connection = None
        self._prepared.clear()


def _refused(user: str, message: str) -> str:
    return (
        f"role {user!r} may not read pg_stat_activity: {message}\n"
        f"  Let it look: GRANT pg_monitor TO {user};\n"
        "  or give pgleak another role with --pgleak-dsn (pgleak_dsn, PGLEAK_DSN)."
    )
