"""The rules for transactions that have ended: which write was lost, which return was careless. Pure."""

from __future__ import annotations

from pytest_pgleak.events import Moment
from pytest_pgleak.kinds import COMMIT_AFTER_RESPONSE, RETURNED_IN_TRANSACTION, WRITE_LOST
from pytest_pgleak.requests import Request
from pytest_pgleak.transactions import How, Transaction
from pytest_pgleak.views import Ending, View

_NOBODY_ASKED = (How.CLOSE, How.POOL, How.COLLECTED)


def kind_of(transaction: Transaction, view: View, test_failed: bool) -> str | None:
    """Judge how a transaction ended.

    Args:
        transaction: The transaction.
        view: The ledger, for what else has happened.
        test_failed: Whether the test failed by itself: what it was in the middle of is no mistake of its own.

    Returns:
        A kind, or None where all is well.
    """
    if _is_isolation(transaction):
        return None
    if transaction.committed:
        late = transaction.after_response and not transaction.began_after_response and transaction.wrote is not None
        return COMMIT_AFTER_RESPONSE if late and _was_promised(transaction, request_of(transaction)) else None
    if transaction.wrote is not None and _is_lost(transaction, view, test_failed):
        return WRITE_LOST
    return RETURNED_IN_TRANSACTION if transaction.how is How.POOL else None


def request_of(transaction: Transaction) -> Request | None:
    """Return the request that a transaction belongs to."""
    return transaction.work.request or transaction.ended.request


def _is_isolation(transaction: Transaction) -> bool:
    """Tell whether a test or its fixtures roll back on purpose, so that the next test starts afresh."""
    holder = transaction.holder
    if holder is not None and _is_a_fixtures_own(holder):
        return True
    if _is_a_fixtures_own(transaction.ended):
        return True
    if transaction.forced:
        return True
    # Opened by the test itself, lent to a request through `dependency_overrides`, ended by the test itself.
    return (
        holder is not None
        and holder.owner.what == "call"
        and holder.request is None
        and transaction.work.request is not None
        and transaction.ended.request is None
    )


def _is_a_fixtures_own(moment: Moment) -> bool:
    return moment.owner.what == "fixture" and moment.request is None


def _is_lost(transaction: Transaction, view: View, test_failed: bool) -> bool:
    request = request_of(transaction)
    if request is None and transaction.cause not in (None, "GeneratorExit"):
        return False  # an exception goes to whoever called: he is told
    if transaction.how is How.COLLECTED:
        return _is_found_nowhere_else(transaction, view) and not _was_told_of_failure(transaction, test_failed)
    if transaction.how in _NOBODY_ASKED:
        gave_up = transaction.cause not in (None, "GeneratorExit") or transaction.status == "INERROR"
        made_good = gave_up and _made_good(transaction, request, view)
        return not _was_told_of_failure(transaction, test_failed) and not made_good
    if transaction.how is How.COMMIT and transaction.error is None:  # answered ROLLBACK
        return not _was_told_of_failure(transaction, test_failed) and not _made_good(transaction, request, view)
    if transaction.how is How.COMMIT:
        return _was_promised(transaction, request) and not _made_good(transaction, request, view)
    if transaction.how is not How.ROLLBACK:
        return False
    if request is None:
        # A generator that its caller left: the code after its `yield` never ran.
        return transaction.cause == "GeneratorExit" and not _was_told_of_failure(transaction, test_failed)
    if transaction.cause is None and _is_by_an_override(transaction, request):
        return False
    return _was_told_of_success(request) and not _made_good(transaction, request, view)


def _was_told_of_failure(transaction: Transaction, test_failed: bool) -> bool:
    request = request_of(transaction)
    if request is None:
        # What the failure of a test interrupted is ended afterwards, by a finalizer or by the garbage collector.
        return test_failed and (transaction.how is How.COLLECTED or transaction.ended.owner != transaction.work.owner)
    if request.method == "WEBSOCKET":
        return request.failed
    return not _was_told_of_success(request)  # neither was whoever has not been told anything


def _was_told_of_success(request: Request) -> bool:
    # An exception that comes after the whole answer (a background task's, a dependency's exit) reaches no client.
    return request.status is not None and request.status < 400 and (request.answered or not request.failed)


def _was_promised(transaction: Transaction, request: Request | None) -> bool:
    """Tell whether the client holds a good answer for a COMMIT that failed, however the request went on."""
    if request is None or request.status is None or request.status >= 400:
        return False
    return bool(transaction.after_response) or not request.failed


def _made_good(transaction: Transaction, request: Request | None, view: View) -> bool:
    """Tell whether a later transaction of the same request committed a write: a retry that succeeded."""
    return request is not None and any(
        other.committed and other.wrote is not None and other.ended.at > transaction.ended.at
        for other in view.transactions
        if request_of(other) is request
    )


def _is_by_an_override(transaction: Transaction, request: Request) -> bool:
    """Tell whether a dependency override of the test rolls back, with no exception around: it isolates the test."""
    return any(code in request.overrides for code, _ in transaction.ended.stack)


def _is_found_nowhere_else(transaction: Transaction, view: View) -> bool:
    """Tell whether no finding about the dropped connection itself says that its write was lost."""
    pool = view.pools.get(transaction.pool) if transaction.pool is not None else None
    return transaction.pool is not None and (pool is None or pool.ending is Ending.DROPPED)
