"""How the plugin's own connection is opened: what stands in between, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pytest_pgleak.clock import Clock

_FEWEST_FREE: Final = 5
"""Connections that a server must have left for others. One that is that small belongs to the suite alone."""
_EXIT: Final = 0.02
"""Seconds: the slowest exit of a backend that had done nothing took a tenth of that."""
_EXITS: Final = 25
"""So often a server that is full is asked again: on a busy machine what a test has closed is slow to exit."""

NO_ROOM: Final = (
    "too many clients already",
    "remaining connection slots are reserved",
    "too many connections for role",
    "too many connections for database",
    "no more connections allowed",
)
"""What a refusal says where all places are taken.

While a connection is opened psycopg knows no SQLSTATE (53300 it would be), only the text; PgBouncer has its own.
"""

_ROOM: Final = b"""
    select case when rolsuper then -1 else rolconnlimit end,
        case when rolsuper then -1 else (select datconnlimit from pg_database where datname = current_database()) end,
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true), '0')::int
            - (select coalesce(sum(pg_stat_get_db_numbackends(oid)), 0) from pg_database)
    from pg_roles where rolname = session_user
"""


class ObserverError(Exception):
    """The server cannot be observed; the message says why and what to do, without a password."""


class UnreachableError(ObserverError):
    """No connection could be opened."""


class PoolerError(ObserverError):
    """What answers is a pooler.

    Args:
        server: Its host and port.
    """

    def __init__(self, server: tuple[str, str]) -> None:
        super().__init__(
            "a pooler stands in between, and its connections to PostgreSQL are not those of the tests.\n"
            "  If the server is to be asked as well, let the tests connect straight to PostgreSQL; or name PostgreSQL"
            " with --pgleak-dsn, and the console of a PgBouncer with --pgleak-pgbouncer."
        )
        self.server = server


def open_first(conninfos: Sequence[str], pq: Any) -> Any:
    """Open a connection through libpq itself.

    Args:
        conninfos: To try in this order.
        pq: ``psycopg.pq``.

    Returns:
        A ``PGconn``.

    Raises:
        UnreachableError: None of them leads to a server that lets us in.
        PoolerError: A pooler stands in between.
    """
    message = "no server to observe"
    for conninfo in conninfos:
        connection = pq.PGconn.connect(conninfo.encode())
        if connection.status == pq.ConnStatus.OK:
            connection.notice_handler = None  # notices are nobody's business here
            _refuse_poolers(connection)
            # A stuck server must not hang the suite (PostgreSQL manual, section 20.11).
            connection.exec_(b"set statement_timeout = '5s'; set client_min_messages = error; set jit = off")
            return connection
        message = connection.error_message.decode(errors="replace").strip()
        connection.finish()
    raise UnreachableError(message)


def open_when_there_is_room(conninfo: str, pq: Any) -> Any:
    """Open a connection, after a while if need be: backends that a test has closed may still be on their way out.

    Args:
        conninfo: Where to.
        pq: ``psycopg.pq``.

    Returns:
        A ``PGconn``.

    Raises:
        ObserverError: All places are taken, and stay so.
        UnreachableError: As `open_first`.
        PoolerError: As `open_first`.
    """
    for _ in range(_EXITS):
        try:
            return open_first([conninfo], pq)
        except UnreachableError as error:
            if not any(text in str(error) for text in NO_ROOM):
                raise
            refusal = error
        Clock.sleep(_EXIT)
    raise _no_room(f"the server has no connection left: {refusal}")


def keep_away_if_crowded(connection: Any) -> None:
    """Close a connection again where somebody else may need its place.

    A suite may use all connections that its role, its database or its server has; with one more it would fail.

    Args:
        connection: A ``PGconn`` that was just opened.

    Raises:
        ObserverError: There is no room.
    """
    result = connection.exec_(_ROOM)
    values = [result.get_value(0, column) for column in range(result.nfields)] if result.ntuples else []
    if len(values) != 3 or None in values:
        return
    of_role, of_database, free = (int(value) for value in values)
    if of_role >= 0:
        why = f"role {_text(connection.user)!r} may not have more than {of_role} connections"
    elif of_database >= 0:
        why = f"database {_text(connection.db)!r} does not take more than {of_database} connections"
    elif free < _FEWEST_FREE:
        why = f"the server has {max(free, 0)} connections left"
    else:
        return
    connection.finish()
    Clock.sleep(_EXIT)  # or the application's next connection would be refused
    raise _no_room(why)


def _no_room(why: str) -> ObserverError:
    return ObserverError(
        f"{why}, and pgleak's own would take one away from the tests.\n"
        "  Name a role without such a limit with --pgleak-dsn (pgleak_dsn, PGLEAK_DSN), if one is to be spared."
    )


def _refuse_poolers(connection: Any) -> None:
    """Raise where the backend that answers is not the one that has announced itself.

    A pooler hands its client a key of its own (PostgreSQL manual, section 55.2.1, BackendKeyData), and has any of its
    server connections answer. Nothing else may be asked there: a ``SET`` or a prepared statement would stay on a server
    connection that the application gets next.
    """
    result = connection.exec_(b"select pg_catalog.pg_backend_pid()")
    answer = result.get_value(0, 0) if result.ntuples else None
    if answer is None or int(answer) == connection.backend_pid:
        return
    pooler = PoolerError((_text(connection.host), _text(connection.port)))
    connection.finish()
    raise pooler


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
