"""What is said of a transaction that was left open on a connection that lives on. Pure."""

from __future__ import annotations

from pytest_pgleak.findings import Finding
from pytest_pgleak.views import Ending


def ended(finding: Finding) -> str:
    """Say that nothing ended it."""
    if finding.began is not None:
        return "the test ended; nothing has called commit() or rollback() since the connection was opened"
    if finding.ending is Ending.CLOSED:
        return f"{finding.owner.describe()} left it open for the tests; nothing called commit() or rollback() meanwhile"
    return f"{finding.owner.describe()} ended; nothing called commit() or rollback()"


def fix(finding: Finding) -> str:
    """Say what to change."""
    is_async = finding.connection is not None and finding.connection.is_async
    wait, with_ = ("await ", "async with") if is_async else ("", "with")
    if finding.began is not None:
        return (
            f"call `{wait}conn.rollback()` in a function-scoped fixture, after the `yield`; or open it with"
            f" `autocommit=True`; or `{wait}conn.commit()` in the test"
        )
    if finding.ending is Ending.CLOSED:
        return f"call `{wait}conn.commit()` before the `yield`, or open it with `autocommit=True`"
    if finding.transaction_status == "INERROR":
        return f"call `{wait}conn.rollback()` when a statement fails, or run it inside `{with_} conn.transaction():`"
    return f"call `{wait}conn.commit()` before it ends, or write inside `{with_} conn.transaction():`"
