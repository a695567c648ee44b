"""What PgBouncer's account of a connection means, in words. Pure."""

from __future__ import annotations

from pytest_pgleak.findings import Finding
from pytest_pgleak.pgbouncer.through import Through
from pytest_pgleak.session_state.state import SharedServer


def client(through: Through) -> str:
    """Say which client a connection is, and what it has."""
    mode = f", in {through.pool_mode} mode" if through.pool_mode else ""
    return f"client {through.client}{mode}; {_has(through)}"


def _has(through: Through) -> str:
    if through.server_pid is not None:
        return f"it has a server connection to itself (pid {through.server_pid})"
    if through.is_waiting:
        return "it waits for a server connection"
    return "it has no server connection at this moment"


def ended(shared: SharedServer) -> str:
    """Say where it was left."""
    pids = ", ".join(str(pid) for pid in shared.pids)
    where = f"a server connection of PgBouncer's (pid {pids})"
    if len(shared.pids) > 1:
        where = f"server connections of PgBouncer's (pids {pids})"
    return f"left on {where} in {shared.pool_mode} mode; another client has seen it there, and the next one inherits it"


def fix(finding: Finding) -> str | None:
    """Say what to change where the usual remedy does not help; None where it does."""
    assert finding.shared is not None
    first, mode = finding.left[0], finding.shared.pool_mode
    if mode == "session":
        return "set `server_reset_query = DISCARD ALL` in PgBouncer, or undo it before the connection is closed"
    with_ = "async with" if finding.connection is not None and finding.connection.is_async else "with"
    inside = f"inside `{with_} conn.transaction():`"
    if first.what == "channel":
        return f"LISTEN does not work in {mode} mode: listen on a connection that does not lead through PgBouncer"
    if first.what == "cursor":
        instead = "fetch all rows at once" if mode == "statement" else f"read it {inside}, without `withhold=True`"
        return f"a cursor WITH HOLD does not work in {mode} mode: {instead}"
    if first.what == "prepared statement":
        return _fix_prepared(finding)
    if mode == "statement":
        otherwise = "; or `alter role … set` it for good" if first.what == "setting" else ""
        return f"do without it: in statement mode there are no transactions that it could end with{otherwise}"
    if first.what == "setting":
        local = f"`set_config('{first.name}', …, true)`" if first.is_custom else f"`set local {first.name} …`"
        return f"{local} {inside}: it ends there; or `alter role … set` it for good"
    if first.what in ("temporary view", "temporary sequence", "session authorization"):
        return f"do without it in {mode} mode: the next statement may run on another server connection"
    return None


def _fix_prepared(finding: Finding) -> str:
    newer = "or let PgBouncer 1.21 or later follow them, with its `max_prepared_statements`"
    if finding.library.name == "psycopg":
        return f"connect with `prepare_threshold=None`, {newer}"
    if finding.library.name == "asyncpg":
        return f"connect with `statement_cache_size=0`, {newer}"
    return f"do not prepare statements in {finding.shared.pool_mode if finding.shared else 'this'} mode"
