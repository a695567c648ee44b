"""One observer a server: for the server of the settings, and for each server that the application connects to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from pytest_pgleak.activity import NOTHING_KNOWN, Activity, Backend, Relations
from pytest_pgleak.clock import Clock
from pytest_pgleak.connecting import ObserverError
from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.known_servers import OBSERVER_NAME, KnownServers, Server
from pytest_pgleak.observer import Observer
from pytest_pgleak.pgbouncer.witness import PgBouncer

__all__ = ["OBSERVER_NAME", "Observers", "Server", "Watched"]

_MANY: Final = 50
"""Backends of others, from which on the longer look costs more than the quick one before it."""
Known = Callable[[Iterable[int]], frozenset[int]]
Watched = dict[Server, dict[str, int]]
"""How many connections this process has open, by server and database."""


class Observers:
    """Finds the observer for a connection, and asks all of them at a checkpoint.

    Args:
        servers: The servers, each with its observer.
        pgbouncer: What PgBouncer says, if the user has named its console.
    """

    def __init__(self, servers: KnownServers, pgbouncer: PgBouncer | None = None) -> None:
        self._pgbouncer = pgbouncer or PgBouncer(lambda: None)
        self._process = os.getpid()
        self.servers = servers
        self._before: dict[Server, frozenset[tuple[int, str | None]]] = {}
        self._began_at = Clock.monotonic()
        self._began_with: Watched = {}
        self._after: dict[Server, frozenset[tuple[int, str | None]]] = {}
        self._after_databases: dict[Server, frozenset[str]] = {}
        self._has_transaction_ids: dict[Server, bool] = {}

    @property
    def complaints(self) -> tuple[str, ...]:
        """The servers that cannot be observed, and why: one line each."""
        # Behind a PgBouncer whose console is read, the server that was named is observed.
        seen_through = self._pgbouncer.sees if self.servers.seeing else lambda _server: False
        return self.servers.complaints(seen_through)

    def seeing(self, connections: Iterable[ConnectionFacts]) -> dict[Server, Observer]:
        """Return the observers that can see, by server. May be called from any thread.

        Args:
            connections: Open connections, whose servers are to be among them.
        """
        for facts in connections:
            if facts.server not in self.servers and (living := facts.reference()) is not None:
                with contextlib.suppress(Exception):  # another thread may be closing it
                    self.servers.learn(facts, living)
        return self.servers.seeing

    def opened(self, facts: ConnectionFacts, connection: Any) -> None:
        """Take note of a connection that the application has opened."""
        if facts.server not in self.servers and self._process == os.getpid():
            self.servers.learn(facts, connection)

    def witness(self, facts: ConnectionFacts, connection: Any, wait: bool = False) -> Backend | None:
        """Look at what the transaction of a connection has written, as long as it is open.

        Args:
            facts: What is known of the connection.
            connection: The connection.
            wait: Whether to wait for another thread's look; not inside a finalizer.
        """
        if sys.is_finalizing() or not facts.backend_pid:
            return None
        if self._process != os.getpid():
            return None  # a forked child: what it drops is its parent's, and still in use there
        self.servers.learn(facts, connection, may_ask=wait)
        if (observer := self.servers.observer(facts.server)) is None:
            return self._pgbouncer.row_now(facts, connection, self.servers.seeing.values(), wait=wait)
        row = observer.row_now(facts.backend_pid, wait)
        if row is None and observer.failure is not None:
            self.servers.give_up(facts.server, observer.failure)
            # Only now it has turned out that it is a pooler.
            return self._pgbouncer.row_now(facts, connection, self.servers.seeing.values(), wait=wait)
        return row

    def begin(self, watched: Watched, known_among: Known, nothing_between: bool = False) -> None:
        """Remember which backends nobody here has opened, before a test starts.

        Args:
            watched: How many connections this process has open, by server and database.
            known_among: Returns those of some pids whose backends this process has opened.
            nothing_between: Whether nothing has happened since `new_backends` was asked: then its answer still holds.
        """
        self._pgbouncer.begin(self.servers.tick(), is_set_up=True)
        self._began_at, self._began_with = Clock.monotonic(), watched
        still_holds = nothing_between and self._after_databases == _databases(watched)
        after, self._after, self._after_databases = self._after, {}, {}  # once: a check that fails leaves none
        if still_holds:
            self._before = after
            return
        before = {}
        for server, databases in watched.items():
            strangers = self._strangers(server, databases, known_among, len(self._before.get(server, ())))
            before[server] = self._before[server] if strangers is None else strangers
        self._before = before

    def new_backends(self, watched: Watched, known_among: Known, some_exit: bool = False) -> tuple[Backend, ...]:
        """Return the backends that have come since `begin` and that this process has not opened.

        Args:
            watched: As for `begin`. A server that was not watched then is left out: nobody knows what was there.
            known_among: As for `begin`.
            some_exit: Whether this process has just closed connections: their backends may still be there, and then the
                quick look is in vain.
        """
        new: list[Backend] = []
        self._after, self._after_databases = {}, _databases(watched)
        for server, databases in watched.items():
            if (before := self._before.get(server)) is None:
                self._after_databases = {}  # not looked at: the next test must
                continue
            expected = None if some_exit and len(before) < _MANY else len(before)
            strangers = self._strangers(server, databases, known_among, expected)
            self._after[server] = before if strangers is None else strangers
            if strangers is not None and (come := strangers - before):
                rows = self._rows(server, [pid for pid, _ in come]) or ()
                new += self._that_came(server, [row for row in rows if row.identity in come])
        # A pooler opens connections when it likes to, and nobody can tell for whom.
        return () if self.servers.has_poolers else self._pgbouncer.without_own(tuple(new))

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
            observer = self.servers.observer(server)
            identity = observer.identity if observer is not None else None
            if identity is not None and not identity.sees_all and identity.user != user:
                self.servers.give_up(server, _may_not_see(identity.user, user))

    def look(self, connections: Iterable[ConnectionFacts], new: tuple[Backend, ...] = ()) -> Activity:
        """Read the rows of some connections."""
        wanted: dict[Server, list[int]] = {}
        connections = tuple(connections)
        for facts in connections:
            if (living := facts.reference()) is not None:
                self.servers.learn(facts, living)
            if facts.backend_pid:
                wanted.setdefault(facts.server, []).append(facts.backend_pid)
        rows: list[Backend] = []
        asked = bool(new)
        for server, pids in wanted.items():
            found = self._ask(server, pids)
            asked = asked or found is not None
            rows.extend(found or ())
        blind = [facts for facts in connections if self.servers.observer(facts.server) is None]
        through, served = self._pgbouncer.look(blind, self.servers.seeing.values())
        if not asked and not through:
            return NOTHING_KNOWN
        unseen = frozenset(facts.backend_pid for facts in blind) - served.keys()
        backends = {row.pid: row for row in rows} | served
        return Activity(backends, new, known=True, blind=unseen, through=through)

    def relations(self, facts: ConnectionFacts, written: Iterable[Backend]) -> Relations:
        """Return what can be known, in a connection's database, of what some rows show as written."""
        written = tuple(written)
        relations = {oid for backend in written for oid in backend.written}
        schemas = frozenset(oid for backend in written for oid in backend.schemas)
        observer, dbname = self.servers.observer(facts.server), facts.dbname
        if observer is None and (behind := self._pgbouncer.behind(facts)) is not None:
            observer, dbname = behind
        if observer is None:
            return Relations(schemas=schemas)
        try:
            rows = observer.visit(dbname, _RELATIONS, _oids(relations), _oids(schemas))
        except ObserverError:
            return Relations(schemas=schemas)  # the database is gone already: nothing can be named any more
        found = {int(oid or 0): (name or "", kind or "") for oid, name, kind in rows}
        lasting = frozenset(oid for oid in schemas if found.get(oid, ("", ""))[1] == "n")
        return Relations({oid: named for oid, named in found.items() if oid in relations}, lasting)

    def terminate(self, facts: Iterable[ConnectionFacts]) -> None:
        """End the backends of some connections."""
        for connection in facts:
            observer = self.servers.observer(connection.server)
            if observer is not None and connection.backend_pid:
                try:
                    observer.terminate([connection.backend_pid])
                except ObserverError as error:
                    self.servers.give_up(connection.server, error)

    def _strangers(
        self, server: Server, databases: dict[str, int], known_among: Known, expected: int | None
    ) -> frozenset[tuple[int, str | None]] | None:
        """Return the backends that this process has not opened; None where the quick look says: as before.

        Without the number to expect there is no quick look.
        """
        if (observer := self.servers.observer(server)) is None:
            return frozenset()
        try:
            if expected is not None:
                number, self._has_transaction_ids[server] = observer.count(databases)
                if number == sum(databases.values()) + expected and server in self._before:
                    return None
            present, self._has_transaction_ids[server] = observer.present(databases)
            known = known_among(pid for pid, _ in present)
            return frozenset(identity for identity in present if identity[0] not in known)
        except ObserverError as error:
            self.servers.give_up(server, error)
            return frozenset()

    def _that_came(self, server: Server, rows: list[Backend]) -> list[Backend]:
        """Leave out those who were there before `begin`, in a database that nobody looked at then."""
        unlooked = [row.pid for row in rows if row.datname not in self._began_with.get(server, ())]
        if not unlooked or (observer := self.servers.observer(server)) is None:
            return rows
        try:
            younger = observer.younger(unlooked, Clock.monotonic() - self._began_at)
        except ObserverError as error:
            self.servers.give_up(server, error)
            return []
        return [row for row in rows if row.pid not in unlooked or row.pid in younger]

    def _ask(self, server: Server, pids: list[int]) -> tuple[Backend, ...] | None:
        rows, observer = self._rows(server, pids), self.servers.observer(server)
        if rows is not None and observer is not None:
            self._complain_of_hidden_rows(server, observer, rows)
        return rows

    def _rows(self, server: Server, pids: list[int]) -> tuple[Backend, ...] | None:
        if (observer := self.servers.observer(server)) is None:
            return None
        try:
            return observer.backends(pids)
        except ObserverError as error:
            self.servers.give_up(server, error)
            return None

    def _complain_of_hidden_rows(self, server: Server, observer: Observer, rows: tuple[Backend, ...]) -> None:
        hidden = next((row for row in rows if row.state is None and row.query == "<insufficient privilege>"), None)
        identity = observer.identity
        if hidden is None or identity is None:
            return
        self.servers.give_up(server, _may_not_see(identity.user, hidden.usename))


_RELATIONS: Final = """
    select oid::text, relname, case relpersistence when 't' then 't' else relkind::text end
    from pg_catalog.pg_class where oid = any($1::oid[])
    union all
    select oid::text, nspname, 'n' from pg_catalog.pg_namespace where oid = any($2::oid[]) and nspname !~ '^pg_temp_'
"""


def _oids(oids: Iterable[int]) -> str:
    return "{" + ",".join(str(oid) for oid in oids) + "}"


def _databases(watched: Watched) -> dict[Server, frozenset[str]]:
    return {server: frozenset(databases) for server, databases in watched.items()}


def _may_not_see(user: str, other: str | None) -> str:
    return (
        f"role {user!r} may not see what role {other!r} does in pg_stat_activity.\n"
        f"  Let it look: GRANT pg_monitor TO {user};\n"
        "  or give pgleak another role with --pgleak-dsn (pgleak_dsn, PGLEAK_DSN)."
    )
