"""What is known of PgBouncer while the session lasts: asks its console, where the user has named one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pytest_pgleak.activity import Backend
from pytest_pgleak.descriptors import Places
from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.pgbouncer.mapping import (
    clients_of,
    idle_in_pool_of,
    is_backend_of,
    is_own,
    one_of_pool,
    server_of,
    servers_of,
    the_one,
    through,
)
from pytest_pgleak.pgbouncer.shared import is_text_of
from pytest_pgleak.pgbouncer.through import Through

if TYPE_CHECKING:
    from pytest_pgleak.observer import Observer
    from pytest_pgleak.pgbouncer.console import AdminConsole
    from pytest_pgleak.pgbouncer.rows import Address, Client, Console, ServerConnection

_Answer = TypeVar("_Answer")

_MOST_ATTEMPTS: Final = 4
"""To connect, one after the other in vain: a host that does not answer takes five seconds each time."""
_JUST: Final = 1.0
"""Seconds since a statement that was the last."""
_MOST_VERIFIED: Final = 1000
"""Server connections that are remembered: PgBouncer opens new ones, from time to time."""


class PgBouncer:
    """The third witness, between the client and the server.

    Args:
        settings: Returns the DSN of the console, and the option that it comes from; None where there is none.
        places: Keep its connection a place among the file descriptors.
    """

    def __init__(self, settings: Callable[[], tuple[str, str] | None], places: Places | None = None) -> None:
        self._settings = settings
        self._places = places or Places()
        self._console: AdminConsole | None = None
        self._connected_at: int | None = None
        self._attempts_left = _MOST_ATTEMPTS
        self._failure = ""
        self._loss = ""
        self._told = False
        self._lock = threading.Lock()
        self._asking: int | None = None
        self._modes: dict[tuple[str, str], str] = {}
        self._verified: dict[ServerConnection, Observer | None] = {}
        self._is_there: dict[tuple[str, str], bool] = {}
        self._has_met = False
        self._behind: dict[tuple[tuple[str, str], str], tuple[Observer, str]] = {}

    @property
    def version(self) -> str:
        """Its version as ``1.18.0``; empty where no console was named, or where it cannot be read."""
        return "" if self._console is None or self._connected_at is None else self._console.version

    @property
    def was_read(self) -> bool:
        """Whether it was read for as long as it was there."""
        return self._console is not None and bool(self._console.version) and not self._loss

    def sees(self, server: tuple[str, str]) -> bool:
        """Tell whether connections to a server, as the application calls it, are clients that the console knows.

        Where nobody has looked for one, there was nothing to say of any.
        """
        return self.was_read and self._is_there.get(server, True)

    @property
    def complaint(self) -> str | None:
        """Why the console that the user has named cannot be read; None where all is well."""
        why = self._failure or self._loss
        named = self._settings() if why else None
        return None if named is None else f"PgBouncer's console, named by {named[1]}: {why}"

    @property
    def doubt(self) -> str | None:
        """Why a console that can be read may be the wrong one; None where it has known a connection."""
        if not self.was_read or not self._is_there or self._has_met or (named := self._settings()) is None:
            return None
        return (
            f"PgBouncer's console, named by {named[1]}, knows none of the tests' connections: it is that of another"
            " PgBouncer, or an address is translated in between."
        )

    def begin(self, moment: int, *, is_set_up: bool) -> None:
        """Connect to the console, if one was named, and it is not connected.

        Args:
            moment: What `KnownServers.tick` says.
            is_set_up: Whether the fixtures of a test have been set up. One of them may start PgBouncer; only after them
                it is a mistake that there is none.
        """
        if self._connected_at is not None or not self._attempts_left or (named := self._settings()) is None:
            return
        from pytest_pgleak.pgbouncer.console import AdminConsole

        if self._console is None:
            self._console = AdminConsole(named[0], self._places)
        self._attempts_left -= 1
        trouble = self._try(self._console.connect)[1]
        if trouble is None:
            self._connected_at, self._attempts_left, self._loss = moment, _MOST_ATTEMPTS, ""
        elif is_set_up and not self._console.version:
            self._failure, self._attempts_left = trouble, 0

    def release(self, since: int) -> None:
        """Close the connection to a PgBouncer that may be about to stop: one that was not there before a fixture.

        Since 1.23 it waits, told to stop by SIGTERM, until all of its clients have gone; and a fixture waits for it.

        Args:
            since: What `KnownServers.tick` said when the fixture began.
        """
        if self._connected_at is not None and self._connected_at > since:
            self._connected_at = None
            self.close()

    def take_misconfiguration(self) -> str | None:
        """Return, once, why the console could never be read."""
        complaint = None if self._told or not self._failure else self.complaint
        self._told = self._told or complaint is not None
        return complaint

    def look(
        self, connections: Iterable[ConnectionFacts], observers: Iterable[Observer]
    ) -> tuple[dict[int, Through], dict[int, Backend]]:
        """Find out what is known of connections that lead through a pooler.

        Args:
            connections: Open connections.
            observers: The servers that can be asked; one of them may be the one behind PgBouncer.

        Returns:
            What PgBouncer says, and what the server says of the backend that serves it now. By the number that each
            connection has for its backend, which through PgBouncer is a number of PgBouncer's making.
        """
        ours = [(facts, address) for facts in connections if (address := _address(facts)) is not None]
        if not ours or (console := self._look()) is None:
            return {}, {}
        shown: dict[int, Through] = {}
        rows: dict[int, Backend] = {}
        for facts, address in ours:
            if (client := self._client_of(console, facts, address)) is None:
                continue
            shown[facts.backend_pid] = through(console, client)
            if (server := server_of(console, client)) is None:
                continue
            asked = (observer.backend_now(server.pid, wait=True) for observer in observers)
            row = next((row for row in asked if row is not None and is_backend_of(row, server, console)), None)
            if row is not None:
                rows[facts.backend_pid] = row
        return shown, rows

    def row_now(
        self, facts: ConnectionFacts, connection: Any, observers: Iterable[Observer], *, wait: bool
    ) -> Backend | None:
        """Read what the transaction of a connection has written. Never raises.

        Args:
            facts: What is known of the connection.
            connection: The connection, in a transaction: it has its server connection to itself.
            observers: As for `look`.
            wait: As for `Observer.row_now`.
        """
        if not self.version:
            return None
        try:
            server = self._server_of(facts, facts.library.local_address(connection), wait=wait)
        except Exception:  # noqa: BLE001 - an exception inside the user's __del__ would be printed as theirs
            return None
        if server is None:
            return None
        if server not in self._verified:
            self._verify(facts, server, observers, wait=wait)
        observer = self._verified.get(server)
        return None if observer is None else observer.row_now(server.pid, wait)

    def behind(self, facts: ConnectionFacts) -> tuple[Observer, str] | None:
        """Return the observer of the server that a connection leads to, and what the database is called there."""
        return self._behind.get((facts.server, facts.dbname))

    def client_of(self, facts: ConnectionFacts) -> Client | None:
        """Return the client that a connection of this process is; None where it is none, or nobody can tell.

        Where it may be one of several (`mapping.clients_of`), one of the same pool.
        """
        address = _address(facts)
        console = None if address is None else self._look()
        if address is None or console is None:
            return None
        client = self._client_of(console, facts, address)
        return client or one_of_pool(console, clients_of(console, address, facts.dbname))

    def served_by(
        self,
        facts: ConnectionFacts,
        connection: Any,
        statement: str,
        observers: Iterable[Observer],
        *,
        status: str,
    ) -> int | None:
        """Return the pid of the server connection that has executed the last statement of a connection.

        In a transaction the console says that. After one it is known if the pool has one server connection only, or if
        PostgreSQL says of one of them, and of no other, that this was the last statement.

        Args:
            facts: What is known of the connection.
            connection: The connection.
            statement: The statement.
            observers: As for `look`.
            status: Name of its ``TransactionStatus`` after the statement.

        Returns:
            None where nobody can tell: several clients may share a pool.
        """
        address = facts.library.local_address(connection)
        console = None if address is None else self._look()
        if console is None or address is None:
            return None
        client = self._client_of(console, facts, address, in_transaction=status in ("INTRANS", "INERROR"))
        if client is not None and (server := server_of(console, client)) is not None:
            return server.pid
        client = one_of_pool(console, clients_of(console, address, facts.dbname))
        if client is None or status != "IDLE":
            return None
        servers = servers_of(console, client)
        if len(servers) > 1:
            observers = tuple(observers)
            servers = tuple(each for each in servers if _has_just_executed(statement, each, console, observers))
        return servers[0].pid or None if len(servers) == 1 else None

    def has_client(self, address: Address) -> bool:
        """Tell whether a client is still connected."""
        console = self._look()
        return console is not None and any(client.address == address for client in console.clients)

    def servers(self, client: Client) -> tuple[frozenset[int], frozenset[int]]:
        """Return the pids of the server connections in the pool of a client: of all, and of those that are idle."""
        console = self._look()
        if console is None:
            return frozenset(), frozenset()
        both = servers_of(console, client), idle_in_pool_of(console, client)
        return frozenset(server.pid for server in both[0]), frozenset(server.pid for server in both[1])

    def pool_mode(self, client: Client) -> str:
        """Return the mode of the pool of a client; empty where it is not known. It is asked once."""
        key = client.database, client.user
        if not self._modes.get(key) and (console := self._look()) is not None:
            self._modes[key] = through(console, client).pool_mode
        return self._modes.get(key, "")

    def without_own(self, backends: tuple[Backend, ...]) -> tuple[Backend, ...]:
        """Leave out the backends that serve PgBouncer itself."""
        console = self._look() if backends else None
        return backends if console is None else tuple(row for row in backends if not is_own(row, console))

    def close(self) -> None:
        """Close the connection to the console."""
        if self._console is not None:
            self._try(self._console.close)

    def _server_of(self, facts: ConnectionFacts, address: Address | None, *, wait: bool) -> ServerConnection | None:
        console = None if address is None else self._look(wait=wait, links_only=True)
        if console is None or address is None:
            return None
        # A finalizer may free what is in no transaction.
        client = self._client_of(console, facts, address, in_transaction=wait)
        server = None if client is None else server_of(console, client)
        # Always the same while it lives, whoever has it.
        return None if server is None else replace(server, state="", link="")

    def _client_of(
        self, console: Console, facts: ConnectionFacts, address: Address, *, in_transaction: bool = False
    ) -> Client | None:
        found = clients_of(console, address, facts.dbname)
        self._is_there[facts.server] = bool(found)
        self._has_met = self._has_met or bool(found)
        return the_one(found, in_transaction=in_transaction)

    def _verify(
        self, facts: ConnectionFacts, server: ServerConnection, observers: Iterable[Observer], *, wait: bool
    ) -> None:
        """Find out, once for each server connection, which of the servers has the other end of it."""
        if (console := self._look(wait=wait)) is None:
            return
        rows = ((each, each.backend_now(server.pid, wait)) for each in observers)
        found = [each for each, row in rows if row is not None and is_backend_of(row, server, console)]
        if len(self._verified) >= _MOST_VERIFIED:
            self._verified.clear()
        if found or wait:  # a finalizer may have been refused
            self._verified[server] = found[0] if len(found) == 1 else None
        if len(found) == 1:
            name = (console.databases or {}).get(server.database) or server.database
            self._behind[facts.server, facts.dbname] = found[0], name

    def _look(self, *, wait: bool = True, links_only: bool = False) -> Console | None:
        if self._console is None or self._connected_at is None:
            return None
        console, trouble = self._try(partial(self._console.look, links_only=links_only), wait=wait)
        if trouble is not None:
            # It is not asked again, until the next test.
            self._connected_at, self._loss = None, trouble
        return console

    def _try(self, ask: Callable[[], _Answer], *, wait: bool = True) -> tuple[_Answer | None, str | None]:
        """Ask the console; return its answer, and what went wrong."""
        from pytest_pgleak.pgbouncer.console import ConsoleError

        # The garbage collector may run somebody's finalizer in the middle of it, in this very thread.
        if self._asking == threading.get_ident() or not self._lock.acquire(blocking=wait):
            return None, None
        self._asking = threading.get_ident()
        try:
            return ask(), None
        except ConsoleError as error:
            return None, str(error)
        finally:
            self._asking = None
            self._lock.release()


def _has_just_executed(
    statement: str, server: ServerConnection, console: Console, observers: Iterable[Observer]
) -> bool:
    rows = (observer.backend_now(server.pid, wait=True) for observer in observers)
    row = next((row for row in rows if row is not None and is_backend_of(row, server, console)), None)
    if row is None or row.query is None or row.state != "idle" or row.seconds_in_state is None:
        return False
    return row.seconds_in_state < _JUST and is_text_of(row.query.strip(), statement.strip())


def _address(facts: ConnectionFacts) -> tuple[str, int] | None:
    living = facts.reference()
    return None if living is None else facts.library.local_address(living)
