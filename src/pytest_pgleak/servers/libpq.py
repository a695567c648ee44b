"""Connections through psycopg's raw libpq wrapper: they pass none of the methods that the plugin's tracking patches.

Not ``psycopg.connect``: what opens here is the plugin's own and must never count as the application's.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_pgleak.servers import conninfo
from pytest_pgleak.servers.values import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg.pq.abc import PGconn

_CONNECT_TIMEOUT = 5  # seconds, per host


def pq() -> Any:
    """``psycopg.pq``.

    Raises:
        ServerError: If psycopg finds no libpq.
    """
    try:
        from psycopg import pq as module
    except ImportError as error:
        raise ServerError(
            f"psycopg cannot be imported: {error}.\n"
            'It needs libpq: pip install "psycopg[binary]", or your system\'s libpq (apt install libpq5).'
        ) from None
    return module


@contextmanager
def connected(dsn: str) -> Iterator[PGconn]:
    """A connection in autocommit, closed at the end.

    Args:
        dsn: The connection string, with or without a ``connect_timeout``.

    Raises:
        ServerError: If it is malformed or the server refuses; the message contains no password.
    """
    conn = open_connection(dsn)
    try:
        yield conn
    finally:
        conn.finish()


def open_connection(dsn: str) -> PGconn:
    """The same connection for longer: the caller finishes it.

    Raises:
        ServerError: As `connected`.
    """
    conn = connect(with_timeout(dsn))
    if conn.status == pq().ConnStatus.OK:
        return conn
    shown = conninfo.redacted(dsn)
    trouble = reason(conn, dsn)
    conn.finish()
    raise ServerError(f"cannot connect to the server{f' ({shown})' if shown else ''}:\n{trouble}")


def connect(dsn: str) -> PGconn:
    """A connection attempt; whether it succeeded is in its status. The caller finishes it."""
    conn: PGconn = pq().PGconn.connect(dsn.encode())
    return conn


def with_timeout(dsn: str) -> str:
    """`dsn` with a connect_timeout: its own, the environment's, else five seconds.

    Raises:
        ServerError: If `dsn` is malformed.
    """
    if "PGCONNECT_TIMEOUT" in os.environ:
        return dsn
    try:
        return conninfo.with_default(dsn, "connect_timeout", str(_CONNECT_TIMEOUT))
    except ValueError as error:
        raise ServerError(f"the connection string is malformed: {error}.") from None


def reason(conn: PGconn, dsn: str) -> str:
    """Why the connection failed, in libpq's words, without a password should it occur in them."""
    text = conn.error_message.decode(errors="replace").strip()
    try:
        password = conninfo.parse(dsn).get("password")
    except ValueError:
        return "(the reason is withheld: it might quote the password)"
    return text.replace(password, "***") if password else text


def version(conn: PGconn) -> str:
    """The server's version without its packager's addition: ``15.18`` of ``15.18 (Debian 15.18-0+deb12u1)``."""
    told = (conn.parameter_status(b"server_version") or b"").decode()
    found = re.match(r"\S+", told)
    return found[0] if found else "?"


def execute(conn: PGconn, query: str, *parameters: str) -> list[list[str | None]]:
    """Run one statement and return its rows as text.

    Raises:
        ServerError: If the server refuses; the message is the server's, without the statement.
    """
    enums = pq()
    result = conn.exec_params(query.encode(), [parameter.encode() for parameter in parameters])
    if result.status not in (enums.ExecStatus.COMMAND_OK, enums.ExecStatus.TUPLES_OK):
        raise ServerError(result.error_message.decode(errors="replace").strip())
    return [
        [
            None if (value := result.get_value(row, column)) is None else value.decode()
            for column in range(result.nfields)
        ]
        for row in range(result.ntuples)
    ]


def identifier(conn: PGconn, name: str) -> str:
    """`name` quoted for use in a statement."""
    quoted: bytes = pq().Escaping(conn).escape_identifier(name.encode())
    return quoted.decode()
