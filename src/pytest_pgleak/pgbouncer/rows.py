"""What PgBouncer's console shows, as values. Pure.

Columns are read by their names (PgBouncer, usage.md): each version adds some.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pytest_pgleak.libraries.addresses import of_process

Row = Mapping[str, str | None]
Address = tuple[str, int]
"""IP address and port; over a Unix socket the process of the client instead of the address."""

_MAPPED: Final = "::ffff:"
"""How a socket that speaks IPv6 shows an address of IPv4."""


@dataclass(frozen=True, slots=True)
class Client:
    """One row of ``SHOW CLIENTS``.

    Attributes:
        ptr: What `ServerConnection.link` calls it.
        address: Where it has connected from, as PgBouncer sees it; None where PgBouncer does not know.
        database: As the client calls it; PgBouncer may know it by another name on the server.
        user: Its user.
        state: ``active``, ``waiting``, ….
        link: The ``ptr`` of the server connection that it has at this moment; empty for none.
    """

    ptr: str
    address: Address | None
    database: str
    user: str
    state: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class ServerConnection:
    """One row of ``SHOW SERVERS``: a connection of PgBouncer's own to PostgreSQL.

    Attributes:
        ptr: What `Client.link` calls it.
        pid: Process number of its backend; 0 as long as it is not logged in.
        database: As its clients call it.
        user: Its user.
        state: ``active``, ``idle``, ``used``, ``tested``, ``new``.
        link: The ``ptr`` of the client that has it at this moment; empty for none.
        local: PgBouncer's end of it, that the server has as ``client_addr`` and ``client_port``; None over a Unix
            socket.
    """

    ptr: str
    pid: int
    database: str
    user: str
    state: str = ""
    link: str = ""
    local: Address | None = None


@dataclass(frozen=True, slots=True)
class Console:
    """What the console says at one instant.

    Attributes:
        clients: The clients.
        servers: The connections to PostgreSQL.
        modes: ``session``, ``transaction`` or ``statement``, by database and user of a pool.
        databases: What a database is called on the server, by the name that clients use.
        forced_users: As whom PgBouncer connects to a database, whoever its client is; by the name of the database.
    """

    clients: tuple[Client, ...] = ()
    servers: tuple[ServerConnection, ...] = ()
    modes: Mapping[tuple[str, str], str] | None = None
    databases: Mapping[str, str] | None = None
    forced_users: Mapping[str, str] | None = None


def client(row: Row) -> Client:
    """Read a row of ``SHOW CLIENTS``."""
    address = _address(row, "addr", "port")
    if _text(row, "addr") == "unix" and (pid := _number(row, "remote_pid")):
        address = of_process(pid), _number(row, "port")
    return Client(
        _text(row, "ptr"), address, _text(row, "database"), _text(row, "user"), _text(row, "state"), _text(row, "link")
    )


def server_connection(row: Row) -> ServerConnection:
    """Read a row of ``SHOW SERVERS``."""
    return ServerConnection(
        _text(row, "ptr"),
        _number(row, "remote_pid"),
        _text(row, "database"),
        _text(row, "user"),
        _text(row, "state"),
        _text(row, "link"),
        None if _text(row, "addr") == "unix" else _address(row, "local_addr", "local_port"),
    )


def read(shown: Mapping[str, tuple[Row, ...]]) -> Console:
    """Read what ``SHOW CLIENTS``, ``SERVERS``, ``POOLS`` and ``DATABASES`` have shown, by these names in lower case.

    The last two may be missing.
    """
    return Console(
        tuple(client(row) for row in shown["clients"]),
        tuple(server_connection(row) for row in shown["servers"]),
        {(_text(row, "database"), _text(row, "user")): _text(row, "pool_mode") for row in shown.get("pools", ())},
        {_text(row, "name"): _text(row, "database") for row in shown.get("databases", ())},
        {_text(row, "name"): _text(row, "force_user") for row in shown.get("databases", ()) if row.get("force_user")},
    )


def without_mapping(host: str) -> str:
    """Write an address of IPv4 as such, also where a socket that speaks IPv6 shows it."""
    return host.removeprefix(_MAPPED) if "." in host else host.partition("%")[0]


def _address(row: Row, host: str, port: str) -> Address | None:
    name = _text(row, host)
    return None if name in ("", "unix") else (without_mapping(name), _number(row, port))


def _text(row: Row, name: str) -> str:
    return row.get(name) or ""


def _number(row: Row, name: str) -> int:
    text = _text(row, name)
    return int(text) if text.isdecimal() else 0
