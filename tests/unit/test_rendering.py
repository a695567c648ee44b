from __future__ import annotations

import itertools
import re
from pathlib import Path

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
    lost,
    pool_facts,
    pool_state,
    transaction,
)

from pytest_pgleak.findings import PoolState
from pytest_pgleak.kinds import KINDS
from pytest_pgleak.owners import Owner
from pytest_pgleak.rendering import failure, headline, place, relative
from pytest_pgleak.requests import RequestInfo
from pytest_pgleak.views import Ending, TaskInfo

OPEN, CLOSED, DROPPED = Ending.OPEN, Ending.CLOSED, Ending.DROPPED
SYNC = connection_facts(is_async=False)
VISIT = RequestInfo(1, "GET", "/visit/", "/visit/", "add_visit", 200)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "db.py").write_text(
        "import psycopg\n"
        "async def get_conn():\n"
        "    return await psycopg.AsyncConnection.connect(dsn)\n"
        "def take():\n"
        "    conn = pool.getconn()\n"
        '    conn.execute("insert into visits default values")\n'
        '    conn = psycopg.connect("host=db password=s3cr3t-w0rd")\n'
        '    conn = psycopg.connect("postgresql://app:s3cr3t-w0rd@db/app")\n'
        '    conn = psycopg.connect(host="db", password="s3cr3t-w0rd")\n'
    )
    return tmp_path


@pytest.fixture
def at(root):
    return lambda lineno, function: frame(lineno, function, str(root / "app" / "db.py"))


def text(root, *findings):
    return "\n".join(line.text for line in failure(findings, root))


def expect(root, *findings, is_):
    # A backslash joins lines here that are too long for this file.
    assert text(root, *findings) == is_.strip("\n")


def test_a_dependency_that_returned_its_connection(root, at):
    """The failure as the README shows it."""
    expect(
        root,
        finding(
            origin=at(3, "get_conn"),
            stack=(at(3, "get_conn"),),
            request=VISIT,
            dependency="get_conn",
            backend=backend(
                state="idle in transaction",
                backend_xid="739",
                query="insert into visits(timestamp) values (now())",
            ),
            after_response=True,
        ),
        is_="""
[connection-dropped] connection opened and never closed
  opened    app/db.py:3 in get_conn                  dependency of GET /visit/ (add_visit)
                return await psycopg.AsyncConnection.connect(dsn)
  request   #1 GET /visit/ → 200
  server    pid 4711, idle in transaction, xid 739: an uncommitted write was lost
  last sql  insert into visits(timestamp) values (now())
  ended     garbage-collected after the response; nothing called close()
  fix       yield it inside `async with await psycopg.AsyncConnection.connect(…) as conn:`
  allow     @pytest.mark.pgleak(allow=["connection-dropped"])
""",
    )


def test_a_test_body_that_left_its_connection_open(root, at):
    expect(
        root,
        finding(
            "connection-not-closed",
            ending=OPEN,
            origin=at(3, "get_conn"),
            stack=(at(3, "get_conn"), frame(9, "test_it", str(root / "test_it.py"))),
            connection=SYNC,
            backend=backend(state="idle", query="select 1"),
            server_known=True,
        ),
        is_="""
[connection-not-closed] connection opened and still open
  opened    app/db.py:3 in get_conn
                return await psycopg.AsyncConnection.connect(dsn)
  called by test_it.py:9 in test_it
  server    pid 4711, idle
  last sql  select …
  ended     it did not: the test ended and the connection is still open
  fix       use `with psycopg.connect(…) as conn:`, or close it in a `finally:`
  allow     @pytest.mark.pgleak(allow=["connection-not-closed"])
""",
    )


def test_an_endpoint_that_lost_a_checkout(root, at):
    expect(
        root,
        finding(
            "connection-not-returned",
            "checkout",
            origin=at(5, "take"),
            stack=(at(5, "take"), at(30, "add_visit"), at(40, "middleware"), at(50, "test_it")),
            request=RequestInfo(2, "POST", "/visit/7", "/visit/{number}", "add_visit", 500),
            connection=SYNC,
            pool=pool_state(is_async=False),
            transaction_status="INTRANS",
            after_response=False,
            thread="AnyIO worker thread",
        ),
        is_="""
[connection-not-returned] connection checked out of a pool and never returned
  taken     app/db.py:5 in take                      in POST /visit/{number} (add_visit)
                conn = pool.getconn()
  called by app/db.py:30 in add_visit, app/db.py:40 in middleware
  request   #2 POST /visit/7 → 500
  pool      'pool-1' (ConnectionPool, max_size 4), 1 checked out
  server    pid 4711, in a transaction (INTRANS) by the client's account
  ended     garbage-collected before the response while checked out; the pool has lost this slot for ever
  fix       use `with pool.connection() as conn:`, or call `pool.putconn(conn)` in a `finally:`
  allow     @pytest.mark.pgleak(allow=["connection-not-returned"])
""",
    )


def test_a_checkout_that_was_closed_instead(root, at):
    expect(
        root,
        finding("connection-not-returned", "checkout", CLOSED, origin=at(5, "take"), pool=pool_state()),
        is_="""
[connection-not-returned] connection checked out of a pool and never returned
  taken     app/db.py:5 in take
                conn = pool.getconn()
  pool      'pool-1' (AsyncConnectionPool, max_size 4), 1 checked out
  ended     closed, but not returned with putconn(); the pool has lost this slot for ever
  fix       give it back with `await pool.putconn(conn)` instead of closing it, \
or use `async with pool.connection() as conn:`
  allow     @pytest.mark.pgleak(allow=["connection-not-returned"])
""",
    )


def test_a_lifespan_that_never_closed_its_pool(root, at):
    expect(
        root,
        finding(
            "pool-not-closed",
            "pool",
            OPEN,
            owner=LIFESPAN,
            origin=frame(80, "lifespan", str(root / "app" / "main.py")),
            pool=PoolState(pool_facts(max_size=0), OPEN, 2, 0),
        ),
        is_="""
[pool-not-closed] pool opened and never closed
  opened    app/main.py:80 in lifespan
  owner     the application's lifespan run by fixture 'client'
  pool      'pool-1' (AsyncConnectionPool), 0 checked out
  ended     it did not: the application's lifespan run by fixture 'client' ended and the pool is still open, \
2 connections in it
  fix       put the lifespan's `yield` inside `async with AsyncConnectionPool(…) as pool:`
  allow     @pytest.mark.pgleak(allow=["pool-not-closed"])
""",
    )


def test_a_fixture_that_kept_its_connection(root, at):
    expect(
        root,
        finding(
            "connection-not-closed",
            ending=OPEN,
            owner=FIXTURE,
            origin=frame(3, "db", "/elsewhere/conftest.py", generator=True),
            connection=SYNC,
            server_known=True,
            thread="worker",
            task=TaskInfo("Task-7", "listen"),
        ),
        is_="""
[connection-not-closed] connection opened and still open
  opened    /elsewhere/conftest.py:3 in db           in thread worker
  owner     fixture 'db' (module scope)
  server    pid 4711 is gone: the server or somebody else ended it; the client never knew
  ended     it did not: fixture 'db' (module scope) ended and the connection is still open; \
task 'Task-7' (listen) is still running
  fix       end the task before its request or lifespan ends, and open inside it with `with psycopg.connect(…) as conn:`
  allow     @pytest.mark.pgleak(allow=["connection-not-closed"])
""",
    )


def test_a_forgotten_commit_on_a_fixtures_connection(root, at):
    expect(
        root,
        finding(
            "transaction-left-open",
            ending=OPEN,
            origin=at(6, "take"),
            stack=(at(6, "take"),),
            connection=SYNC,
            transaction_status="INTRANS",
            backend=backend(
                state="idle in transaction",
                seconds_in_state=0.5,
                backend_xid="739",
                locks=("RowExclusiveLock",),
                query="insert into visits\n  default values",
            ),
            server_known=True,
            opened=frame(3, "db", str(root / "conftest.py")),
        ),
        is_="""
[transaction-left-open] transaction left open on a connection that lives on
  began     app/db.py:6 in take
                conn.execute("insert into visits default values")
  opened    conftest.py:3 in db
  server    pid 4711, idle in transaction for 0.5 s, xid 739: an uncommitted write is held, locks RowExclusiveLock
  last sql  insert into visits default values
  ended     the test ended; nothing called commit() or rollback()
  fix       call `conn.commit()` before it ends, or write inside `with conn.transaction():`
  allow     @pytest.mark.pgleak(allow=["transaction-left-open"])
""",
    )


def test_a_fixtures_connection_on_which_nobody_ends_a_transaction(root, at):
    expect(
        root,
        finding(
            "transaction-left-open",
            ending=OPEN,
            origin=at(6, "take"),
            owner=FIXTURE,
            connection=SYNC,
            transaction_status="INTRANS",
            began=frame(9, "test_it", str(root / "test_it.py")),
        ),
        is_="""
[transaction-left-open] transaction left open on a connection that lives on
  opened    app/db.py:6 in take
                conn.execute("insert into visits default values")
  began     test_it.py:9 in test_it
  owner     fixture 'db' (module scope)
  server    pid 4711, in a transaction (INTRANS) by the client's account
  ended     the test ended; nothing has called commit() or rollback() since the connection was opened
  fix       call `conn.rollback()` in a function-scoped fixture, after the `yield`; or open it with `autocommit=True`;\
 or `conn.commit()` in the test
  allow     @pytest.mark.pgleak(allow=["transaction-left-open"])
""",
    )


def test_a_pool_of_a_global_variable(root, at):
    expect(
        root,
        finding(
            "pool-not-closed",
            "pool",
            OPEN,
            origin=at(6, "Database.take"),
            stack=(at(6, "Database.take"), frame(9, "test_it", str(root / "test_it.py"))),
            owner=Owner(0, "process", variable="app.db.database.pool"),
            pool=pool_state(is_async=False, checked_out=0),
        ),
        is_="""
[pool-not-closed] pool opened and never closed
  opened    app/db.py:6 in Database.take
                conn.execute("insert into visits default values")
  owner     the process (module global app.db.database.pool)
  pool      'pool-1' (ConnectionPool, max_size 4), 0 checked out
  ended     it did not: a process-lifetime pool, still open, 1 connection in it
  fix       nothing, if it is meant to live that long; else open and close it in the lifespan, or in a fixture of\
 session scope
  ignore    a line of pgleak_ignore: pool-not-closed app/db.py::take
""",
    )


def test_a_backend_that_nobody_knows(root):
    row = backend(815, application_name="psql", client_port=-1, state="idle", query="select * from t where id = 7")
    expect(
        root,
        finding("untracked-backend", "backend", OPEN, origin=None, serial=815, backend=row, server_known=True),
        is_="""
[untracked-backend] a new backend that nothing in this process opened
  server    pid 815, database app, application_name 'psql', from a Unix socket, idle
  last sql  select * from t where id = …
  ended     still there after the test
  fix       end what the test has started, or close the other driver's connection; for one on purpose, allow it
  allow     @pytest.mark.pgleak(allow=["untracked-backend"])
""",
    )


def test_what_was_opened_outside_of_any_code_of_the_users(root):
    expect(
        root,
        finding(owner=SESSION, origin=None),
        is_="""
[connection-dropped] connection opened and never closed
  opened    outside of any code that pgleak could recognise as yours
  owner     the process (opened at import or collection)
  ended     garbage-collected; nothing called close()
  fix       use `async with await psycopg.AsyncConnection.connect(…) as conn:`, or close it in a `finally:`
  allow     @pytest.mark.pgleak(allow=["connection-dropped"])
""",
    )


def request(ordinal, **more):
    return RequestInfo(**{"ordinal": ordinal, "method": "GET", "path": "/visit/", "status": 200, **more})


def test_one_mistake_that_happened_three_times_is_shown_once(root, at):
    three = [finding(origin=at(3, "get_conn"), serial=10 + number, request=request(number)) for number in (1, 2, 5)]
    expect(
        root,
        *three,
        is_="""
[connection-dropped] connection opened and never closed (3 times)
  opened    app/db.py:3 in get_conn                  in GET /visit/
                return await psycopg.AsyncConnection.connect(dsn)
  request   #1 GET /visit/ → 200, also #2, #5
  ended     garbage-collected; nothing called close()
  fix       use `async with await psycopg.AsyncConnection.connect(…) as conn:`, or close it in a `finally:`
  allow     @pytest.mark.pgleak(allow=["connection-dropped"])
""",
    )


def test_a_hundred_requests_do_not_fill_the_line(root, at):
    many = [finding(origin=at(3, "get_conn"), serial=number, request=request(number)) for number in range(1, 101)]
    shown = text(root, *many)
    assert "(100 times)" in shown
    assert "also #2, #3, #4, #5, #6, #7, #8, #9, …" in shown
    assert "#10" not in shown


def test_times_without_a_request(root, at):
    shown = text(root, *(finding(origin=at(3, "get_conn"), serial=number) for number in range(2)))
    assert "(2 times)" in shown
    assert "request" not in shown


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({"status": 404}, "→ 404"),
        ({"status": None, "failed": True}, "→ an exception"),
        ({"status": None}, "→ not answered yet"),
        ({"status": 200, "failed": True}, "→ 200"),
    ],
)
def test_how_the_request_was_answered(root, at, more, shown):
    assert f"  request   #3 GET /visit/ {shown}\n" in text(root, finding(request=request(3, **more)))


def test_different_kinds_lines_and_unknown_places_are_different_mistakes(root, at):
    different = [
        finding(origin=at(3, "get_conn")),
        finding("connection-not-closed", ending=OPEN, origin=at(3, "get_conn")),
        finding(origin=at(5, "take")),
        finding(origin=None, serial=20),
        finding(origin=None, serial=21),
    ]
    shown = text(root, *different)
    assert len(re.findall(r"^\[", shown, re.MULTILINE)) == 5
    assert "times" not in shown
    assert shown.count("\n\n") == 4


def test_they_stay_in_the_order_in_which_they_were_found(root, at):
    shown = text(root, *(finding(origin=at(lineno, "f")) for lineno in (5, 3, 6, 3)))
    assert re.findall(r"db\.py:(\d)", shown) == ["5", "3", "6"]


def test_the_headline(root, at):
    one, other = finding(origin=at(3, "get_conn")), finding(origin=at(5, "take"))
    assert headline([one], root) == "pgleak: connection-dropped at app/db.py:3 in get_conn"
    assert headline([one, one], root) == "pgleak: connection-dropped at app/db.py:3 in get_conn"
    assert headline([one, other, one], root) == "pgleak: connection-dropped at app/db.py:3 in get_conn (and 1 more)"
    assert headline([finding(origin=None)], root) == "pgleak: connection-dropped"


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("/project/app/db.py", "app/db.py"),
        ("/project/db.py", "db.py"),
        ("/projects/db.py", "/projects/db.py"),
        ("/opt/db.py", "/opt/db.py"),
        ("app/db.py", "app/db.py"),
    ],
)
def test_paths_are_relative_to_the_root(filename, expected):
    assert relative(filename, Path("/project")) == expected
    assert place(frame(3, "f", filename), Path("/project")) == f"{expected}:3 in f"


def test_a_write_that_was_lost(root, at):
    expect(
        root,
        lost(
            origin=at(6, "take"),
            stack=(at(6, "take"), frame(9, "add", str(root / "app" / "api.py"))),
            opened=at(5, "take"),
            ended_at=at(4, "take"),
            request=VISIT,
            written=("visits",),
        ),
        is_="""
[write-lost] a write was rolled back without a word
  wrote     app/db.py:6 in take                      in GET /visit/ (add_visit)
                conn.execute("insert into visits default values")
  called by app/api.py:9 in add
  opened    app/db.py:5 in take
  request   #1 GET /visit/ → 200: the client was told that all is well
  server    pid 4711, 1 transaction (xid 739) that wrote visits: rolled back
  last sql  insert into visits values (now())
  ended     close() at app/db.py:4 in take with the transaction open; nothing had called commit()
  fix       call `await conn.commit()` before `close()`, or use `async with await \
psycopg.AsyncConnection.connect(…) as conn:`, which commits
  allow     @pytest.mark.pgleak(allow=["write-lost"])
""".replace("\\\n", ""),
    )


def test_a_second_checkout(root, at):
    expect(
        root,
        finding(
            "nested-checkout",
            "nested checkout",
            CLOSED,
            origin=at(5, "take"),
            stack=(at(5, "take"),),
            opened=at(3, "get_conn"),
            request=VISIT,
            dependency="take",
            pool=pool_state(),
        ),
        is_="""
[nested-checkout] second connection taken from a pool while holding one
  taken     app/db.py:5 in take                      dependency of GET /visit/ (add_visit)
                conn = pool.getconn()
  while     another one is held, taken at app/db.py:3 in get_conn
  request   #1 GET /visit/ → 200
  pool      'pool-1' (AsyncConnectionPool, max_size 4)
  risk      when every holder of a connection waits for a second one, nobody goes on: a deadlock under load
  fix       pass the connection that is held on to what takes the second one, or give it back first
  allow     @pytest.mark.pgleak(allow=["nested-checkout"])
""",
    )


@pytest.mark.parametrize(
    ("request_info", "expected"),
    [
        (RequestInfo(2, "WEBSOCKET", "/ws"), "#2 WEBSOCKET /ws → no exception"),
        (RequestInfo(2, "WEBSOCKET", "/ws", failed=True), "#2 WEBSOCKET /ws → an exception"),
        (RequestInfo(2, "GET", "/"), "#2 GET / → not answered yet"),
        (RequestInfo(2, "GET", "/", status=303), "#2 GET / → 303: the client was told that all is well"),
    ],
)
def test_how_the_request_of_a_lost_write_ended(root, request_info, expected):
    assert f"  request   {expected}\n" in text(root, lost(request=request_info))


def test_lost_writes_of_several_requests_are_shown_once(root, at):
    found = [lost(origin=at(6, "take"), request=RequestInfo(number, "POST", "/", status=200)) for number in (1, 2, 3)]
    shown = text(root, *found)
    assert "rolled back without a word (3 times)" in shown
    assert "#1 POST / → 200, also #2, #3: the client was told that all is well" in shown


BLOCK = Owner(5, "block", "test_a.py::test_it")
SUBJECTS = {
    "connection-not-returned": "checkout",
    "pool-not-closed": "pool",
    "untracked-backend": "backend",
    "nested-checkout": "nested checkout",
    **dict.fromkeys(("write-lost", "returned-in-transaction", "commit-after-response"), "transaction"),
}


def everything(kind, at, ending, owner, dependency):
    """A finding of which nothing is unknown."""
    subject = SUBJECTS.get(kind, "connection")
    row = backend(
        application_name="app",
        client_port=5,
        state="idle in transaction",
        backend_xid="739",
        seconds_in_state=2.0,
        locks=("RowExclusiveLock",) * 3,
        query="insert into t(a)\n values ('s3cr3t-w0rd', 4111111111111111)",
    )
    return finding(
        kind,
        subject,
        ending,
        owner=owner,
        origin=None if subject == "backend" else at(5, "take"),
        stack=() if subject == "backend" else tuple(at(lineno, "f") for lineno in (5, 30, 40, 50)),
        request=VISIT,
        dependency=dependency,
        pool=None if subject == "backend" else pool_state(),
        transaction_status="INTRANS",
        backend=None if subject == "nested checkout" else row,
        server_known=True,
        after_response=True,
        task=TaskInfo("Task-7", "listen", "/project/app/listen.py", 20),
        thread="AnyIO worker thread",
        opened=at(3, "db") if kind in ("transaction-left-open", "nested-checkout", "write-lost") else None,
        transactions=(transaction(evidence=row),) if subject == "transaction" else (),
        ended_at=at(4, "take") if subject == "transaction" else None,
        written=("visits",) if subject == "transaction" else (),
    )


ALL = list(
    itertools.product(
        [kind.code for kind in KINDS.values()],
        (OPEN, CLOSED, DROPPED),
        (CALL, FIXTURE, LIFESPAN, BLOCK, SESSION),
        (None, "get_conn"),
    )
)


@pytest.mark.parametrize("kind", [kind.code for kind in KINDS.values()])
def test_never_more_than_a_dozen_lines(root, at, kind):
    longest = max(len(failure([everything(kind, at, *case[1:])] * 20, root)) for case in ALL if case[0] == kind)
    assert longest <= 12


def test_every_line_is_one_line_of_plain_text(root, at):
    for kind, *case in ALL:
        for line in failure([everything(kind, at, *case)], root):
            assert "\n" not in line.text
            assert "\x1b" not in line.text
            assert line.text == line.text.rstrip()


def test_no_literal_of_a_statement_is_shown(root, at):
    for kind, *case in ALL:
        shown = text(root, everything(kind, at, *case))
        assert "s3cr3t" not in shown
        assert "4111111111111111" not in shown


def test_a_password_in_the_line_of_source_is_not_repeated(root, at):
    """The line that opens a connection is where people write one down; the build's log is read by more of them."""
    for lineno in (7, 8, 9):
        shown = text(root, finding(origin=at(lineno, "take")))
        assert f"app/db.py:{lineno} in take" in shown
        assert "s3cr3t-w0rd" not in shown
        assert "conn = psycopg.connect(" in shown


def test_the_styles_are_where_the_colours_belong(root, at):
    lines = failure([finding(origin=at(3, "get_conn")), finding(origin=at(5, "take"))], root)
    styled = [(line.style, line.text.split()[0]) for line in lines if line.style]
    assert styled == [
        ("kind", "[connection-dropped]"),
        ("source", "return"),
        ("fix", "fix"),
        ("kind", "[connection-dropped]"),
        ("source", "conn"),
        ("fix", "fix"),
    ]


def test_every_finding_says_how_to_allow_it(root, at):
    for kind, *case in ALL:
        found = everything(kind, at, *case)
        assert (
            text(root, found)
            .splitlines()[-1]
            .startswith(
                (
                    f'  allow     @pytest.mark.pgleak(allow=["{found.kind}"])',
                    f"  ignore    a line of pgleak_ignore: {found.kind} app/db.py::",
                )
            )
        )


def test_nothing_is_nothing(root):
    assert failure([], root) == []
