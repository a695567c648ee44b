"""The servers that the application speaks to, each with its observer, or with the reason why it has none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

from pytest_pgleak.connecting import ObserverError, PoolerError, UnreachableError
from pytest_pgleak.descriptors import Places
from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.observer import Observer

Server = tuple[str, str]
"""Host and port, as libpq says them of an open connection."""

OBSERVER_NAME: Final = "pgleak observer"
"""``application_name`` of pgleak's own connections."""

NO_PSYCOPG: Final = (
    "psycopg cannot be imported ({error}), and pgleak looks at the server through it;"
    ' install it with its libpq: pip install "psycopg[binary]"'
)
NO_PID: Final = "it says no pid of its connections, as PGlite does"


class KnownServers:
    """Derives an observer from the first connection to each server, and lets go of it where it would be in the way.

    Args:
        places: Keep the observers' places among the file descriptors.
        settings: Returns the DSN of the settings, and the option that it comes from; None where there is none.
    """

    def __init__(self, places: Places, settings: Callable[[], tuple[str, str] | None]) -> None:
        self._places = places
        self._settings = settings
        self._has_asked_settings = False
        self._misnamed: dict[str, str] = {}
        self._observers: dict[Server, Observer] = {}
        self._configured: dict[str, Server] = {}
        self._new: set[Server] = set()
        self._poolers: set[Server] = set()
        # None for a server that is gone: there is nothing to complain of.
        self._blind: dict[Server, str | None] = {}
        self._told: set[Server] = set()
        self._ticks = itertools.count(1)
        self._learned_at: dict[Server, int] = {}
        self._released: dict[Server, str] = {}

    def complaints(self, is_seen_through: Callable[[Server], bool]) -> tuple[str, ...]:
        """Return the servers that cannot be observed, and why: one line each.

        Args:
            is_seen_through: Tells of a pooler whether the server behind it is seen all the same.
        """
        named = {f"the server of {option}": reason for option, reason in self._misnamed.items()}
        for server, reason in self._blind.items():
            if reason and not (server in self._poolers and is_seen_through(server)):
                named[f"the server {server[0]}:{server[1]}"] = reason
        return tuple(f"{name}: {' '.join(reason.split())}" for name, reason in named.items())

    @property
    def has_poolers(self) -> bool:
        """Whether a pooler stands between the application and a server: its backends are nobody's in the ledger."""
        return bool(self._poolers)

    @property
    def seeing(self) -> dict[Server, Observer]:
        """The observers that can see, by server. May be asked from any thread."""
        return {server: seer for server, seer in list(self._observers.items()) if server not in self._blind}

    def __contains__(self, server: Server) -> bool:
        return server in self._observers or server in self._blind

    def observer(self, server: Server) -> Observer | None:
        """Return the observer of a server; None where it has none that sees."""
        return None if server in self._blind else self._observers.get(server)

    def add_configured(self, dsn: str) -> None:
        """Observe the server of the settings.

        Args:
            dsn: libpq conninfo or URI.

        Raises:
            ObserverError: It cannot be observed. A pooler is no error: the ledger judges alone.
        """
        observer = Observer(_conninfos(_parse(dsn)), self._places)
        try:
            server = observer.server
        except PoolerError as pooler:
            self._configured[dsn] = pooler.server
            self.give_up(pooler.server, pooler)
            return
        self._configured[dsn] = server
        if (earlier := self._observers.get(server)) is not None:
            earlier.close()
        self._observers[server] = observer
        self._new.discard(server)
        self._blind.pop(server, None)

    def server_of(self, dsn: str) -> Server:
        """Return host and port of a server that was added."""
        return self._configured[dsn]

    def pooler_of(self, dsn: str) -> str | None:
        """Return why a server that was added is not observed, if that is for a pooler in between."""
        server = self._configured.get(dsn)
        return self._blind[server] if server is not None and server in self._poolers else None

    def learn(self, facts: ConnectionFacts, connection: Any, may_ask: bool = True) -> None:
        """Take note of the server that the application has connected to; its password stays inside the observer.

        Args:
            facts: What is known of the connection.
            connection: The connection, open.
            may_ask: Whether another server may be asked; not inside a finalizer.
        """
        server = facts.server
        if server in self._blind and self._blind[server] is None:
            del self._blind[server]  # it is there again
        if server in self:
            return
        if not facts.backend_pid:
            self._blind[server] = NO_PID
            return
        known = self._known_by_another_name(facts) if may_ask else None
        if server in self:
            return  # it is the one of the settings
        try:
            observer = known or Observer(_conninfos(_parameters(facts, connection)), self._places, True)
        except ImportError as error:  # psycopg without libpq: the application may use another driver
            self._blind[server] = NO_PSYCOPG.format(error=str(error).partition("\n")[0])
            return
        self._observers[server] = observer
        self._learned_at[server] = next(self._ticks)
        if known is None:
            self._new.add(server)

    def identify(self) -> None:
        """Find out, at the first checkpoint after it was learned, whether a server can be observed."""
        while self._new:
            server = self._new.pop()
            try:
                self._observers[server].connect()
            except ObserverError as error:
                self.give_up(server, error)

    def give_up(self, server: Server, error: ObserverError | str) -> None:
        """Note that a server cannot be observed."""
        if isinstance(error, PoolerError):
            self._poolers.add(server)
        is_gone = isinstance(error, UnreachableError) and server in self._released
        self._blind.setdefault(server, None if is_gone else str(error))

    def take_misconfiguration(self) -> str | None:
        """Return, once, why the server that the user configured cannot be observed."""
        for server in list(self._blind):
            if self._is_configured(server) and server not in self._told and server not in self._poolers:
                self._told.add(server)
                return self._blind[server]
        return None

    def tick(self) -> int:
        """Return a number for this moment, for `release`."""
        return next(self._ticks)

    def release(self, since: int) -> None:
        """Close the connections to servers that may be about to stop: those that were not known before a fixture.

        A server that is told to stop may wait until all of its clients have gone (PostgreSQL manual, section 18.5,
        Smart Shutdown), and a fixture waits for it.

        Args:
            since: What `tick` said when the fixture began.
        """
        for server, observer in self.seeing.items():
            if observer.identity is None or self._is_configured(server):
                continue
            started = observer.identity.server_start
            if self._learned_at.get(server, 0) > since or self._released.get(server, started) != started:
                self._released[server] = started
                observer.close()

    def close(self) -> None:
        """Close all observers."""
        for observer in self._observers.values():
            observer.close()

    def _is_configured(self, server: Server) -> bool:
        own = self._observers.get(server)
        return any(key == server or (own and self._observers.get(key) is own) for key in self._configured.values())

    def _known_by_another_name(self, facts: ConnectionFacts) -> Observer | None:
        """Return the observer of a configured server that has the backend of a connection, if one has it.

        One server goes by many names: localhost, 127.0.0.1, the directory of its socket.
        """
        self._add_from_settings()
        for server in set(self._configured.values()):
            observer = self.observer(server)
            try:
                rows = observer.backends([facts.backend_pid]) if observer is not None else ()
            except ObserverError:
                continue
            if any((row.datname, row.usename) == (facts.dbname, facts.user) for row in rows):
                return observer
        return None

    def _add_from_settings(self) -> None:
        """Observe the server of the settings also where no fixture of the plugin asks for it."""
        named = self._settings()
        if self._has_asked_settings or named is None or named[0] in self._configured:
            return
        self._has_asked_settings = True
        dsn, option = named
        try:
            self.add_configured(dsn)
        except ObserverError as error:
            self._misnamed[option] = str(error)
        except Exception:  # noqa: BLE001 - psycopg's own message would quote the string, and with it a password
            self._misnamed[option] = "it is no connection string that libpq understands"


def _parameters(facts: ConnectionFacts, connection: Any) -> dict[str, str]:
    parameters = facts.library.parameters(connection)
    if "," in parameters.get("host", ""):
        # One of several hosts answered: the observer must ask that one.
        parameters.pop("hostaddr", None)
        parameters |= dict(zip(("host", "port"), facts.server, strict=True))
    return parameters


_NOT_FOR_THE_OBSERVER: Final = frozenset(
    (
        "options",
        "application_name",
        "fallback_application_name",
        "client_encoding",
        "target_session_attrs",
        "replication",
        "dbname",
    )
)


def conninfo_of(facts: ConnectionFacts, connection: Any) -> str:
    """Return with what a connection of the plugin's own reaches the database of one of the application's."""
    return _conninfos(_parameters(facts, connection) | {"dbname": facts.dbname})[-1]


def _parse(dsn: str) -> dict[str, str]:
    from psycopg.conninfo import conninfo_to_dict

    return {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}


def _conninfos(parameters: dict[str, str]) -> list[str]:
    from psycopg.conninfo import make_conninfo

    own = {key: value for key, value in parameters.items() if key not in _NOT_FOR_THE_OBSERVER}
    own |= {"application_name": OBSERVER_NAME, "client_encoding": "UTF8"}
    own.setdefault("connect_timeout", "5")
    candidates = ["postgres", parameters.get("dbname", "")]
    return [make_conninfo(**(own | ({"dbname": name} if name else {}))) for name in dict.fromkeys(candidates)]
