"""What pgleak asks a server about locks and connections, beside its checkpoints: SQL, and rows as values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_pgleak.hangs.lock_waits import Lock, LockWait, PreparedTransaction
from pytest_pgleak.hangs.slots import Client, Limits

if TYPE_CHECKING:
    from pytest_pgleak.observer import Observer

# pg_locks and pg_blocking_pids may be read by every role. Since when a lock is waited for is known from PostgreSQL 14
# on (`waitstart`, NULL for an instant at first); before that the statement's own age has to do.
_LOCK_WAITS: Final = """
    select a.pid, a.datname, a.query, a.query_start::text, extract(epoch from clock_timestamp() - s.since),
        l.locktype, l.mode, l.relation, l.transactionid::text, l.classid::bigint, l.objid::bigint, l.objsubid,
        array_to_string(pg_blocking_pids(a.pid), ' ')
    from pg_locks l
    join pg_stat_activity a on a.pid = l.pid
    cross join lateral (
        select case when to_jsonb(l) ? 'waitstart' then (to_jsonb(l) ->> 'waitstart')::timestamptz
            else a.query_start end
    ) s(since)
    where not l.granted and (a.pid = any($1::int[]) or a.datname = any($2::text[]))
      and s.since <= clock_timestamp() - $3::float8 * interval '1 second'
    order by s.since
"""
_BLOCKERS: Final = """
    select pid, extract(epoch from clock_timestamp() - xact_start), coalesce(backend_type, 'client backend'),
        coalesce(wait_event_type = 'Lock', false)
    from pg_stat_activity
    where pid = any($1::int[])
"""
# A prepared transaction has no backend: its locks have no pid. What joins them is `virtualtransaction`, and one of them
# is the lock on its own transaction id. (That `virtualtransaction` is `-1/xid`, as the manual has it, is true only
# after a restart: measured with 15 and 18.)
_PREPARED: Final = """
    select distinct p.gid, p.database, p.owner, extract(epoch from clock_timestamp() - p.prepared), h.mode
    from pg_locks w
    join pg_locks h on h.granted and h.pid is null and h.locktype = w.locktype
      and (h.database, h.relation, h.page, h.tuple, h.virtualxid, h.transactionid, h.classid, h.objid, h.objsubid)
        is not distinct from
          (w.database, w.relation, w.page, w.tuple, w.virtualxid, w.transactionid, w.classid, w.objid, w.objsubid)
    join pg_locks x on x.pid is null and x.locktype = 'transactionid' and x.virtualtransaction = h.virtualtransaction
    join pg_prepared_xacts p on p.transaction = x.transactionid
    where w.pid = any($1::int[]) and not w.granted
"""
_CLIENTS: Final = """
    select pid, application_name, usename, datname
    from pg_stat_activity
    where backend_type = 'client backend' or backend_type is null
"""
_LIMITS: Final = """
    select current_setting('max_connections'), current_setting('superuser_reserved_connections'),
        (select rolconnlimit from pg_roles where rolname = $1),
        (select datconnlimit from pg_database where datname = $2)
"""

STATEMENTS: Final = {
    "pgleak_lock_waits": _LOCK_WAITS,
    "pgleak_blockers": _BLOCKERS,
    "pgleak_prepared": _PREPARED,
    "pgleak_clients": _CLIENTS,
    "pgleak_limits": _LIMITS,
}

_RELATION_NAME: Final = "select oid::regclass::text from pg_catalog.pg_class where oid = $1::oid"


@dataclass(frozen=True, slots=True)
class BlockerFacts:
    """What else is to be known of a backend that is in the way.

    Attributes:
        transaction_age: Seconds since its transaction began; None where it has none, or where nobody may know.
        backend_type: As ``autovacuum worker``; whose statements nobody has sent.
        waits: Whether it waits for a lock itself.
    """

    transaction_age: float | None = None
    backend_type: str = "client backend"
    waits: bool = False


def lock_waits(
    observer: Observer, pids: Iterable[int], databases: Iterable[str], seconds: float
) -> tuple[LockWait, ...]:
    """Ask who has been waiting for a lock, of some backends and in some databases.

    Args:
        observer: Whom to ask.
        pids: The backends.
        databases: The databases.
        seconds: How long at least.

    Raises:
        ObserverError: As `Observer.connect`.
    """
    rows = observer.ask("pgleak_lock_waits", pids, databases, str(seconds))
    return tuple(
        LockWait(
            int(row[0] or 0),
            row[1],
            row[2],
            row[3],
            float(row[4] or 0),
            Lock(row[5] or "", row[6] or "", _number(row[7]), row[8], _advisory_key(row[5], row[9], row[10], row[11])),
            tuple(dict.fromkeys(int(pid) for pid in (row[12] or "").split())),
        )
        for row in rows
    )


def blocker_facts(observer: Observer, pids: Iterable[int]) -> dict[int, BlockerFacts]:
    """Ask what else is to be known of backends that are in the way.

    Raises:
        ObserverError: As `Observer.connect`.
    """
    return {
        int(pid or 0): BlockerFacts(None if age is None else float(age), kind or "", waits == "t")
        for pid, age, kind, waits in observer.ask("pgleak_blockers", pids)
    }


def prepared_transactions(observer: Observer, pid: int) -> tuple[PreparedTransaction, ...]:
    """Ask which prepared transactions hold a lock on what a backend waits for.

    Raises:
        ObserverError: As `Observer.connect`.
    """
    return tuple(
        PreparedTransaction(gid or "", database or "", owner or "", float(seconds or 0), mode or "")
        for gid, database, owner, seconds, mode in observer.ask("pgleak_prepared", [pid])
    )


def relation_name(observer: Observer, database: str | None, oid: int) -> str | None:
    """Ask for the name of a relation, on a short connection to its database; None where there is none to be had."""
    from pytest_pgleak.observer import ObserverError

    if database is None:
        return None
    try:
        rows = observer.visit(database, _RELATION_NAME, str(oid))
    except ObserverError:
        return None
    return rows[0][0] if rows else None


def clients(observer: Observer) -> tuple[Client, ...]:
    """Ask who is connected.

    Raises:
        ObserverError: As `Observer.connect`.
    """
    return tuple(
        Client(int(pid or 0), application_name or "", role or "", database or "")
        for pid, application_name, role, database in observer.ask("pgleak_clients")
    )


def limits(observer: Observer, role: str, database: str) -> Limits:
    """Ask how many connections the server, a role and a database may have.

    Raises:
        ObserverError: As `Observer.connect`.
    """
    ((most, reserved, of_role, of_database),) = observer.ask("pgleak_limits", role, database)
    return Limits(int(most or 0), int(reserved or 0), _limit(of_role), _limit(of_database))


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _limit(text: str | None) -> int | None:
    # -1 stands for no limit.
    return None if text is None or int(text) < 0 else int(text)


def _advisory_key(locktype: str | None, classid: str | None, objid: str | None, objsubid: str | None) -> str | None:
    # One bigint in two halves, or two integers, signed each (PostgreSQL manual, `pg_locks`).
    if locktype != "advisory" or classid is None or objid is None:
        return None
    high, low = int(classid), int(objid)
    if objsubid == "1":
        return str(_signed(high << 32 | low, 64))
    return f"{_signed(high, 32)}, {_signed(low, 32)}"


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >= 1 << (bits - 1) else value
