"""The server fixtures' insides: which server, and databases on it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pgleak.observer import ObserverError
from pytest_pgleak.servers import Plan, RunningServer, ServerError, ServerRequest, plan, start
from pytest_pgleak.servers.databases import create_database, drop_database, redacted, with_dbname

if TYPE_CHECKING:
    from pytest_pgleak.settings import Settings
    from pytest_pgleak.state import State


_MAY_NOT_CREATE = "permission denied to create database"


class Dsn(str):
    """A DSN that does not show its password in the arguments that pytest prints below a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        from psycopg.conninfo import conninfo_to_dict

        text = str(self)
        return repr(redacted(text) if conninfo_to_dict(text).get("password") else text)


@dataclass(frozen=True, slots=True)
class Postgres:
    """The server of ``pgleak_postgres``.

    Attributes:
        dsn: libpq conninfo or URI. Not shown in ``repr``, for it may hold a password.
        version: The server's version, as "18.6".
        source: Where it came from: ``dsn``, ``embedded``, ``local``, ``docker`` or what a hook says.
        owned: Whether the plugin started it.
    """

    dsn: str
    version: str
    source: str
    owned: bool = False

    def __repr__(self) -> str:
        return f"<Postgres {self.version} from {self.source} ({redacted(self.dsn)})>"


def server_plan(settings: Settings, run_id: str | None = None) -> Plan:
    """Choose a server without starting it.

    Args:
        settings: The settings.
        run_id: What the processes have in common that are to share one; None for a server of one's own.

    Raises:
        ServerError: There is none to be had.
    """
    return plan(
        ServerRequest(
            settings.server,
            settings.dsn,
            settings.bindir,
            settings.docker_image,
            settings.dsn_option,
            run_id,
            tcp=settings.tcp,
        )
    )


def start_server(config: pytest.Config) -> Any:
    """Start the server that the settings ask for: the plugin's own answer to ``pytest_pgleak_server``."""
    from pytest_pgleak.plugin import get_state

    # xdist gives all workers of a run, and no others, the same id.
    run_id = getattr(config, "workerinput", {}).get("testrunuid")
    return start(server_plan(get_state(config).settings, run_id))


def obtain_server(state: State) -> Postgres:
    """Ask the hook for a server and begin to observe it. Failures are shown without a traceback."""
    trouble = ""
    try:
        supplied = state.config.hook.pytest_pgleak_server(config=state.config)
        server = _as_postgres(supplied)
        state.observers.servers.add_configured(server.dsn)
    except ServerError as error:
        trouble = str(error)
    except ObserverError as error:
        trouble = f"the server cannot be observed: {error}"
    fail("pgleak_postgres", trouble)
    stop = getattr(supplied, "stop", None)
    if callable(stop):
        # After the last checkpoint, not in the fixture's teardown: a server that is gone can tell nothing.
        state.at_end(stop, last=True)
    return server


def _as_postgres(supplied: Any) -> Postgres:
    if isinstance(supplied, str):
        return Postgres(Dsn(supplied), "unknown", "pytest_pgleak_server")
    return Postgres(
        Dsn(supplied.dsn),
        str(getattr(supplied, "version", "unknown")),
        str(getattr(supplied, "source", "pytest_pgleak_server")),
        isinstance(supplied, RunningServer) and supplied.owned,
    )


def worker_database(state: State, server: Postgres, worker: str) -> str:
    """Create this worker's database; on a given server whose role may not, use the one that was given."""
    name = f"pgleak_{worker}_{uuid.uuid4().hex[:8]}"
    trouble = ""
    try:
        _create(state, server, name, _template(state, server, name))
    except ServerError as error:
        trouble = str(error)
    if trouble:
        if server.owned or _MAY_NOT_CREATE not in trouble:
            fail("pgleak_dsn", trouble)
        return _given_database(state, server)
    return Dsn(with_dbname(server.dsn, name))


def _template(state: State, server: Postgres, worker: str) -> str | None:
    """Make the database that this worker's are copies of: nobody ever connects to it, so that it can be copied."""
    source = state.settings.schema
    if source is None:
        return None
    from pytest_pgleak.database_schema.source import apply_schema

    name = f"{worker}_template"
    _create(state, server, name)
    apply_schema(source, state.config.rootpath, with_dbname(server.dsn, name))
    state.templates[worker] = name
    return name


def _create(state: State, server: Postgres, name: str, template: str | None = None) -> None:
    try:
        create_database(server.dsn, name, template)
    except ServerError as error:
        raise ServerError(explained(str(error), template or "")) from None
    remember(state, server, name)
    if not server.owned:
        state.at_end(lambda: drop_database(server.dsn, name))


def explained(trouble: str, template: str) -> str:
    """Say what to do about a database that could not be created."""
    if _MAY_NOT_CREATE in trouble:
        return f"{trouble}\nA database for one test needs a role that may create databases: ALTER ROLE … CREATEDB."
    if "is being accessed by other users" not in trouble:
        return trouble
    if template.endswith("_template"):
        return (
            f"{trouble}\nWhat pgleak_schema names has left a connection to it open: close it, or dispose of its engine,"
            " before it returns."
        )
    return (
        f"{trouble}\nA database is cloned only while nobody is connected to it, and something keeps a connection to"
        " pgleak_dsn.\nLet pgleak make the schema (pgleak_schema = a file of SQL, or module:callable): then the clones"
        " are made from a template of their own."
    )


def _given_database(state: State, server: Postgres) -> str:
    state.note(
        "the role of the given server may not create databases (CREATEDB), so the tests run in the database that"
        f" was given ({redacted(server.dsn)}), and leaked backends are left alone there"
    )
    trouble = ""
    if (source := state.settings.schema) is not None:
        trouble = f"pgleak_schema = {source} needs a database of its own: ALTER ROLE … CREATEDB."
    fail("pgleak_dsn", trouble)
    return Dsn(server.dsn)


def fail(fixturename: str, trouble: str) -> None:
    """Fail the set-up of a fixture, if there is any trouble."""
    # Never from inside an `except`: pytest would show the same text twice.
    if trouble:
        pytest.fail(f"{fixturename}: {trouble}", pytrace=False)


def remember(state: State, server: Postgres, name: str) -> None:
    """Take a database for one of the plugin's own, in which nobody else has anything to do."""
    state.own_databases.add(name)
    state.watched_databases.add((state.observers.servers.server_of(server.dsn), name))
