"""What the observer asks a server, and how the answers become values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pytest_pgleak.activity import Backend
from pytest_pgleak.hangs import lock_queries
from pytest_pgleak.prepared import queries as prepared_queries

_COLUMNS: Final = """
    pid, backend_start::text, datname, usename, application_name, client_addr::text, client_port, state,
    backend_xid::text, query, extract(epoch from clock_timestamp() - state_change)
"""
_BY_PID: Final = f"""
    select {_COLUMNS}, (
        select string_agg(distinct mode, ' ') from pg_locks
        where pg_locks.pid = a.pid and granted and (relation >= 16384 or locktype = 'advisory')
    ), null
    from pg_stat_activity a
    where pid = any($1::int[])
"""  # noqa: S608 - made of constants; relations below oid 16384 are the system's own
# The function below the view: it reads one row where the view reads all. DML takes RowExclusiveLock, DDL a stronger one
# (PostgreSQL manual, section 13.3.1). Whoever makes a relation locks its schema, so that nobody drops it meanwhile.
_WRITES: Final = f"""
    select {_COLUMNS.replace("datname, usename", "null, null").replace("client_addr::text, client_port", "null, null")},
    null, written, schemas
    from pg_stat_get_activity($1::int), (
        select string_agg(relation::text, ' ') filter (where locktype = 'relation' and mode in (
                'RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')) as written,
            string_agg(objid::text, ' ') filter (
                where locktype = 'object' and classid = 'pg_namespace'::regclass) as schemas
        from pg_locks where pg_locks.pid = $1 and granted
    ) locks
"""  # noqa: S608 - made of constants
# The function below the view, and one value for all rows: with 500 other backends 1 ms, the view's columns take 6.
# Others on a shared server come from other machines; what comes from this one may be a subprocess of the test.
# Of those whose rows its role may not read, the observer sees no time, type or address; what has no user is no client.
_PRESENT: Final = """
    select string_agg(pid || ' ' || coalesce(backend_start::text, ''), ','), txid_current_snapshot(), age('3'::xid)
    from pg_stat_get_activity(null)
    where datid in (select oid from pg_database where datname = any($1::text[]))
      and pid <> pg_backend_pid()
      and (backend_type = 'client backend' or backend_type is null) and usesysid is not null
      and application_name <> 'pgleak observer'
      and client_addr is not distinct from inet_client_addr()
"""
_YOUNGER: Final = """
    select pid from pg_stat_get_activity(null)
    where pid = any($1::int[]) and clock_timestamp() - backend_start < $2::float8 * interval '1 second'
"""
# Without the observer itself, where the tests use the maintenance database that it is in.
_NUMBER: Final = """
    select coalesce(sum(pg_stat_get_db_numbackends(oid)) - count(*) filter (where datname = current_database()), 0),
        txid_current_snapshot(), age('3'::xid)
    from pg_database where datname = any($1::text[])
"""
_TERMINATE: Final = "select count(pg_terminate_backend(pid)) from unnest($1::int[]) pid"
_WHO_AM_I: Final = """
    select current_user, pg_has_role('pg_read_all_stats', 'usage'), inet_client_addr()::text, pg_backend_pid(),
        pg_postmaster_start_time()::text, current_setting('max_connections')::int,
        exists (select from pg_stat_activity where pid = pg_backend_pid())
"""

STATEMENTS: Final = {
    "pgleak_by_pid": _BY_PID,
    "pgleak_writes": _WRITES,
    "pgleak_present": _PRESENT,
    "pgleak_younger": _YOUNGER,
    "pgleak_number": _NUMBER,
    "pgleak_terminate": _TERMINATE,
    "pgleak_who": _WHO_AM_I,
    **lock_queries.STATEMENTS,
    **prepared_queries.STATEMENTS,
}
"""The prepared statements, by their names."""

Rows = list[tuple[str | None, ...]]


def has_transaction_ids(snapshot: str | None, age: str | None) -> bool:
    """Tell whether some transaction of a server that has not ended has a transaction id, as one prepared always has.

    To ask for that takes 2 µs, for ``pg_prepared_xacts`` itself 12.

    Args:
        snapshot: What ``txid_current_snapshot()`` says: it begins with the oldest id that is in use.
        age: How far the next id to be given out is from 3, the first of all.
    """
    oldest, next_one = int((snapshot or "0").partition(":")[0]), int(age or 0) + 3
    return (oldest ^ next_one) & 0xFFFFFFFF != 0


def array(values: Iterable[object]) -> bytes:
    """Write an array literal."""
    quoted = ('"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values)
    return ("{" + ",".join(quoted) + "}").encode()


def rows_of(result: Any) -> Rows:
    """Read all rows of a result, as text."""
    return [
        tuple(_text(result.get_value(row, column)) for column in range(result.nfields)) for row in range(result.ntuples)
    ]


def _text(value: bytes | None) -> str | None:
    return None if value is None else bytes(value).decode(errors="replace")


def backends_of(rows: Rows) -> tuple[Backend, ...]:
    """Make values of the rows of a statement that reads ``_COLUMNS``."""
    return tuple(
        Backend(
            int(row[0] or 0),
            row[1],
            row[2],
            row[3],
            row[4],
            row[5],
            None if row[6] is None else int(row[6]),
            row[7],
            row[8],
            row[9],
            None if row[10] is None else float(row[10]),
            tuple((row[11] or "").split()),
            _oids(row[12]),
            _oids(row[13]) if len(row) > 13 else (),
        )
        for row in rows
    )


def _oids(text: str | None) -> tuple[int, ...]:
    # Each once, though a relation may be locked in several modes.
    return tuple(dict.fromkeys(int(oid) for oid in (text or "").split()))
