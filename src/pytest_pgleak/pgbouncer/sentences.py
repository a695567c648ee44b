"""What PgBouncer's account of a connection means, in words. Pure."""

from __future__ import annotations

from pytest_pgleak.pgbouncer.through import Through


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
