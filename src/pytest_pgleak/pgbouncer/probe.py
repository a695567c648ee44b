"""Looks at PgBouncer's idle server connections as its next client would: what it sees there, others have left.

Through connections of the plugin's own, with the application's database and user, so that PgBouncer gives them the
same server connections. In a transaction each of them keeps the one that it was given, and the next gets another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from pytest_pgleak.session_state.queries import look_at, undo_at
from pytest_pgleak.session_state.state import Leftover, SessionState
from pytest_pgleak.sql import OWN

_MOST: Final = 8
"""Server connections that are looked at: PgBouncer gives away first what it has got back last."""


def look_at_idle(
    conninfo: str, idle: Collection[int], customs: Iterable[str], wanted: Collection[int], *, holds: bool = True
) -> dict[int, SessionState]:
    """Read the state of idle server connections.

    Args:
        conninfo: Leads through PgBouncer, as the application does.
        idle: The pids of those that are idle. For more than these PgBouncer would have to open new ones.
        customs: Names of settings of the application's own to read.
        wanted: The pids of those that are to be looked at. The others are in the way of them.
        holds: Whether a transaction holds a server connection. Where only statements are pooled, PgBouncer refuses it,
            and throws the server connection away; then the one that was used last is all that can be seen.

    Returns:
        The states by the pids of their backends; those that could be read.
    """
    names, seen = tuple(customs), {}

    def look(pgconn: Any) -> bool:
        found = look_at(pgconn, names, f"{OWN} begin; " if holds else "")
        if found is not None:
            seen[found[0]] = found[1]
        # A new one: somebody else was given the others.
        return found is not None and found[0] in idle and not seen.keys() >= set(wanted)

    _each(conninfo, len(idle), look)
    return seen


def undo_on_idle(conninfo: str, idle: Collection[int], pids: Iterable[int], left: Iterable[Leftover]) -> None:
    """Take away what was left on idle server connections.

    Args:
        conninfo: As for `look_at_idle`.
        idle: As for `look_at_idle`.
        pids: On which ones.
        left: What was left.
    """
    wanted, things = set(pids), tuple(left)

    def undo(pgconn: Any) -> bool:
        found = look_at(pgconn, (), f"{OWN} begin; ")
        if found is not None and found[0] in wanted:
            undo_at(pgconn, things)
            wanted.discard(found[0])
        return found is not None and found[0] in idle and bool(wanted)

    _each(conninfo, len(idle), undo, f"{OWN} commit")


def _each(conninfo: str, number: int, action: Callable[[Any], bool], last: str = f"{OWN} rollback") -> None:
    from psycopg import Error, pq

    from pytest_pgleak.answers import results_of

    with contextlib.ExitStack() as stack:
        held: list[Any] = []
        for _ in range(min(number, _MOST)):
            pgconn = pq.PGconn.connect(conninfo.encode())
            stack.callback(pgconn.finish)
            pgconn.notice_handler = None
            if pgconn.status != pq.ConnStatus.OK:
                break  # PgBouncer is full; what was seen so far is seen
            held.append(pgconn)
            if not action(pgconn) or pgconn.transaction_status == pq.TransactionStatus.IDLE:
                break
        for pgconn in held:
            # Not closed in a transaction: PgBouncer would throw the server connection away.
            with contextlib.suppress(Error):
                if pgconn.transaction_status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR):
                    results_of(pgconn, last.encode())
