from __future__ import annotations

from dataclasses import replace

import pytest
from builders import (
    CALL,
    FIXTURE,
    LIFESPAN,
    SESSION,
    backend,
    connection_facts,
    finding,
    frame,
    pool_state,
)

from pytest_pgleak import sentences
from pytest_pgleak.kinds import KINDS
from pytest_pgleak.owners import Owner
from pytest_pgleak.requests import RequestInfo
from pytest_pgleak.views import Ending, TaskInfo

OPEN, CLOSED, DROPPED = Ending.OPEN, Ending.CLOSED, Ending.DROPPED

REQUEST = RequestInfo(1, "GET", "/visit/", "/visit/", "add_visit", 200)
TASK = TaskInfo("Task-7", "listen", "/project/app/listen.py", 20)
SYNC = connection_facts(is_async=False)
RUNNING = "task 'Task-7' (listen) is still running"
PROCESS = Owner(0, "process", variable="app.db.pool")
NO_LOOP = "its event loop is closed: nobody can close it any more, and it opens no other connection"
BLOCK = Owner(5, "block", "test_a.py::test_it")


def not_closed(**more):
    return finding("connection-not-closed", ending=OPEN, **more)


def dropped(**more):
    return finding("connection-dropped", **more)


def not_returned(ending=OPEN, **more):
    return finding("connection-not-returned", "checkout", ending, **{"pool": pool_state(), **more})


def left_pool(ending=OPEN, **more):
    return finding("pool-not-closed", "pool", ending, **{"pool": pool_state(ending=ending, members=0), **more})


def in_transaction(**more):
    return finding("transaction-left-open", ending=OPEN, **{"opened": frame(), "transaction_status": "INTRANS", **more})


def untracked(**more):
    row = backend(815, application_name="psql", **more)
    return finding("untracked-backend", "backend", OPEN, origin=None, serial=815, backend=row, server_known=True)


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        (CALL, "the test"),
        (FIXTURE, "fixture 'db' (module scope)"),
        (LIFESPAN, "the application's lifespan run by fixture 'client'"),
        (Owner(4, "lifespan", "test_a.py::test_it"), "the application's lifespan"),
        (BLOCK, "the no_leaks() block"),
        (SESSION, "the process (opened at import or collection)"),
        (PROCESS, "the process (module global app.db.pool)"),
    ],
)
def test_who(owner, expected):
    assert owner.describe() == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (dropped(), "opened"),
        (not_closed(), "opened"),
        (left_pool(), "opened"),
        (not_returned(), "taken"),
        (in_transaction(), "opened"),
        (in_transaction(opened=frame(3, "db")), "began"),
        (in_transaction(opened=None, began=frame(9, "test_it")), "opened"),
    ],
)
def test_what_happened_at_the_origin(found, expected):
    assert sentences.verb(found) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (dropped(), "garbage-collected; nothing called close()"),
        (dropped(request=REQUEST, after_response=True), "garbage-collected after the response; nothing called close()"),
        (
            dropped(request=REQUEST, after_response=False),
            "garbage-collected before the response; nothing called close()",
        ),
        (dropped(after_response=False), "garbage-collected; nothing called close()"),
        (not_closed(), "it did not: the test ended and the connection is still open"),
        (
            not_closed(owner=FIXTURE),
            "it did not: fixture 'db' (module scope) ended and the connection is still open",
        ),
        (
            not_closed(owner=LIFESPAN, task=TASK),
            f"it did not: {LIFESPAN.describe()} ended and the connection is still open; {RUNNING}",
        ),
        (not_returned(), "it did not: the test ended and the connection is still out"),
        (
            not_returned(task=TASK),
            "it did not: the test ended and the connection is still out; task 'Task-7' (listen) is still running",
        ),
        (
            not_returned(DROPPED, request=REQUEST, after_response=True),
            "garbage-collected after the response while checked out; the pool has lost this slot for ever",
        ),
        (not_returned(CLOSED), "closed, but not returned with putconn(); the pool has lost this slot for ever"),
        (left_pool(), "it did not: the test ended and the pool is still open"),
        (
            left_pool(pool=pool_state(members=3)),
            "it did not: the test ended and the pool is still open, 3 connections in it",
        ),
        (left_pool(DROPPED), "garbage-collected; nothing called close() on the pool"),
        (in_transaction(), "the test ended; nothing called commit() or rollback()"),
        (in_transaction(owner=BLOCK), "the no_leaks() block ended; nothing called commit() or rollback()"),
        (
            in_transaction(began=frame(9, "test_it")),
            "the test ended; nothing has called commit() or rollback() since the connection was opened",
        ),
        (
            replace(in_transaction(owner=FIXTURE), ending=CLOSED),
            f"{FIXTURE.describe()} left it open for the tests; nothing called commit() or rollback() meanwhile",
        ),
        (untracked(), "still there after the test"),
        # What lives as long as the process, and what lives longer than its event loop.
        (not_closed(owner=SESSION), "it did not: a process-lifetime connection, still open"),
        (
            left_pool(owner=PROCESS, pool=pool_state(members=2)),
            "it did not: a process-lifetime pool, still open, 2 connections in it",
        ),
        (not_returned(owner=PROCESS), "it did not: a process-lifetime checkout, still out"),
        (left_pool(DROPPED, owner=PROCESS), "garbage-collected; nothing called close() on the pool"),
        (left_pool(loop_is_closed=True), f"it did not: the test ended and the pool is still open; {NO_LOOP}"),
        (
            left_pool(owner=PROCESS, loop_is_closed=True),
            f"it did not: a process-lifetime pool, still open; {NO_LOOP}",
        ),
        (
            not_closed(loop_is_closed=True),
            (
                "it did not: the test ended and the connection is still open;"
                " the event loop that it was opened in is closed"
            ),
        ),
        (left_pool(DROPPED, loop_is_closed=True), "garbage-collected; nothing called close() on the pool"),
    ],
)
def test_how_it_ended(found, expected):
    assert sentences.ended(found) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # With a row.
        (dropped(backend=backend(state="idle")), "pid 4711, idle"),
        (dropped(backend=backend(state=None)), "pid 4711"),
        (
            dropped(backend=backend(state="idle in transaction", backend_xid="739")),
            "pid 4711, idle in transaction, xid 739: an uncommitted write was lost",
        ),
        (
            not_closed(backend=backend(state="idle in transaction", backend_xid="739")),
            "pid 4711, idle in transaction, xid 739: an uncommitted write is held",
        ),
        (
            not_closed(backend=backend(state="idle in transaction")),
            "pid 4711, idle in transaction, nothing written",
        ),
        (
            not_closed(backend=backend(state="idle in transaction (aborted)", seconds_in_state=2.5)),
            "pid 4711, idle in transaction (aborted) for 2.5 s, nothing written",
        ),
        (not_closed(backend=backend(state="active", seconds_in_state=0.04)), "pid 4711, active"),
        (
            not_closed(backend=backend(state="idle", locks=("RowExclusiveLock", "advisory ExclusiveLock"))),
            "pid 4711, idle, locks RowExclusiveLock advisory ExclusiveLock",
        ),
        # What a dead backend had locked is free again.
        (dropped(backend=backend(state="idle", locks=("RowExclusiveLock",))), "pid 4711, idle"),
        (
            untracked(state="idle", client_port=-1),
            "pid 815, database app, application_name 'psql', from a Unix socket, idle",
        ),
        (
            untracked(state="active", client_port=40412),
            "pid 815, database app, application_name 'psql', from port 40412, active",
        ),
        # Without a row.
        (
            not_closed(server_known=True),
            "pid 4711 is gone: the server or somebody else ended it; the client never knew",
        ),
        (not_closed(server_known=False), None),
        (
            not_closed(transaction_status="INTRANS"),
            "pid 4711, in a transaction (INTRANS) by the client's account",
        ),
        (
            dropped(transaction_status="INERROR", server_known=True),
            "pid 4711, in a transaction (INERROR) by the client's account",
        ),
        (dropped(transaction_status="IDLE"), "pid 4711, no transaction open"),
        (dropped(transaction_status="UNKNOWN"), None),
        (dropped(), None),
        (dropped(connection=connection_facts(pid=0), transaction_status="INTRANS"), None),
        (left_pool(), None),
    ],
)
def test_what_the_server_saw(found, expected):
    assert sentences.server(found) == expected


ASYNC_WITH = "`async with await psycopg.AsyncConnection.connect(…) as conn:`"
ASYNC_CHECKOUT = "`async with pool.connection() as conn:`"
WITH = "`with psycopg.connect(…) as conn:`"
AS_LONG_AS_IT_IS_MEANT = (
    "nothing, if it is meant to live that long; else open and close it in the lifespan, or in a fixture of session"
    " scope"
)
IN_ONE_LOOP = (
    "open and close it in one event loop: in the lifespan, or in a fixture whose loop has the scope of the tests that"
    " use it"
)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (not_closed(owner=PROCESS), AS_LONG_AS_IT_IS_MEANT),
        (left_pool(owner=SESSION), AS_LONG_AS_IT_IS_MEANT),
        (
            not_returned(owner=PROCESS),
            "nothing, if it is meant to be out that long; else take it and give it back in one function",
        ),
        (left_pool(owner=PROCESS, loop_is_closed=True), IN_ONE_LOOP),
        (left_pool(loop_is_closed=True), IN_ONE_LOOP),
        (
            left_pool(DROPPED, loop_is_closed=True),
            "use `async with AsyncConnectionPool(…) as pool:`, or close it in a `finally:`",
        ),
        (
            in_transaction(began=frame(9, "test_it")),
            (
                "call `await conn.rollback()` in a function-scoped fixture, after the `yield`; or open it with"
                " `autocommit=True`; or `await conn.commit()` in the test"
            ),
        ),
        (
            replace(in_transaction(connection=SYNC), ending=CLOSED),
            "call `conn.commit()` before the `yield`, or open it with `autocommit=True`",
        ),
        (dropped(), f"use {ASYNC_WITH}, or close it in a `finally:`"),
        (not_closed(connection=SYNC), f"use {WITH}, or close it in a `finally:`"),
        (dropped(request=REQUEST), f"use {ASYNC_WITH}, or close it in a `finally:`"),
        (dropped(request=REQUEST, dependency="get_conn"), f"yield it inside {ASYNC_WITH}"),
        (dropped(request=REQUEST, dependency="get_conn", connection=SYNC), f"yield it inside {WITH}"),
        (
            dropped(request=REQUEST, dependency="get_conn", origin=frame(generator=True)),
            f"put the `yield` inside {ASYNC_WITH}",
        ),
        (not_closed(owner=FIXTURE), f"yield it inside {ASYNC_WITH}"),
        (not_closed(owner=FIXTURE, origin=frame(generator=True), connection=SYNC), f"put the `yield` inside {WITH}"),
        (not_closed(owner=FIXTURE, origin=None), f"yield it inside {ASYNC_WITH}"),
        (not_closed(owner=LIFESPAN), f"put the lifespan's `yield` inside {ASYNC_WITH}"),
        (
            not_closed(owner=LIFESPAN, task=TASK),
            f"end the task before its request or lifespan ends, and open inside it with {ASYNC_WITH}",
        ),
        (
            not_returned(),
            "use `async with pool.connection() as conn:`, or call `await pool.putconn(conn)` in a `finally:`",
        ),
        (
            not_returned(connection=SYNC),
            "use `with pool.connection() as conn:`, or call `pool.putconn(conn)` in a `finally:`",
        ),
        (
            not_returned(DROPPED, request=REQUEST, dependency="get_conn"),
            f"`yield` inside {ASYNC_CHECKOUT}, or call `await pool.putconn(conn)` in a `finally:`",
        ),
        (
            not_returned(owner=FIXTURE, connection=SYNC),
            "`yield` inside `with pool.connection() as conn:`, or call `pool.putconn(conn)` in a `finally:`",
        ),
        (
            not_returned(CLOSED),
            f"give it back with `await pool.putconn(conn)` instead of closing it, or use {ASYNC_CHECKOUT}",
        ),
        (left_pool(), "use `async with AsyncConnectionPool(…) as pool:`, or close it in a `finally:`"),
        (
            left_pool(pool=pool_state(is_async=False)),
            "use `with ConnectionPool(…) as pool:`, or close it in a `finally:`",
        ),
        (
            left_pool(request=REQUEST),
            "open one pool in the lifespan with `async with AsyncConnectionPool(…) as pool:`, not one in each request",
        ),
        (left_pool(owner=LIFESPAN), "put the lifespan's `yield` inside `async with AsyncConnectionPool(…) as pool:`"),
        (left_pool(owner=FIXTURE), "put the fixture's `yield` inside `async with AsyncConnectionPool(…) as pool:`"),
        (
            in_transaction(),
            "call `await conn.commit()` before it ends, or write inside `async with conn.transaction():`",
        ),
        (
            in_transaction(connection=SYNC, transaction_status="INERROR"),
            "call `conn.rollback()` when a statement fails, or run it inside `with conn.transaction():`",
        ),
        (
            untracked(),
            "end what the test has started, or close the other driver's connection; for one on purpose, allow it",
        ),
    ],
)
def test_what_to_change(found, expected):
    assert sentences.fix(found) == expected


def test_a_class_of_the_users_own_is_not_looked_for_in_psycopg():
    facts = replace(connection_facts(), class_name="AsyncTracedConnection")
    assert "psycopg.AsyncTracedConnection" not in sentences.fix(dropped(connection=facts))


def nested(**more):
    return finding("nested-checkout", "nested checkout", CLOSED, connection=connection_facts(), **more)


def test_a_nested_checkout_says_what_may_happen():
    assert sentences.verb(nested()) == "taken"
    assert sentences.server(nested()) is None
    assert "deadlock" in sentences.ended(nested())
    assert sentences.fix(nested()) == (
        "pass the connection that is held on to what takes the second one, or give it back first"
    )


HERE = (dropped(), not_closed(), not_returned(), left_pool(), in_transaction(), untracked(), nested())
ELSEWHERE = {
    *("write-lost", "returned-in-transaction", "commit-after-response"),  # test_transaction_sentences.py
    "session-state",  # test_session_sentences.py
    "prepared-transaction",  # test_prepared_sentences.py
    "too-many-connections",  # test_peaks.py
}


def test_every_kind_has_its_own_words():
    assert {found.kind for found in HERE} | ELSEWHERE == {kind.code for kind in KINDS.values()}
    assert len({sentences.fix(found) for found in HERE}) >= 6
    assert all(sentences.ended(found) for found in HERE)
