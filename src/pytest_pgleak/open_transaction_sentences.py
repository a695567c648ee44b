"""What is said of a transaction that was left open on a connection that lives on. Pure."""

from __future__ import annotations

from pytest_pgleak.findings import Finding
from pytest_pgleak.views import Ending


def ended(finding: Finding) -> str:
    """Say that nothing ended it."""
    nobody = (
        "nothing called commit() or rollback()" if finding.words.commit else "nothing committed it or rolled it back"
    )
    if finding.began is not None:
        return f"the test ended; {nobody.replace('called', 'has called', 1)} since the connection was opened"
    if finding.ending is Ending.CLOSED:
        return f"{finding.owner.describe()} left it open for the tests; {nobody} meanwhile"
    return f"{finding.owner.describe()} ended; {nobody}"


def fix(finding: Finding) -> str:
    """Say what to change."""
    words, failed = finding.words, finding.transaction_status == "INERROR"
    if not words.commit:
        does = "rolls back when a statement fails" if failed else "commits when it ends"
        return f"write inside `{words.transaction}`, which {does}"
    if finding.began is not None:
        teardown = {"tearDownClass": "tearDown", "teardown_class": "teardown_method"}.get(finding.owner.teardown or "")
        where = f"`{teardown}`" if teardown else "a function-scoped fixture, after the `yield`"
        return f"call `{words.rollback}` in {where}; or open it with `autocommit=True`; or `{words.commit}` in the test"
    if finding.ending is Ending.CLOSED:
        return f"call `{words.commit}` before the `yield`, or open it with `autocommit=True`"
    what = f"call `{words.rollback}` when a statement fails" if failed else f"call `{words.commit}` before it ends"
    if not words.transaction:
        return what
    return f"{what}, or {'run it' if failed else 'write'} inside `{words.transaction}`"
