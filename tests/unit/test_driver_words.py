"""What the fixes say where asyncpg or psycopg2 is used. That the code in them works, tests/compat shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import FIXTURE, LIFESPAN, connection_facts, finding, frame, lost, pool_facts, transaction

from pytest_pgleak import sentences, transaction_sentences
from pytest_pgleak.findings import PoolState
from pytest_pgleak.libraries.asyncpg_words import ASYNCPG, POOL
from pytest_pgleak.libraries.psycopg2_words import PSYCOPG2
from pytest_pgleak.requests import RequestInfo
from pytest_pgleak.transactions import How
from pytest_pgleak.views import Ending, TaskInfo

OPEN, CLOSED, DROPPED = Ending.OPEN, Ending.CLOSED, Ending.DROPPED
REQUEST = RequestInfo(1, "GET", "/visit/", "/visit/", "add_visit", 200)
TASK = TaskInfo("Task-7", "listen", "/project/app/listen.py", 20)
GENERATOR = frame(generator=True)

ASYNCPG_CONN = replace(connection_facts(), class_name="Connection", library=ASYNCPG)
PSYCOPG2_CONN = replace(connection_facts(is_async=False), class_name="connection", library=PSYCOPG2)
ASYNCPG_POOL = PoolState(replace(pool_facts(), class_name="Pool", library=POOL), OPEN, 1, 1)
PSYCOPG2_POOL = PoolState(
    replace(pool_facts(is_async=False), class_name="ThreadedConnectionPool", library=PSYCOPG2), OPEN, 1, 1
)

CLOSING = "`with contextlib.closing(psycopg2.connect(…)) as conn, conn:`"
ONLY = "; `with conn:` by itself only commits"
ATOMIC = "`async with conn.transaction():`"


def asyncpg(kind, ending=OPEN, subject="connection", **more):
    return finding(kind, subject, ending, **{"connection": ASYNCPG_CONN, **more})


def psycopg2(kind, ending=OPEN, subject="connection", **more):
    return finding(kind, subject, ending, **{"connection": PSYCOPG2_CONN, **more})


def asyncpg_out(ending=OPEN, **more):
    return asyncpg("connection-not-returned", ending, "checkout", pool=ASYNCPG_POOL, **more)


def psycopg2_out(ending=OPEN, **more):
    return psycopg2("connection-not-returned", ending, "checkout", pool=PSYCOPG2_POOL, **more)


def left_pool(state, ending=OPEN, **more):
    return finding("pool-not-closed", "pool", ending, pool=replace(state, ending=ending), **more)


def left_open(make, status="INTRANS"):
    return make("transaction-left-open", opened=frame(), transaction_status=status)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (asyncpg("connection-dropped", DROPPED), "call `await conn.close()` in a `finally:`"),
        (asyncpg("connection-not-closed"), "call `await conn.close()` in a `finally:`"),
        (
            asyncpg("connection-not-closed", request=REQUEST),
            (
                "call `await conn.close()` in a `finally:`;"
                " what is to outlive the request is opened and closed by the lifespan"
            ),
        ),
        (
            asyncpg("connection-dropped", DROPPED, dependency="get_conn", request=REQUEST),
            "`yield` it in a `try:`, and call `await conn.close()` in the `finally:`",
        ),
        (
            asyncpg("connection-dropped", DROPPED, owner=FIXTURE, origin=GENERATOR),
            "put the `yield` into a `try:`, and call `await conn.close()` in the `finally:`",
        ),
        (
            asyncpg("connection-not-closed", owner=LIFESPAN),
            "put the lifespan's `yield` into a `try:`, and call `await conn.close()` in the `finally:`",
        ),
        (
            asyncpg("connection-not-closed", task=TASK),
            "end the task before its request or lifespan ends, and call `await conn.close()` in a `finally:` of it",
        ),
        (
            asyncpg_out(),
            "use `async with pool.acquire() as conn:`, or call `await pool.release(conn)` in a `finally:`",
        ),
        (
            left_pool(ASYNCPG_POOL),
            "use `async with asyncpg.create_pool(…) as pool:`, or close it in a `finally:`",
        ),
        (
            left_pool(ASYNCPG_POOL, owner=LIFESPAN),
            "put the lifespan's `yield` inside `async with asyncpg.create_pool(…) as pool:`",
        ),
        (left_open(asyncpg), f"write inside {ATOMIC}, which commits when it ends"),
        (left_open(asyncpg, "INERROR"), f"write inside {ATOMIC}, which rolls back when a statement fails"),
        (psycopg2("connection-dropped", DROPPED), f"use {CLOSING}, or close it in a `finally:`{ONLY}"),
        (
            psycopg2("connection-dropped", DROPPED, dependency="get_conn", origin=GENERATOR, request=REQUEST),
            f"put the `yield` inside {CLOSING}{ONLY}",
        ),
        (
            psycopg2("connection-not-closed", request=REQUEST),
            f"use {CLOSING}; what is to outlive the request is opened and closed by the lifespan",
        ),
        (psycopg2_out(), f"call `pool.putconn(conn)` in a `finally:`{ONLY}"),
        (psycopg2_out(CLOSED), "give it back with `pool.putconn(conn)` instead of closing it"),
        (
            psycopg2_out(dependency="get_conn", request=REQUEST),
            f"`yield` it in a `try:`, and call `pool.putconn(conn)` in the `finally:`{ONLY}",
        ),
        (
            left_pool(PSYCOPG2_POOL),
            "call `pool.closeall()` in a `finally:`, or after the `yield` of a fixture or lifespan",
        ),
        (
            left_pool(PSYCOPG2_POOL, request=REQUEST),
            "open one pool for the whole application and call `pool.closeall()` when the lifespan ends",
        ),
        (left_open(psycopg2), "call `conn.commit()` before it ends, or write inside `with conn:`"),
        (
            left_open(psycopg2, "INERROR"),
            "call `conn.rollback()` when a statement fails, or run it inside `with conn:`",
        ),
    ],
)
def test_what_to_change(found, expected):
    assert sentences.fix(found) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (left_open(asyncpg), "the test ended; nothing committed it or rolled it back"),
        (left_open(psycopg2), "the test ended; nothing called commit() or rollback()"),
        (left_pool(ASYNCPG_POOL, DROPPED), "garbage-collected; nothing called close() on the pool"),
        (left_pool(PSYCOPG2_POOL, DROPPED), "garbage-collected; nothing called closeall() on the pool"),
        (psycopg2_out(CLOSED), "closed, but not returned with putconn(); the pool has lost this slot for ever"),
    ],
)
def test_how_it_ended(found, expected):
    assert sentences.ended(found) == expected


def lost_by(facts, how, kind="write-lost", pool=None, request=None, **more):
    return lost(transaction(how, **more), connection=facts, pool=pool, kind=kind, request=request)


FAILED = {"status": "INERROR", "failed_by": "CheckViolationError"}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lost_by(ASYNCPG_CONN, How.CLOSE), f"start the transaction with {ATOMIC}, which commits"),
        (lost_by(ASYNCPG_CONN, How.POOL, pool=ASYNCPG_POOL), f"start the transaction with {ATOMIC}, which commits"),
        (
            lost_by(ASYNCPG_CONN, How.POOL, "returned-in-transaction", ASYNCPG_POOL, wrote=False),
            f"commit or roll back before `release()`, or use {ATOMIC}, which does",
        ),
        (
            lost_by(ASYNCPG_CONN, How.COMMIT, **FAILED),
            (
                "do not swallow CheckViolationError: the whole transaction failed with that statement;"
                f" run what may fail inside another {ATOMIC}"
            ),
        ),
        (
            lost_by(ASYNCPG_CONN, How.ROLLBACK, request=REQUEST, cause="SerializationError"),
            (
                "do not swallow SerializationError: run the whole transaction again,"
                " and answer 503 when that has failed, too"
            ),
        ),
        (
            lost_by(ASYNCPG_CONN, How.ROLLBACK, request=REQUEST),
            "commit before that, or answer with a 4xx or 5xx",
        ),
        (
            lost_by(ASYNCPG_CONN, How.ROLLBACK, cause="GeneratorExit"),
            f"end {ATOMIC} as soon as it is written, or let FastAPI run the generator with `Depends`",
        ),
        (
            lost_by(ASYNCPG_CONN, How.COMMIT, "commit-after-response", request=REQUEST, after_response=True),
            (
                f"write inside {ATOMIC} in the path operation, or declare the dependency with"
                ' `Depends(…, scope="function")`: its exit code then runs before the response'
            ),
        ),
        (
            lost_by(PSYCOPG2_CONN, How.CLOSE),
            f"call `conn.commit()` before `close()`, or use {CLOSING}, which commits",
        ),
        (
            lost_by(PSYCOPG2_CONN, How.POOL, pool=PSYCOPG2_POOL),
            "call `conn.commit()` before `putconn()`, or use `with conn:`, which commits",
        ),
        (
            lost_by(PSYCOPG2_CONN, How.POOL, "returned-in-transaction", PSYCOPG2_POOL, wrote=False),
            "commit or roll back before `putconn()`, or use `with conn:`, which does",
        ),
        (
            lost_by(PSYCOPG2_CONN, How.COMMIT, status="INERROR", failed_by="CheckViolation"),
            (
                "do not swallow CheckViolation: the whole transaction failed with that statement;"
                " run what may fail after a SAVEPOINT of its own"
            ),
        ),
    ],
)
def test_what_to_change_about_a_transaction(found, expected):
    assert transaction_sentences.fix(found) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lost_by(ASYNCPG_CONN, How.CLOSE), "close() with the transaction open; nothing had committed it"),
        (lost_by(PSYCOPG2_CONN, How.CLOSE), "close() with the transaction open; nothing had called commit()"),
        (
            lost_by(ASYNCPG_CONN, How.COMMIT, **FAILED),
            "COMMIT answered ROLLBACK: CheckViolationError had failed the transaction; asyncpg reports no error",
        ),
        (
            lost_by(PSYCOPG2_CONN, How.COMMIT, status="INERROR"),
            "COMMIT answered ROLLBACK; psycopg2 reports no error",
        ),
    ],
)
def test_how_a_transaction_ended(found, expected):
    assert transaction_sentences.ended(found, "") == expected


@pytest.mark.parametrize("library", [ASYNCPG, POOL, PSYCOPG2])
def test_no_word_of_another_library(library):
    words = library.words("Connection", True)
    texts = [getattr(words, name) for name in words.__slots__]
    assert not any("psycopg." in text or "aclosing" in text for text in texts)
