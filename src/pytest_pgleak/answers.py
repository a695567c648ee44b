"""Statements to a server that may not answer: waits for a while, then cancels, then gives the connection up.

By the simple query protocol, which PgBouncer's console knows as well; through libpq itself.
"""

from __future__ import annotations

import selectors
from typing import Any, Final

from pytest_pgleak.clock import Clock

_PATIENCE: Final = 2.0
"""Seconds for an answer. It takes one millisecond; only a server that hangs needs more."""


def results_of(pgconn: Any, statement: bytes) -> list[Any]:
    """Execute statements.

    Args:
        pgconn: A ``PGconn`` that nobody else uses at this moment. It is closed where no answer comes.
        statement: SQL, one statement or several.

    Returns:
        A ``PGresult`` each; nothing where no answer came.

    Raises:
        psycopg.Error: It is closed.
    """
    # Not `exec_`: that waits for ever. Each call here is short, and one on a connection that somebody closes meanwhile
    # is an error and no crash.
    pgconn.send_query(statement)
    results: list[Any] = []
    with selectors.DefaultSelector() as selector:
        selector.register(pgconn.socket, selectors.EVENT_READ)
        for last_attempt in (False, True):
            give_up_at = Clock.monotonic() + _PATIENCE
            while _has_answer(pgconn, selector, give_up_at):
                if (result := pgconn.get_result()) is None:
                    return results
                results.append(result)
            if not last_attempt:
                pgconn.get_cancel().cancel()
    # What is half done cannot be handed out any more: the pool puts another connection in its place.
    pgconn.finish()
    return []


def _has_answer(pgconn: Any, selector: selectors.BaseSelector, give_up_at: float) -> bool:
    while True:
        pgconn.flush()
        pgconn.consume_input()
        if not pgconn.is_busy():
            return True
        if (left := give_up_at - Clock.monotonic()) <= 0:
            return False
        selector.select(left)
