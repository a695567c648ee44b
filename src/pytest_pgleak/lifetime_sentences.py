"""What is said of things that live as long as the process, and of those that outlive their event loop. Pure.

A pool of psycopg_pool whose loop is closed still lends what it has. It opens no other connection, for its workers are
gone, and ``close()`` raises ``RuntimeError: Event loop is closed``. An async connection of psycopg can be used and
closed in any loop. (Measured with psycopg 3.3 and psycopg_pool 3.3.)
"""

from __future__ import annotations

from pytest_pgleak.findings import Finding
from pytest_pgleak.views import Ending

POOL_WITHOUT_LOOP = "its event loop is closed: nobody can close it any more, and it opens no other connection"
_ONE_LOOP = (
    "open and close it in one event loop: in the lifespan, or in a fixture whose loop has the scope of the tests that"
    " use it"
)


def open_still(finding: Finding, state: str) -> str:
    """Say that something did not end.

    Args:
        finding: A connection, a checkout or a pool.
        state: How it stands, as "still open".
    """
    if finding.owner.outlives_tests:
        return f"it did not: a process-lifetime {finding.subject}, {state}{_loop(finding)}"
    what = "pool" if finding.subject == "pool" else "connection"
    return f"it did not: {finding.owner.describe()} ended and the {what} is {state}{_loop(finding)}"


def _loop(finding: Finding) -> str:
    if not finding.loop_is_closed:
        return ""
    if finding.subject != "pool":
        return "; the event loop that it was opened in is closed"
    if finding.library.pool_is_lazy:
        return "; its event loop is closed: the connections cannot be used or closed any more"
    return f"; {POOL_WITHOUT_LOOP}"


def fix(finding: Finding) -> str | None:
    """Say what to change; None where that does not depend on how long it lives."""
    if finding.ending is not Ending.OPEN or finding.subject not in ("connection", "checkout", "pool"):
        return None
    if finding.loop_is_closed and finding.subject == "pool":
        return (
            f"call `{finding.words.open_pool}` before the event loop ends"
            if finding.library.pool_is_lazy
            else _ONE_LOOP
        )
    if not finding.owner.outlives_tests:
        return None
    if finding.subject == "checkout":
        return "nothing, if it is meant to be out that long; else take it and give it back in one function"
    return (
        "nothing, if it is meant to live that long; else open and close it in the lifespan, or in a fixture of session"
        " scope"
    )
