"""One observer a server: for the server of the settings, and for each server that the application connects to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from pytest_pgleak.activity import NOTHING_KNOWN, Activity, Backend, Relations
from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.observer import Observer, ObserverError

Server = tuple[str, str]
"""Host and port, as libpq says them of an open connection."""

Watched = dict[Server, dict[str, int]]
"""How many connections this process has open, by server and database."""


class Observers:
    """Finds the observer for a connection, and asks all of them at a checkpoint."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._by_server: dict[Server, Observer] = {}
        self._servers: dict[str, Server] = {}
        self._told: set[Server] = set()
        self._blind: dict[Server, str] = {}
        self._before: dict[Server, frozenset[tuple[int, str | None]]] = {}
        self._has_transaction_ids: dict[Server, bool] = {}

    @property
    def complaints(self) -> tuple[str, ...]:
        """Why some servers cannot be observed, one sentence each."""
        return tuple(self._blind.values())

    def add_configured(self, dsn: str) -> None:
        """Observe the server of the settings.

        Args:
            dsn: libpq conninfo or URI.

        Raises:
            ObserverError: It cannot be observed.
        """
        observer = Observer(_conninfos(_parse(dsn)))
        server = self._servers[dsn] = observer.server
        if (earlier := self._by_server.get(server)) is not None:
            earlier.close()
        self._by_server[server] = observer
        self._blind.pop(server, None)

    def server_of(self, dsn: str) -> Server:
        """Return host and port of a server that was added."""
        return self._servers[dsn]

    def learn(self, facts: ConnectionFacts, connection: Any) -> None:
        """Take note of the server that the application has connected to; its password stays inside the observer."""
        if facts.server not in self._by_server and facts.server not in self._blind and facts.backend_pid:
            parameters = facts.library.parameters(connection)
            if "," in parameters.get("host", ""):
                # One of several hosts answered: the observer must ask that one.
                parameters.pop("hostaddr", None)
                parameters |= dict(zip(("host", "port"), facts.server, strict=True))
            try:
                observer = Observer(_conninfos(parameters))
            except ImportError as error:  # psycopg without libpq: the application may use another driver
                reason, *_ = str(error).splitlines() or [""]
                self._blind[facts.server] = (
                    f"psycopg cannot be imported ({reason}), and pgleak looks at the server through it.\n"
                    '  Install it with its libpq: pip install "psycopg[binary]".'
                )
                return
            self._by_server.setdefault(facts.server, observer)

    def seeing(self, connections: Iterable[ConnectionFacts]) -> dict[Server, Observer]:
        """Return the observers that can see, by server. May be called from any thread.

        Args:
            connections: Open connections, whose servers are to be among them.
        """
        for facts in connections:
            if facts.server not in self._by_server and (living := facts.reference()) is not None:
                with contextlib.suppress(Exception):  # another thread may be closing it
                    self.learn(facts, living)
        return {server: seer for server, seer in list(self._by_server.items()) if server not in self._blind}

    def witness(self, facts: ConnectionFacts, connection: Any, wait: bool = False) -> Backend | None:
        """Look at what the transaction of a connection has written, as long as it is open.

        Args:
            facts: What is known of the connection.
            connection: The connection.
            wait: Whether to wait for another thread's look; not inside a finalizer.
        """
        if sys.is_finalizing() or facts.server in self._blind or not facts.backend_pid:
            return None
        if self._process != os.getpid():
            return None  # a forked child: what it drops is its parent's, and still in use there
        self.learn(facts, connection)
        observer = self._by_server.get(facts.server)
        return None if observer is None else observer.row_now(facts.backend_pid, wait)

    def begin(self, watched: Watched, known_pids: Callable[[], frozenset[int]]) -> None:
        """Remember which backends nobody here has opened, before a test starts.

        Args:
            watched: How many connections this process has open, by server and database.
            known_pids: Returns the pids of all backends that this process has opened.
        """
        before = {}
        for server, databases in watched.items():
            rows = self._unexplained(server, databases, known_pids, len(self._before.get(server, ())))
            if rows is None:
                before[server] = self._before[server]
            else:
                before[server] = frozenset(row.identity for row in rows)
        self._before = before

    def new_backends(self, watched: Watched, known_pids: Callable[[], frozenset[int]]) -> tuple[Backend, ...]:
        """Return the backends that have come since `begin` and that this process has not opened.

        Args:
            watched: As for `begin`. A server that was not watched then is left out: nobody knows what was there.
            known_pids: As for `begin`.
        """
        new: list[Backend] = []
        for server, databases in watched.items():
            if (before := self._before.get(server)) is not None:
                rows = self._unexplained(server, databases, known_pids, len(before)) or ()
                new.extend(row for row in rows if row.identity not in before)
        return tuple(new)

    def may_have_prepared(self, server: Server) -> bool:
        """Tell whether there may be prepared transactions, by the last quick look of `begin` or `new_backends`."""
        return self._has_transaction_ids.get(server, False)

    def check_roles(self, roles: Iterable[tuple[Server, str]]) -> None:
        """Complain where the application uses a role whose rows the observer may not read.

        Their ``state`` would be NULL, and every look at them would find nothing wrong.

        Args:
            roles: Server and user name of the connections that the application has opened.
        """
        for server, user in roles:
            observer = self._by_server.get(server)
            identity = observer.identity if observer is not None else None
            if identity is not None and not identity.sees_all and identity.user != user:
                self._blind.setdefault(server, _may_not_see(identity.user, user))

    def take_misconfiguration(self) -> str | None:
        """Return, once, why the server that the user configured cannot be observed."""
        for server in self._servers.values():
            if server in self._blind and server not in self._told:
                self._told.add(server)
                return self._blind[server]
        return None

    def look(self, connections: Iterable[ConnectionFacts], new: tuple[Backend, ...] = ()) -> Activity:
        """Read the rows of some connections."""
        wanted: dict[Server, list[int]] = {}
        for facts in connections:
            if (living := facts.reference()) is not None:
                self.learn(facts, living)
            if facts.backend_pid:
                wanted.setdefault(facts.server, []).append(facts.backend_pid)
        rows: list[Backend] = []
        asked = bool(new)
        for server, pids in wanted.items():
            found = self._ask(server, pids)
            asked = asked or found is not None
            rows.extend(found or ())
        return Activity.of(rows, new) if asked else NOTHING_KNOWN

    def relations(self, facts: ConnectionFacts, written: Iterable[Backend]) -> Relations:
        """Return what can be known, in a connection's database, of what some rows show as written."""
        written = tuple(written)
        relations = {oid for backend in written for oid in backend.written}
        schemas = frozenset(oid for backend in written for oid in backend.schemas)
        observer = self._by_server.get(facts.server)
        if observer is None or facts.server in self._blind:
            return Relations(schemas=schemas)
        try:
            rows = observer.visit(facts.dbname, _RELATIONS, _oids(relations), _oids(schemas))
        except ObserverError:
            return Relations(schemas=schemas)  # the database is gone already: nothing can be named any more
        found = {int(oid or 0): (name or "", kind or "") for oid, name, kind in rows}
        lasting = frozenset(oid for oid in schemas if found.get(oid, ("", ""))[1] == "n")
        return Relations({oid: named for oid, named in found.items() if oid in relations}, lasting)

    def terminate(self, facts: Iterable[ConnectionFacts]) -> None:
        """End the backends of some connections."""
        for connection in facts:
            observer = self._by_server.get(connection.server)
            if observer is not None and connection.server not in self._blind and connection.backend_pid:
                try:
                    observer.terminate([connection.backend_pid])
                except ObserverError as error:
                    self._blind[connection.server] = str(error)

    def close(self) -> None:
        """Close all observers."""
        for observer in self._by_server.values():
            observer.close()

    def _unexplained(
        self, server: Server, databases: dict[str, int], known_pids: Callable[[], frozenset[int]], expected: int
    ) -> tuple[Backend, ...] | None:
        """Read the backends that this process has not opened; None where the quick look says: as before."""
        observer = self._by_server.get(server)
        if observer is None or server in self._blind:
            return ()
        try:
            number, self._has_transaction_ids[server] = observer.count(databases)
            if number == sum(databases.values()) + expected and server in self._before:
                return None
            known, own_address = known_pids(), observer.connect().client_addr
            rows = observer.client_backends(databases)
        except ObserverError as error:
            self._blind[server] = str(error)
            return ()
        # Others on a shared server come from other machines; what comes from this one may be a subprocess of the test.
        return tuple(row for row in rows if row.pid not in known and row.client_addr == own_address)

    def _ask(self, server: Server, pids: list[int]) -> tuple[Backend, ...] | None:
        observer = self._by_server.get(server)
        if observer is None or server in self._blind:
            return None
        try:
            rows = observer.backends(pids)
        except ObserverError as error:
            self._blind[server] = str(error)
            return None
        self._complain_of_hidden_rows(server, observer, rows)
        return rows

    def _complain_of_hidden_rows(self, server: Server, observer: Observer, rows: tuple[Backend, ...]) -> None:
        hidden = next((row for row in rows if row.state is None and row.query == "<insufficient privilege>"), None)
        identity = observer.identity
        if hidden is None or identity is None:
            return
        self._blind[server] = _may_not_see(identity.user, hidden.usename)


_RELATIONS: Final = """
    select oid::text, relname, case relpersistence when 't' then 't' else relkind::text end
    from pg_catalog.pg_class where oid = any($1::oid[])
    union all
    select oid::text, nspname, 'n' from pg_catalog.pg_namespace where oid = any($2::oid[]) and nspname !~ '^pg_temp_'
"""
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


def _oids(oids: Iterable[int]) -> str:
    return "{" + ",".join(str(oid) for oid in oids) + "}"


OBSERVER_NAME: Final = "pgleak observer"
"""``application_name`` of pgleak's own connections."""


def _may_not_see(user: str, other: str | None) -> str:
    return (
        f"role {user!r} may not see what role {other!r} does in pg_stat_activity.\n"
        f"  Let it look: GRANT pg_monitor TO {user};\n"
        "  or give pgleak another role with --pgleak-dsn (pgleak_dsn, PGLEAK_DSN)."
    )


def _parse(dsn: str) -> dict[str, str]:
    from psycopg.conninfo import conninfo_to_dict

    return {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}


def _conninfos(parameters: dict[str, str]) -> list[str]:
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import Conninfo

    # Another libpq than psycopg's may have told them, and know more of them.
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    own = {key: value for key, value in parameters.items() if key in known and key not in _NOT_FOR_THE_OBSERVER}
    own |= {"application_name": OBSERVER_NAME, "client_encoding": "UTF8"}
    own.setdefault("connect_timeout", "5")
    candidates = ["postgres", parameters.get("dbname", "")]
    return [make_conninfo(**(own | ({"dbname": name} if name else {}))) for name in dict.fromkeys(candidates)]
