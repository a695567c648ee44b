"""Databases of one test each: made before it, dropped after it has been checked."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

from pytest_pgleak.known_servers import OBSERVER_NAME
from pytest_pgleak.postgres import Dsn, Postgres, explained, fail, remember
from pytest_pgleak.servers import ServerError, conninfo, libpq
from pytest_pgleak.servers.databases import (
    create_database,
    create_database_on,
    creation,
    drop_database,
    removal,
    with_dbname,
)
from pytest_pgleak.servers.unattended import Unattended

if TYPE_CHECKING:
    from pytest_pgleak.descriptors import Places
    from pytest_pgleak.state import State

_KEPT = 1
"""Database of an earlier test.

One that was used by the test that has just ended may have a backend that is still exiting. For it DROP DATABASE would
wait 100 ms (``CountOtherDBBackends`` in PostgreSQL's ``procarray.c``), and no view shows a backend to its very end.
"""


def fresh_database(state: State, server: Postgres, worker_dsn: str) -> str:
    """Clone the worker's database for one test: as `pgleak_schema` made it, or without that as it is now."""
    from psycopg.conninfo import conninfo_to_dict

    if state.fresh is None or state.fresh.process != os.getpid():
        # A child of fork() that runs a test has neither its parent's connections nor what was made for its parent.
        state.fresh = databases_of(state, server)
        state.at_end(state.fresh.close)
    worker = str(conninfo_to_dict(worker_dsn).get("dbname"))
    template = state.templates.get(worker)
    trouble = name = ""
    try:
        name = state.fresh.copy_of(worker) if template is None else state.fresh.copy_of_lasting(template)
    except ServerError as error:
        trouble = explained(str(error), template or worker)
    fail("pgleak_fresh_dsn", trouble)
    remember(state, server, name)
    state.after_teardown.append(lambda: _retire(state, server, name))
    return Dsn(with_dbname(server.dsn, name))


def _retire(state: State, server: Postgres, name: str) -> None:
    state.own_databases.discard(name)
    state.watched_databases.discard((state.observers.servers.server_of(server.dsn), name))
    # Not in a child of fork() that has left the test in its middle: the database is still its parent's.
    if state.fresh is not None and state.fresh.process == os.getpid():
        state.fresh.retire(name)


def databases_of(state: State, server: Postgres) -> FreshDatabases:
    """Return what makes and drops databases on a server."""
    if server.owned:
        return FreshDatabasesAhead(server.dsn, state.places)
    return FreshDatabases(server.dsn)


class FreshDatabases:
    """Makes and drops databases while the tests wait for it, on a server that is somebody else's.

    Args:
        server_dsn: Its maintenance database.

    Attributes:
        process: The pid of the process that this is for.
    """

    def __init__(self, server_dsn: str) -> None:
        self.process = os.getpid()
        self._server_dsn = server_dsn
        self._retired: list[str] = []
        self._refused: list[str] = []

    def copy_of(self, template: str) -> str:
        """Copy a database as it is now, and return the name of the copy.

        Raises:
            ServerError: The server refuses.
        """
        name = new_name()
        create_database(self._server_dsn, name, template)
        return name

    def copy_of_lasting(self, template: str) -> str:
        """Copy a database that nobody ever changes or connects to.

        Raises:
            ServerError: As `copy_of`.
        """
        return self.copy_of(template)

    def retire(self, name: str) -> None:
        """Drop a database whose test has ended, or the one of the test before."""
        self._retired.append(name)
        if len(self._retired) <= _KEPT:
            return
        name = self._retired.pop(0)
        try:
            drop_database(self._server_dsn, name)
        except ServerError:
            self._refused.append(name)  # tried again at the end, which tells if it stays

    def close(self) -> None:
        """Drop all that is left.

        Raises:
            ServerError: The server refuses; the message names each one that stays.
        """
        left, self._retired, self._refused = self._retired + self._refused, [], []
        troubles = []
        for name in left:
            try:
                drop_database(self._server_dsn, name)
            except ServerError as error:
                troubles.append(str(error))
        if troubles:
            raise ServerError("\n".join(troubles))


class FreshDatabasesAhead(FreshDatabases):
    """Does both while the tests run, on a server of ours: what is not finished or dropped in the end goes with it.

    The copy for the next test is made as soon as the one before it was handed out, where its template is one that
    nobody changes. It is nobody's until then.

    Args:
        server_dsn: The server's maintenance database.
        places: Keep a place for the two connections.
    """

    def __init__(self, server_dsn: str, places: Places) -> None:
        super().__init__(server_dsn)
        dsn = conninfo.with_default(server_dsn, "application_name", OBSERVER_NAME)
        self._maker = Unattended(dsn, places.vacated, places.returned)
        self._remover = Unattended(dsn, places.vacated, places.returned)
        self._copies = 0
        self._ahead: tuple[str, str] | None = None
        self._leaving = ""

    def copy_of(self, template: str) -> str:
        """Copy a database as it is now, on the connection that is there."""
        if self._maker.answer():
            self._give_up_what_is_ahead()
        name = new_name()
        conn = self._maker.connection()
        try:
            create_database_on(conn, name, template)
        except ServerError:
            if conn.status == libpq.pq().ConnStatus.OK:
                raise
            return super().copy_of(template)  # somebody has terminated all connections but his own
        return name

    def copy_of_lasting(self, template: str) -> str:
        """Hand out the copy that was made ahead, if there is one, and have the next one made."""
        name = self._take(template) or self.copy_of(template)
        self._copies += 1
        if self._copies > 1:  # a run of one test needs no further
            following = new_name()
            if self._maker.send(lambda conn: creation(conn, following, template)):
                self._ahead = following, template
        return name

    def retire(self, name: str) -> None:
        """Have the database of the test before dropped, without waiting for it.

        Raises:
            ServerError: One that was to be dropped before is still there, and stays.
        """
        self._retired.append(name)
        refused, self._leaving = self._leaving if self._remover.answer() else "", ""
        if len(self._retired) > _KEPT:
            leaving = self._retired.pop(0)
            if self._remover.send(lambda conn: removal(conn, leaving)):
                self._leaving = leaving
            else:
                refused = leaving
        if refused:
            # It may have a prepared transaction, which not even FORCE drops with it.
            drop_database(self._server_dsn, refused)

    def close(self) -> None:
        """Let go of the server, which takes all of them with it."""
        self._maker.close()
        self._remover.close()

    def _take(self, template: str) -> str:
        if self._ahead is None:
            return ""
        name, origin = self._ahead
        if not self._maker.answer() and origin == template:
            self._ahead = None
            return name
        self._give_up_what_is_ahead()
        return ""

    def _give_up_what_is_ahead(self) -> None:
        self._maker.close()
        if self._ahead is not None:
            self._retired.append(self._ahead[0])  # nobody knows whether it was made
            self._ahead = None


def new_name() -> str:
    """Return a name that no database has."""
    return f"pgleak_fresh_{uuid.uuid4().hex[:12]}"
