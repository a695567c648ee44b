"""What pgleak asks a server about prepared transactions: SQL, and rows as values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from pytest_pgleak.prepared.gids import literal
from pytest_pgleak.prepared.left import PreparedRow, Waiter

if TYPE_CHECKING:
    from pytest_pgleak.observer import Observer

_ROWS: Final = """
    select gid, transaction::text, extract(epoch from clock_timestamp() - prepared), owner, database
    from pg_prepared_xacts order by prepared, gid
"""
# The locks of a prepared transaction belong to no process, only to a virtual transaction; the one lock that names the
# transaction itself says which. Names of tables can be had only in their own database.
_BLOCKS: Final = """
    with mine as (
        select l.* from pg_locks l where l.granted and l.pid is null and l.virtualtransaction = (
            select virtualtransaction from pg_locks
            where locktype = 'transactionid' and transactionid = $1::xid and granted and pid is null
        )
    )
    select null, c.relname, mine.mode
    from mine join pg_class c on c.oid = mine.relation
    where mine.locktype = 'relation' and mine.relation >= 16384 and c.relkind in ('r', 'p', 'm', 'v', 'f')
    union all
    select distinct w.pid::text, a.query, null
    from pg_locks w join pg_stat_activity a on a.pid = w.pid
    where not w.granted and 0 = any(pg_blocking_pids(w.pid)) and exists (
        select from mine
        where mine.locktype = w.locktype and mine.database is not distinct from w.database
          and mine.relation is not distinct from w.relation and mine.transactionid is not distinct from w.transactionid
    )
    order by 1, 2, 3
"""
STATEMENTS: Final = {"pgleak_gids": _ROWS}

_WEAKEST_FIRST: Final = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
"""PostgreSQL manual, section 13.3.1."""


def prepared_rows(observer: Observer) -> tuple[PreparedRow, ...]:
    """Read the prepared transactions of a server, in the order in which they were prepared.

    Raises:
        ObserverError: As `Observer.connect`.
    """
    return tuple(
        PreparedRow(gid or "", transaction or "0", float(seconds or 0), owner or "", database or "")
        for gid, transaction, seconds, owner, database in observer.ask("pgleak_gids")
    )


def blocked_by(observer: Observer, row: PreparedRow) -> tuple[tuple[tuple[str, str], ...], tuple[Waiter, ...]]:
    """Ask what a prepared transaction keeps others from.

    Returns:
        The tables that it has locked, each with the strongest mode, and the backends that wait for it.

    Raises:
        ObserverError: The database cannot be reached.
    """
    rows = observer.visit(row.database, _BLOCKS, row.transaction)
    waiters = tuple(Waiter(int(pid), text) for pid, text, _ in rows if pid is not None)
    return strongest((text or "", mode or "") for pid, text, mode in rows if pid is None), waiters


def strongest(locks: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Keep of each table's locks the strongest: what was written had to be read, too."""
    modes: dict[str, str] = {}
    for table, mode in locks:
        modes[table] = max(modes.get(table, mode), mode, key=_strength)
    return tuple(sorted(modes.items(), key=lambda lock: (-_strength(lock[1]), lock[0])))


def roll_back(observer: Observer, gid: str, database: str) -> None:
    """Roll a prepared transaction back, where alone that can be done: in its own database.

    Raises:
        ObserverError: The server refuses: it is another role's, or somebody has just finished it.
    """
    observer.visit(database, f"ROLLBACK PREPARED {literal(gid)}")


def _strength(mode: str) -> int:
    return _WEAKEST_FIRST.index(mode) if mode in _WEAKEST_FIRST else len(_WEAKEST_FIRST)
