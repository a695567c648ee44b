"""What is known of PgBouncer while the session lasts: asks its console, where the user has named one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.activity import Backend
from pytest_pgleak.descriptors import Places
from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.pgbouncer.mapping import client_of, idle_in_pool_of, is_backend_of, is_own, server_of, through
from pytest_pgleak.pgbouncer.through import Through

if TYPE_CHECKING:
    from pytest_pgleak.observer import Observer
    from pytest_pgleak.pgbouncer.console import AdminConsole
    from pytest_pgleak.pgbouncer.rows import Address, Client, Console, ServerConnection

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
        self._failure = ""
        self._told = False
        self._has_begun = False
        self._lock = threading.Lock()
        self._modes: dict[tuple[str, str], str] = {}
        self._verified: dict[ServerConnection, Observer | None] = {}
        self._behind: dict[tuple[tuple[str, str], str], tuple[Observer, str]] = {}

    @property
    def version(self) -> str:
        """Its version as ``1.18.0``; empty where no console was named, or where it cannot be read."""
        return "" if self._console is None or self._failure else self._console.version

    @property
    def complaint(self) -> str | None:
        """Why the console that the user has named cannot be read; None where all is well."""
        named = self._settings() if self._failure else None
        return None if named is None else f"PgBouncer's console, named by {named[1]}: {self._failure}"

    def begin(self) -> None:
        """Connect to the console before the first test that is checked, if one was named."""
        if self._has_begun:
            return
        self._has_begun = True
        if (named := self._settings()) is None:
            return
        from pytest_pgleak.pgbouncer.console import AdminConsole

        with self._lock:
            self._console = AdminConsole(named[0], self._places)
            self._try(self._console.connect)

    def take_misconfiguration(self) -> str | None:
        """Return, once, why the console cannot be read."""
        complaint = None if self._told else self.complaint
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
            if (client := client_of(console, address, facts.dbname)) is None:
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
        """Return the client that a connection of this process is; None where it is none, or nobody can tell."""
        address = _address(facts)
        console = None if address is None else self._look()
        return None if address is None or console is None else client_of(console, address, facts.dbname)

    def has_client(self, address: Address) -> bool:
        """Tell whether a client is still connected."""
        console = self._look()
        return console is not None and any(client.address == address for client in console.clients)

    def idle_servers(self, client: Client) -> int:
        """Return how many server connections are idle in the pool of a client."""
        console = self._look()
        return 0 if console is None else len(idle_in_pool_of(console, client))

    def pool_mode(self, client: Client) -> str:
        """Return the mode of the pool of a client; empty where it is not known. It is asked once."""
        key = client.database, client.user
        if not self._modes.get(key) and (console := self._look()) is not None:
            self._modes |= console.modes or {}
        return self._modes.get(key, "")

    def without_own(self, backends: tuple[Backend, ...]) -> tuple[Backend, ...]:
        """Leave out the backends that serve PgBouncer itself."""
        console = self._look() if backends else None
        return backends if console is None else tuple(row for row in backends if not is_own(row, console))

    def close(self) -> None:
        """Close the connection to the console."""
        with self._lock:
            if self._console is not None:
                self._console.close()

    def _server_of(self, facts: ConnectionFacts, address: Address | None, *, wait: bool) -> ServerConnection | None:
        if address is None or not self._lock.acquire(blocking=wait):
            return None
        try:
            console = None if self._console is None else self._console.look(links_only=True)
        finally:
            self._lock.release()
        client = None if console is None else client_of(console, address, facts.dbname)
        server = None if client is None or console is None else server_of(console, client)
        # Always the same while it lives, whoever has it.
        return None if server is None else replace(server, state="", link="")

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
        self._verified[server] = found[0] if len(found) == 1 else None
        if len(found) == 1:
            name = (console.databases or {}).get(server.database) or server.database
            self._behind[facts.server, facts.dbname] = found[0], name

    def _look(self, *, wait: bool = True) -> Console | None:
        if not self._lock.acquire(blocking=wait):
            return None
        try:
            return None if self._console is None or self._failure else self._try(self._console.look)
        finally:
            self._lock.release()

    def _try(self, ask: Callable[[], Console | None]) -> Console | None:
        from pytest_pgleak.pgbouncer.console import ConsoleError

        try:
            return ask()
        except ConsoleError as error:
            self._failure = str(error)
            return None


def _address(facts: ConnectionFacts) -> tuple[str, int] | None:
    living = facts.reference()
    return None if living is None else facts.library.local_address(living)
