"""What a finding about an ended transaction says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import backend, connection_facts, lost, pool_state, transaction

from pytest_pgleak import transaction_sentences as sentences
from pytest_pgleak.requests import RequestInfo
from pytest_pgleak.transactions import How

AT = " at app/db.py:26 in get_conn"
OK = RequestInfo(1, "POST", "/visit/", status=200)
CONFLICT = RequestInfo(1, "POST", "/visit/", status=409)
SYNC = connection_facts(is_async=False)
RETURNED, LATE = "returned-in-transaction", "commit-after-response"
FAILED = {"status": "INERROR", "failed_by": "UniqueViolation"}


def test_the_line_is_where_it_wrote_or_else_began():
    assert sentences.verb(lost()) == "wrote"
    assert sentences.verb(lost(transaction(How.POOL, wrote=None), kind=RETURNED)) == "began"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lost(request=OK), ": the client was told that all is well"),
        (
            lost(transaction(began_after_response=True), request=OK),
            ": the client was told that all is well, before it was even begun",
        ),
        (lost(request=replace(OK, status=303)), ": the client was told that all is well"),
        (lost(request=CONFLICT), ""),
        (lost(request=replace(OK, status=None)), ""),
        (lost(), ""),
        (lost(request=OK, kind=LATE), ": sent before the commit, that might still have failed"),
        (lost(request=OK, kind=RETURNED), ""),
    ],
)
def test_what_the_client_believes(found, expected):
    assert sentences.told(found) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lost(written=("visits",)), "pid 4711, 1 transaction (xid 739) that wrote visits: rolled back"),
        (lost(written=("a", "b")), "pid 4711, 1 transaction (xid 739) that wrote a, b: rolled back"),
        (lost(), "pid 4711, 1 transaction (xid 739): rolled back"),
        (
            lost(*(transaction(evidence=backend(backend_xid=str(xid), written=(1,))) for xid in range(7, 9))),
            "pid 4711, 2 transactions (xid 7, 8): rolled back",
        ),
        (
            lost(*(transaction(evidence=backend(backend_xid=str(xid), written=(1,))) for xid in range(1, 9))),
            "pid 4711, 8 transactions (xid 1, 2, 3, 4, 5, …): rolled back",
        ),
        (lost(kind=LATE, written=("visits",)), "pid 4711, 1 transaction (xid 739) that wrote visits: committed"),
        (
            lost(transaction(How.POOL, wrote=None), kind=RETURNED),
            "pid 4711, 1 transaction (INTRANS), nothing written: rolled back",
        ),
        (
            lost(transaction(How.POOL), kind=RETURNED, written=("visits",)),
            "pid 4711, 1 transaction (xid 739) that wrote visits: rolled back",
        ),
    ],
)
def test_what_the_server_saw(found, expected):
    assert sentences.server(found) == expected


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (transaction(How.CLOSE), f"close(){AT} with the transaction open; nothing had called commit()"),
        (
            transaction(How.CLOSE, **FAILED),
            f"close(){AT} with the transaction open and failed (UniqueViolation); nothing had called commit()",
        ),
        (transaction(How.POOL), f"given back{AT} with the transaction open; the pool rolled it back"),
        (transaction(How.POOL, status="ACTIVE"), f"given back{AT} with the transaction open; the pool closed it"),
        (
            transaction(How.POOL, **FAILED),
            f"given back{AT} with the transaction open and failed (UniqueViolation); the pool rolled it back",
        ),
        (transaction(How.COLLECTED), "garbage-collected with the transaction open; nothing had called commit()"),
        (transaction(How.ROLLBACK), f"rolled back{AT}"),
        (transaction(How.ROLLBACK, cause="MailError"), f"rolled back{AT}, because of MailError"),
        (
            transaction(How.ROLLBACK, cause="MailError", after_response=True),
            f"rolled back{AT}, because of MailError, after the response had started",
        ),
        (
            transaction(How.ROLLBACK, cause="GeneratorExit"),
            f"rolled back{AT}: the caller left the generator, the code after its `yield` never ran",
        ),
        (
            transaction(How.COMMIT, **FAILED),
            f"COMMIT{AT} answered ROLLBACK: UniqueViolation had failed the transaction; psycopg reports no error",
        ),
        (transaction(How.COMMIT, status="INERROR"), f"COMMIT{AT} answered ROLLBACK; psycopg reports no error"),
        (transaction(How.COMMIT, error="UniqueViolation"), f"COMMIT{AT} failed with UniqueViolation"),
        (
            transaction(How.COMMIT, error="UniqueViolation", after_response=True),
            f"COMMIT{AT} failed with UniqueViolation, after the response had started",
        ),
    ],
)
def test_who_ended_it_and_how(ended, expected):
    assert sentences.ended(lost(ended), AT) == expected


def test_a_late_commit_has_not_failed():
    found = lost(transaction(How.COMMIT, after_response=True), kind=LATE)
    assert sentences.ended(found, AT) == f"committed{AT}, after the response had started"


FORCED = "on purpose: `async with conn.transaction(force_rollback=True):`"
BEFORE = (
    "commit before the response: call `await conn.commit()` in the path operation, or declare the dependency with"
    ' `Depends(…, scope="function")`'
)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            lost(transaction(How.CLOSE)),
            (
                "call `await conn.commit()` before `close()`, or use"
                " `async with await psycopg.AsyncConnection.connect(…) as conn:`, which commits"
            ),
        ),
        (
            lost(transaction(How.CLOSE), connection=SYNC),
            "call `conn.commit()` before `close()`, or use `with psycopg.connect(…) as conn:`, which commits",
        ),
        (
            lost(transaction(How.POOL)),
            (
                "call `await conn.commit()` before `putconn()`, or use `async with pool.connection() as conn:`,"
                " which commits"
            ),
        ),
        (
            lost(transaction(How.CLOSE), pool=pool_state()),
            (
                "call `await conn.commit()` before `putconn()`, or use `async with pool.connection() as conn:`,"
                " which commits"
            ),
        ),
        (
            lost(transaction(How.CLOSE, savepoint=transaction().began)),
            (
                "a statement before it had begun the transaction, so `conn.transaction()` was only a savepoint:"
                " call `await conn.commit()`, or connect with `autocommit=True`"
            ),
        ),
        (
            lost(transaction(How.COMMIT, **FAILED)),
            (
                "do not swallow UniqueViolation: the whole transaction failed with that statement; run what may fail"
                " inside `async with conn.transaction():`"
            ),
        ),
        (
            lost(transaction(How.CLOSE, **FAILED, savepoint=transaction().began)),
            (
                "do not swallow UniqueViolation: the whole transaction failed with that statement; run what may fail"
                " inside `async with conn.transaction():`"
            ),
        ),
        (
            lost(transaction(How.COMMIT, status="INERROR")),
            (
                "do not swallow the error: the whole transaction failed with that statement; run what may fail"
                " inside `async with conn.transaction():`"
            ),
        ),
        (
            lost(transaction(How.ROLLBACK, status="INERROR", failed_by="SerializationFailure")),
            (
                "do not swallow SerializationFailure: run the whole transaction again, and answer 503 when that has"
                " failed, too"
            ),
        ),
        (
            lost(transaction(How.COMMIT, error="UniqueViolation")),
            "do not swallow UniqueViolation: let it go on to the client as a 4xx or 5xx, or try again",
        ),
        (
            lost(transaction(How.COMMIT, error="UniqueViolation", after_response=True)),
            f"{BEFORE}; a commit that fails is then a 500",
        ),
        (
            lost(transaction(How.ROLLBACK, cause="GeneratorExit")),
            "call `await conn.commit()` as soon as it is written, or let FastAPI run the generator with `Depends`",
        ),
        (
            lost(transaction(How.ROLLBACK)),
            f"call `await conn.commit()` before that, or answer with a 4xx or 5xx; {FORCED}",
        ),
        (
            lost(transaction(How.ROLLBACK, cause="MailError")),
            f"let the exception go on to the client as a 4xx or 5xx, or commit what is to stay before it; {FORCED}",
        ),
        (
            lost(transaction(How.ROLLBACK, cause="CancelledError", status="INERROR", failed_by="CancelledError")),
            f"let the timeout go on to the client as a 4xx or 5xx, or commit what is to stay before it; {FORCED}",
        ),
        (
            lost(transaction(How.ROLLBACK, cause="MailError", after_response=True)),
            f"{BEFORE}; what fails later then takes nothing with it",
        ),
        (
            lost(transaction(How.ROLLBACK, cause="MailError", after_response=True, began_after_response=True)),
            f"let the exception go on to the client as a 4xx or 5xx, or commit what is to stay before it; {FORCED}",
        ),
        (
            lost(transaction(How.POOL, wrote=None), kind=RETURNED),
            "commit or roll back before `putconn()`, or use `async with pool.connection() as conn:`, which does",
        ),
        (
            lost(transaction(How.COMMIT, after_response=True), kind=LATE),
            (
                "call `await conn.commit()` in the path operation, or declare the dependency with"
                ' `Depends(…, scope="function")`: its exit code then runs before the response'
            ),
        ),
    ],
)
def test_what_to_change(found, expected):
    assert sentences.fix(found) == expected
