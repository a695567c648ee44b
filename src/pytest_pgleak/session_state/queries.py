"""Looks into a session, and undoes what was left in it, on its own idle connection.

Advisory locks apart, nobody else can see it: settings, temporary relations and channels are the session's own. So the
question is put on the application's connection, through libpq itself: none of it passes through psycopg's classes, its
prepared statements, its transactions. It is one statement outside of any transaction.

Names are qualified and so are operators: ``search_path`` is among the things that may have been changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pytest_pgleak.answers import results_of
from pytest_pgleak.session_state.state import BORN, Leftover, SessionState, Setting, What
from pytest_pgleak.sql import OWN

_LOOK: Final = (
    OWN  # noqa: S608 - made of constants
    + """
select 'setting', name, setting operator(pg_catalog.||) u, reset_val operator(pg_catalog.||) u
  from pg_catalog.pg_settings, lateral (
    select case when unit operator(pg_catalog.~) '^[A-Za-z]+$' then unit else '' end) as units(u)
  where source operator(pg_catalog.=) 'session'
union all select 'role', pg_catalog.current_setting('role'), session_user, null
union all select 'channel', channel, null, null from pg_catalog.pg_listening_channels() channel
union all select 'cursor', name, null, null from pg_catalog.pg_cursors where is_holdable
union all select 'lock', classid::pg_catalog.text, objid::pg_catalog.text,
    objsubid::pg_catalog.text operator(pg_catalog.||) mode
  from pg_catalog.pg_locks
  where locktype operator(pg_catalog.=) 'advisory' and granted
    and pid operator(pg_catalog.=) pg_catalog.pg_backend_pid()
union all select 'relation', relname, relkind::pg_catalog.text, null from pg_catalog.pg_class c
  where relnamespace operator(pg_catalog.=) pg_catalog.pg_my_temp_schema()
    and relkind operator(pg_catalog.=) any ('{r,p,v,S}'::pg_catalog."char"[])
    and not exists (
      select from pg_catalog.pg_depend d
      where d.objid operator(pg_catalog.=) c.oid and deptype operator(pg_catalog.=) any ('{a,i}'::pg_catalog."char"[])
        and d.classid operator(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
        and relkind operator(pg_catalog.=) 'S')
"""
)
_BACKEND: Final = "union all select 'backend', pg_catalog.pg_backend_pid()::pg_catalog.text, null, null\n"
_PREPARED: Final = "union all select 'prepared', name, statement, null from pg_catalog.pg_prepared_statements\n"
_CUSTOM: Final = "union all select 'custom', {name}, pg_catalog.current_setting({name}, true), null\n"
_RELATIONS: Final[dict[str, What]] = {"v": "temporary view", "S": "temporary sequence"}


def look(connection: Any, customs: Iterable[str] = ()) -> SessionState | None:
    """Read the state of a session.

    Args:
        connection: An idle connection that nobody else uses at this moment.
        customs: Names of settings of the application's own to read.

    Returns:
        The state; None where the server gave no answer, or where a pooler has had another session answer.
    """
    parts = [_LOOK, _BACKEND, *(_CUSTOM.format(name=_literal(name)) for name in sorted(customs))]
    rows = _ask(connection, "".join(parts))
    if not rows or ("backend", str(connection.pgconn.backend_pid), "", "") not in rows:
        return None  # or it is the session of some other backend, behind a pooler
    return _state(rows, connection.pgconn.user.decode(errors="replace"))


def look_at(pgconn: Any, customs: Iterable[str] = (), first: str = "") -> tuple[int, SessionState] | None:
    """Read the state of whichever session answers: behind a pooler it is one that the last client has left.

    Args:
        pgconn: A ``PGconn`` of the plugin's own.
        customs: As for `look`.
        first: A statement to execute before.

    Returns:
        The pid of the backend that has answered, and the state; None where there was no answer.
    """
    customs_of = (_CUSTOM.format(name=_literal(name)) for name in sorted(customs))
    rows = _rows_of(pgconn, "".join([first, _LOOK, _PREPARED, _BACKEND, *customs_of]))
    pid = next((int(row[1]) for row in rows or () if row[0] == "backend"), None)
    return None if pid is None or rows is None else (pid, _state(rows, pgconn.user.decode(errors="replace")))


def look_at_defaults(connection: Any, customs: Iterable[str]) -> SessionState | None:
    """Read what a reset would bring for the role and for some custom settings.

    It is reset in a transaction that is rolled back: PostgreSQL then puts everything back as it was.

    Args:
        connection: As for `look`.
        customs: Names of the settings.
    """
    names = sorted(customs)
    resets = "".join(f"reset {_dotted(name)};" for name in names)
    asked = "".join(_CUSTOM.format(name=_literal(name)) for name in names)
    rows = _ask(
        connection,
        f"{OWN} begin; reset session authorization; reset role; {resets}"
        f" select 'role', pg_catalog.current_setting('role'), session_user, null {asked}; rollback",
    )
    if rows is None and connection.info.transaction_status.name != "IDLE":
        _ask(connection, f"{OWN} rollback")
    return None if not rows else _state(rows, connection.pgconn.user.decode(errors="replace"))


def undo(connection: Any, left: Iterable[Leftover], before: SessionState) -> None:
    """Take away what was left, and nothing else: psycopg's prepared statements stay.

    Args:
        connection: As for `look`.
        left: What was left.
        before: The state to go back to.
    """
    quietly = connection.pgconn.notice_handler
    connection.pgconn.notice_handler = None  # "drop cascades to …" is nothing for the application's own handlers
    try:
        # The role first: it may lack the right to undo the others. Each for itself: one may fail.
        for each in sorted(left, key=lambda each: each.what not in ("session authorization", "role")):
            _ask(connection, f"{OWN} {_undoing(each, before)}")
    finally:
        connection.pgconn.notice_handler = quietly


def undo_at(pgconn: Any, left: Iterable[Leftover]) -> None:
    """Take away what was left in whichever session answers, inside a transaction that holds it."""
    for each in sorted(left, key=lambda each: each.what != "role"):
        _rows_of(pgconn, f"{OWN} savepoint pgleak; {_undoing(each, BORN)}")
        _rows_of(pgconn, f"{OWN} rollback to pgleak" if _has_failed(pgconn) else f"{OWN} release pgleak")


def _has_failed(pgconn: Any) -> bool:
    from psycopg import pq

    return bool(pgconn.transaction_status == pq.TransactionStatus.INERROR)


def _undoing(left: Leftover, before: SessionState) -> str:
    name = _identifier(left.name)
    if left.what == "session authorization":
        return f"set session authorization {_identifier(before.session_user) if before.session_user else 'default'}"
    if left.what == "role":
        return f"set role {_identifier(before.role) if before.role not in (None, 'none') else 'none'}"
    if left.what == "advisory lock":
        return "select" if before.locks else "select pg_catalog.pg_advisory_unlock_all()"
    if left.what == "channel":
        return f"unlisten {name}"
    if left.what == "cursor":
        return f"close {name}"
    if left.what == "prepared statement":
        return f"deallocate {name}"
    if left.what == "setting":
        known = before.settings.get(left.name)
        value = known.value if known is not None else before.custom.get(left.name)
        if not value:
            return f"reset {_dotted(left.name)}"
        return f"select pg_catalog.set_config({_literal(left.name)}, {_literal(value)}, false)"
    return f"drop {left.what.removeprefix('temporary ')} if exists pg_temp.{name} cascade"


def _state(rows: list[tuple[str, ...]], login: str) -> SessionState:
    def of(kind: str) -> list[tuple[str, ...]]:
        return [row[1:] for row in rows if row[0] == kind]

    role, user = next(((role, user) for role, user, _ in of("role")), ("none", login))
    return SessionState(
        settings={name: Setting(value, reset) for name, value, reset in of("setting")},
        role=role,
        session_user="" if user == login else user,
        custom={name: value for name, value, _ in of("custom")},
        locks=frozenset(_lock(*row) for row in of("lock")),
        channels=frozenset(name for name, *_ in of("channel")),
        relations=frozenset((name, _RELATIONS.get(kind, "temporary table")) for name, kind, _ in of("relation")),
        cursors=frozenset(name for name, *_ in of("cursor")),
        prepared={name: statement for name, statement, _ in of("prepared")},
    )


def _lock(classid: str, objid: str, how: str) -> str:
    # One bigint is kept in two halves, and objsubid tells it from a pair (PostgreSQL manual, pg_locks).
    shared = " (shared)" if how.endswith("ShareLock") else ""
    if how.startswith("1"):
        key = int(classid) << 32 | int(objid)
        return f"{key - (1 << 64) if key >> 63 else key}{shared}"
    first, second = (int(half) - (1 << 32) if int(half) >> 31 else int(half) for half in (classid, objid))
    return f"({first}, {second}){shared}"


def _ask(connection: Any, statement: str) -> list[tuple[str, ...]] | None:
    return _rows_of(connection.pgconn, statement)


def _rows_of(pgconn: Any, statement: str) -> list[tuple[str, ...]] | None:
    """Execute statements; return the rows of all of them, or None where one failed."""
    from psycopg import Error, pq

    try:
        results = results_of(pgconn, statement.encode())
    except Error:  # closed by the server, or by somebody in another thread
        return None
    if any(result.status == pq.ExecStatus.FATAL_ERROR for result in results) or not results:
        return None
    return [
        tuple((result.get_value(row, column) or b"").decode(errors="replace") for column in range(result.nfields))
        for result in results
        for row in range(result.ntuples)
    ]


def _literal(text: str) -> str:
    # In this form a backslash means the same whatever `standard_conforming_strings` says.
    return " e'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _dotted(name: str) -> str:
    return ".".join(_identifier(part) for part in name.split("."))


def _identifier(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
