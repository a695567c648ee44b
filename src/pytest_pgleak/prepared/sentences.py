"""What a finding about a prepared transaction means, in words. Pure."""

from __future__ import annotations

from typing import Final

from pytest_pgleak.findings import Finding
from pytest_pgleak.prepared.gids import literal
from pytest_pgleak.prepared.left import LeftPrepared
from pytest_pgleak.sql import one_line

_MOST_TABLES: Final = 5
_MOST_WAITERS: Final = 3


def name(finding: Finding) -> str:
    """Name the transaction, where no line of code does."""
    return f"gid {literal(_left(finding).gid)}"


def server(finding: Finding) -> str:
    """Say what the server lists, and what it keeps locked."""
    left, row = _left(finding), _left(finding).row
    if row is None:
        return f"gid {literal(left.gid)} by the client's account; the server could not be asked"
    parts = [
        f"gid {literal(row.gid)}",
        f"prepared {row.seconds:.1f} s ago in database {row.database} by role {row.owner}",
        f"xid {row.transaction}",
    ]
    if left.locks:
        parts.append("locks " + _tables(left.locks))
    return ", ".join(parts)


def blocks(finding: Finding) -> list[tuple[str, str]]:
    """Say who waits for it, each with the label of its line."""
    left = _left(finding)
    lines = [("blocks", _waiter(waiter.pid, waiter.query)) for waiter in left.waiters[:_MOST_WAITERS]]
    if (more := len(left.waiters) - _MOST_WAITERS) > 0:
        lines.append(("", f"and {more} more"))
    return lines


def undo(finding: Finding) -> str:
    """Say how it can be removed."""
    return f"in database {_left(finding).database}: ROLLBACK PREPARED {literal(_left(finding).gid)};"


def ended(finding: Finding) -> str:
    """Say that it did not end."""
    left = _left(finding)
    if not left.is_known:
        return f"still there after {finding.owner.describe()}; another process or another driver prepared it"
    if left.by_sql:
        return f"{finding.owner.describe()} ended; nothing ran COMMIT PREPARED or ROLLBACK PREPARED"
    return f"{finding.owner.describe()} ended; nothing called tpc_commit() or tpc_rollback()"


def fix(finding: Finding) -> str:
    """Say what to change."""
    left = _left(finding)
    if not left.is_known:
        return "let who prepares it finish it: COMMIT PREPARED, or ROLLBACK PREPARED where it fails in between"
    if left.by_sql:
        gid = literal(left.gid)
        return f"run COMMIT PREPARED {gid} when all have prepared, ROLLBACK PREPARED {gid} when one has failed"
    wait = "await " if finding.connection is not None and finding.connection.is_async else ""
    return f"call `{wait}conn.tpc_commit()` when all have prepared, `{wait}conn.tpc_rollback()` when one has failed"


def _left(finding: Finding) -> LeftPrepared:
    assert finding.prepared is not None
    return finding.prepared


def _tables(locks: tuple[tuple[str, str], ...]) -> str:
    shown = ", ".join(f"{table} {mode}" for table, mode in locks[:_MOST_TABLES])
    return shown + (f" and {len(locks) - _MOST_TABLES} more" if len(locks) > _MOST_TABLES else "")


def _waiter(pid: int, query: str | None) -> str:
    return f"pid {pid}, that waits for it" + (f": {one_line(query)}" if query else "")
