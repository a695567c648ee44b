"""What a finding about an ended transaction means, in words. Pure."""

from __future__ import annotations

from typing import Final

from pytest_pgleak.findings import Finding
from pytest_pgleak.kinds import COMMIT_AFTER_RESPONSE, RETURNED_IN_TRANSACTION, WRITE_LOST
from pytest_pgleak.libraries.library import Words, called
from pytest_pgleak.transactions import How, Transaction

# By the names of psycopg and psycopg2, and by asyncpg's.
_TRY_AGAIN: Final = frozenset(
    ("SerializationFailure", "DeadlockDetected", "SerializationError", "DeadlockDetectedError")
)


def verb(finding: Finding) -> str:
    """Return the label of the line that shows the origin."""
    return "wrote" if finding.transactions[0].wrote is not None else "began"


def told(finding: Finding) -> str:
    """Say what the client believes, behind the status of the response; empty where there is nothing to say."""
    status = finding.request.status if finding.request is not None else None
    if finding.kind == WRITE_LOST and status is not None and status < 400:
        before = ", before it was even begun" if finding.transactions[0].began_after_response else ""
        return f": the client was told that all is well{before}"
    if finding.kind == COMMIT_AFTER_RESPONSE:
        return ": sent before the commit, that might still have failed"
    return ""


def server(finding: Finding) -> str:
    """Say how many transactions, which, and what they wrote."""
    transactions = finding.transactions
    number = len(transactions)
    pid = finding.backend.pid if finding.backend is not None else finding.connection and finding.connection.backend_pid
    xids = [each.evidence.backend_xid for each in transactions if each.evidence is not None]
    known = f" (xid {', '.join(str(xid) for xid in xids[:5])}{', …' if len(xids) > 5 else ''})" if xids else ""
    wrote = f" that wrote {', '.join(finding.written)}" if finding.written else ""
    what = {WRITE_LOST: ": rolled back", COMMIT_AFTER_RESPONSE: ": committed"}.get(finding.kind, ": rolled back")
    if finding.kind == RETURNED_IN_TRANSACTION:
        wrote = f" ({finding.transaction_status}), nothing written" if not xids else wrote
    return f"pid {pid}, {number} transaction{'s' if number != 1 else ''}{known}{wrote}{what}"


def ended(finding: Finding, where: str) -> str:
    """Say who ended the transaction and how.

    Args:
        finding: The finding.
        where: The line that did it, as " at FILE:LINE in FUNCTION", or empty.
    """
    transaction = finding.transactions[0]
    if transaction.how is How.CLOSE:
        if transaction.cause == "GeneratorExit":
            return f"closed{where}: the caller left the generator, the code after its `yield` never ran"
        if transaction.cause is not None:
            return f"closed{where} because of {transaction.cause}, with the transaction open"
        return f"close(){where} with the transaction open{_failed(transaction)}; {_nobody_committed(finding.words)}"
    late = ", after the response had started" if transaction.after_response else ""
    if transaction.how is How.POOL:
        repair = "closed it" if transaction.status == "ACTIVE" else "rolled it back"
        return f"given back{where} with the transaction open{_failed(transaction)}; the pool {repair}"
    if transaction.how in (How.COLLECTED, How.KILLED):
        killed = transaction.how is How.KILLED
        what = f"worker process {finding.process} was killed" if killed else "garbage-collected"
        return f"{what} with the transaction open; {_nobody_committed(finding.words)}"
    if transaction.how is How.ROLLBACK:
        if transaction.cause == "GeneratorExit":
            return f"rolled back{where}: the caller left the generator, the code after its `yield` never ran"
        return f"rolled back{where}" + (f", because of {transaction.cause}" if transaction.cause else "") + late
    if finding.kind == COMMIT_AFTER_RESPONSE:
        return f"committed{where}{late}"
    if transaction.error is not None:
        return f"COMMIT{where} failed with {transaction.error}{late}"
    failed = f": {transaction.failed_by} had failed the transaction" if transaction.failed_by else ""
    return f"COMMIT{where} answered ROLLBACK{failed}; {finding.library.name} reports no error"


def fix(finding: Finding) -> str:
    """Say what to change."""
    words = finding.words
    if finding.kind == COMMIT_AFTER_RESPONSE:
        return (
            f"{words.to_commit} in the path operation, or declare the dependency with"
            ' `Depends(…, scope="function")`: its exit code then runs before the response'
        )
    if finding.kind == RETURNED_IN_TRANSACTION:
        return f"commit or roll back before `{called(words.give_back)}`, or use `{words.take_to_write}`, which does"
    if finding.transactions[0].how is How.KILLED:
        return f"{_commit_before_the_response(words)}; what ends the process later then loses nothing"
    return _fix_lost(finding.transactions[0], words, in_pool=finding.pool is not None)


def _fix_lost(transaction: Transaction, words: Words, *, in_pool: bool) -> str:
    if transaction.how is How.COMMIT and transaction.error is not None:
        if transaction.after_response:
            return f"{_commit_before_the_response(words)}; a commit that fails is then a 500"
        return f"do not swallow {transaction.error}: let it go on to the client as a 4xx or 5xx, or try again"
    if {transaction.error, transaction.cause, transaction.failed_by} & _TRY_AGAIN:
        failed_by = transaction.failed_by or transaction.cause
        return f"do not swallow {failed_by}: run the whole transaction again, and answer 503 when that has failed, too"
    if transaction.how in (How.ROLLBACK, How.CLOSE) and transaction.cause == "GeneratorExit":
        commit = f"call `{words.commit}`" if words.commit else f"end `{words.transaction}`"
        return f"{commit} as soon as it is written, or let FastAPI run the generator with `Depends`"
    if _failed_by_a_statement(transaction):
        return (
            f"do not swallow {transaction.failed_by or 'the error'}: the whole transaction failed with that statement;"
            f" run what may fail {_in_a_savepoint(words)}"
        )
    if transaction.how is How.ROLLBACK or (transaction.how is How.CLOSE and transaction.cause):
        return _fix_rollback(transaction, words)
    if transaction.savepoint is not None:
        return (
            "a statement before it had begun the transaction, so `conn.transaction()` was only a savepoint:"
            f" call `{words.commit}`, or connect with `autocommit=True`"
        )
    if not words.commit:
        return f"start the transaction with `{words.transaction}`, which commits"
    if in_pool or transaction.how is How.POOL:
        before = "that" if words.session_of else f"`{called(words.give_back)}`"
        return f"call `{words.commit}` before {before}, or use `{words.take_to_write}`, which commits"
    return f"call `{words.commit}` before `close()`, or use `{words.open_to_write}`, which commits"


def _fix_rollback(transaction: Transaction, words: Words) -> str:
    if transaction.cause and transaction.after_response and not transaction.began_after_response:
        return f"{_commit_before_the_response(words)}; what fails later then takes nothing with it"
    if transaction.cause is None:
        commit = f"call `{words.commit}`" if words.commit else "commit"
        remedy = f"{commit} before that, or answer with a 4xx or 5xx"
    else:
        error = "timeout" if transaction.cause == "CancelledError" else "exception"
        remedy = f"let the {error} go on to the client as a 4xx or 5xx, or commit what is to stay before it"
    return f"{remedy}; on purpose: `{words.undo_on_purpose}`" if words.undo_on_purpose else remedy


def _commit_before_the_response(words: Words) -> str:
    return (
        f"commit before the response: {words.to_commit} in the path operation, or declare the dependency with"
        ' `Depends(…, scope="function")`'
    )


def _in_a_savepoint(words: Words) -> str:
    if not words.savepoint:
        return "after a SAVEPOINT of its own"
    # Where a transaction is always such a block, there is one around it already.
    return f"inside {'another ' if not words.commit else ''}`{words.savepoint}`"


def _nobody_committed(words: Words) -> str:
    return "nothing had called commit()" if words.commit else "nothing had committed it"


def _failed_by_a_statement(transaction: Transaction) -> bool:
    if transaction.failed_by == "CancelledError":
        return False  # a timeout, that no savepoint would have confined
    return transaction.how is How.COMMIT or transaction.status == "INERROR"


def _failed(transaction: Transaction) -> str:
    return f" and failed ({transaction.failed_by})" if transaction.status == "INERROR" and transaction.failed_by else ""
