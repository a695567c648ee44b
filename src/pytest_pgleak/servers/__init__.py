"""A PostgreSQL server for the tests: choose one (`plan`), bring it up (`start`), take it away (`RunningServer.stop`).

Four sources, in the order that ``auto`` tries them: a server that the user names with a DSN, binaries that a wheel
brings, binaries that are installed on the system, and a container. Importing this package imports neither psycopg nor
testcontainers; `plan` does not either.
"""

from __future__ import annotations

from pytest_pgleak.servers.planning import plan
from pytest_pgleak.servers.values import Plan, RunningServer, ServerError, ServerRequest

__all__ = ["Plan", "RunningServer", "ServerError", "ServerRequest", "plan", "start"]


def start(plan: Plan) -> RunningServer:
    """Bring up what `plan` chose and wait until it accepts connections.

    Args:
        plan: The choice to carry out.

    Returns:
        The server; the caller stops it. Whatever happens to this process, nothing of an owned server outlives it by
        more than about a second.

    Raises:
        ServerError: If it cannot be reached or started; the message ends with what to do about it.
    """
    if plan.source == "dsn":
        from pytest_pgleak.servers.given import start_given

        return start_given(plan)
    if plan.source == "docker":
        from pytest_pgleak.servers.container import start_container

        return start_container(plan)
    if plan.request.plain:
        from pytest_pgleak.servers.plain import start_plain

        return start_plain(plan)
    # Last, because its modules need what only POSIX has (fcntl, pwd).
    from pytest_pgleak.servers.owned import start_owned

    return start_owned(plan)
