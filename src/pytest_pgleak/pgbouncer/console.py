"""PgBouncer's admin console, read through a connection of the plugin's own.

It knows the simple query protocol only (PgBouncer, usage.md, "Admin console"), and no statement but its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.answers import results_of
from pytest_pgleak.pgbouncer.rows import Console, Row, read
from pytest_pgleak.servers import conninfo, libpq
from pytest_pgleak.servers.values import ServerError

if TYPE_CHECKING:
    from pytest_pgleak.descriptors import Places

DATABASE: Final = "pgbouncer"
"""Its name as a database."""

_LOGIN: Final = f"Name a user of its stats_users or admin_users: host=… port=6432 user=… password=… dbname={DATABASE}"


class ConsoleError(Exception):
    """The console cannot be read; the message says why and what to do, without a password."""


class AdminConsole:
    """A connection to the console; opened when first needed, opened again when PgBouncer was started anew.

    Args:
        dsn: Where it is, as libpq conninfo or URI; its database may be left out.
        places: Keep it a place among the file descriptors.
    """

    def __init__(self, dsn: str, places: Places) -> None:
        self._dsn = dsn
        self._places = places
        self._connection: Any = None
        self._process = os.getpid()
        self.version = ""
        """As ``1.18.0``; empty as long as it is not connected."""

    def look(self, *, links_only: bool = False) -> Console:
        """Read who is there.

        Args:
            links_only: Whether clients and server connections are enough.

        Raises:
            ConsoleError: It cannot be read.
        """
        wanted = ("clients", "servers") if links_only else ("clients", "servers", "pools", "databases")
        return read({what: self._show(what) for what in wanted})

    def connect(self) -> None:
        """Connect, unless it is connected.

        Raises:
            ConsoleError: It cannot be reached, does not let this user in, or is no console.
        """
        if self._process != os.getpid():
            # A forked child must not speak on its parent's socket.
            self._connection, self._process = None, os.getpid()
        if self._connection is None:
            with self._places.vacated():
                self._connection = self._open()

    def close(self) -> None:
        """Close the connection; `connect` would open it again."""
        if self._connection is not None and self._process == os.getpid():
            self._connection.finish()
            self._places.returned()
        self._connection = None

    def _open(self) -> Any:
        try:
            given = conninfo.parse(self._dsn).get("dbname", DATABASE)
            if given != DATABASE:
                raise ConsoleError(f"database {given!r} is not its console.\n  {_LOGIN}")
            connection = libpq.connect(libpq.with_timeout(conninfo.with_default(self._dsn, "dbname", DATABASE)))
        except ValueError as error:
            raise ConsoleError(f"the connection string is malformed: {error}.\n  {_LOGIN}") from None
        except ServerError as error:
            raise ConsoleError(str(error)) from None
        if connection.status != libpq.pq().ConnStatus.OK:
            reason = libpq.reason(connection, self._dsn)
            connection.finish()
            raise ConsoleError(f"it cannot be reached: {reason}\n  {_LOGIN}")
        told = (connection.parameter_status(b"server_version") or b"").decode(errors="replace")
        if not told.endswith("/bouncer"):
            connection.finish()
            raise ConsoleError(f"what answers is not PgBouncer, but a server of version {told or '?'}.\n  {_LOGIN}")
        self.version = told.removesuffix("/bouncer")
        return connection

    def _show(self, what: str) -> tuple[Row, ...]:
        from psycopg import Error

        statement = f"SHOW {what.upper()}"
        for is_last in (False, True):
            self.connect()
            try:
                results = results_of(self._connection, statement.encode())
            except Error:
                results = []
            if results and self._connection.status == libpq.pq().ConnStatus.OK:
                return self._rows(results[0])
            # It was started anew, or has thrown everybody out: the second attempt has a new socket.
            self.close()
            if is_last:
                break
        raise ConsoleError(f"it does not answer {statement}.\n  Is PgBouncer still running?")

    def _rows(self, result: Any) -> tuple[Row, ...]:
        if result.status != libpq.pq().ExecStatus.TUPLES_OK:
            message = result.error_message.decode(errors="replace").strip()
            raise ConsoleError(f"it refuses to be read: {message}\n  {_LOGIN}")
        names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
        return tuple(
            {name: _text(result.get_value(row, column)) for column, name in enumerate(names)}
            for row in range(result.ntuples)
        )


def _text(value: bytes | None) -> str | None:
    return None if value is None else bytes(value).decode(errors="replace")
