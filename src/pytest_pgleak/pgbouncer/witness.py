"""What is known of PgBouncer while the session lasts: asks its console, where the user has named one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pytest_pgleak.activity import Backend
from pytest_pgleak.descriptors import Places
from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.pgbouncer.mapping import client_of, idle_in_pool_of, is_backend_of, is_own, server_of, through
from pytest_pgleak.pgbouncer.through import Through

if TYPE_CHECKING:
    from pytest_pgleak.observer import Observer
    from pytest_pgleak.pgbouncer.console import AdminConsole
    from pytest_pgleak.pgbouncer.rows import Address, Client, Console


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
            asked = (_row(observer, server.pid) for observer in observers)
            row = next((row for row in asked if row is not None and is_backend_of(row, server, console)), None)
            if row is not None:
                rows[facts.backend_pid] = row
        return shown, rows

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

    def _look(self) -> Console | None:
        with self._lock:
            if self._console is None or self._failure:
                return None
            return self._try(self._console.look)

    def _try(self, ask: Callable[[], Console | None]) -> Console | None:
        from pytest_pgleak.pgbouncer.console import ConsoleError

        try:
            return ask()
        except ConsoleError as error:
            self._failure = str(error)
            return None


def _row(observer: Observer, pid: int) -> Backend | None:
    from pytest_pgleak.connecting import ObserverError

    try:
        return next(iter(observer.backends([pid])), None)
    except ObserverError:
        return None  # whoever asks it for its own sake will say why


def _address(facts: ConnectionFacts) -> tuple[str, int] | None:
    living = facts.reference()
    return None if living is None else facts.library.local_address(living)
