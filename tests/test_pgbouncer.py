"""Suites whose connections lead through a real PgBouncer, with its console named and without."""

from __future__ import annotations

import contextlib
import re
import socket
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from pgbouncers import needs_pgbouncer, pgbouncer, translated
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pytest_pgleak.activity import Backend
from pytest_pgleak.descriptors import Places
from pytest_pgleak.pgbouncer.console import AdminConsole, ConsoleError
from pytest_pgleak.pgbouncer.witness import PgBouncer
from pytest_pgleak.servers import ServerRequest, plan, start

pytestmark = needs_pgbouncer

Run = Callable[..., pytest.RunResult]

HEAD = """
    import contextlib, os
    import psycopg, psycopg_pool, pytest

    KEPT = []

    def connect(**more):
        return psycopg.connect(os.environ["APP_DSN"], **more)
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, database: str) -> Run:
    def write_and_run(dsn: str, source: str, *args: str) -> pytest.RunResult:
        monkeypatch.setenv("APP_DSN", dsn)
        monkeypatch.setenv("STRAIGHT", database)
        pytester.makepyfile(test_it=textwrap.dedent(HEAD) + textwrap.dedent(source))
        options = ("-p", "no:cacheprovider", "--pgleak-select=all", "-o", "pgleak_grace=0.2", "-vv")
        result = pytester.runpytest_subprocess(*options, *args)
        assert "internal error" not in result.stdout.str()
        return result

    return write_and_run


@pytest.fixture(scope="module")
def database(server_dsn: str) -> Iterator[str]:
    """A DSN with a database of this module's own, straight to the server."""
    name = f"app_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        with psycopg.connect(server_dsn, dbname=name) as conn:
            conn.execute("create table visits (id int)")
        yield make_conninfo(server_dsn, dbname=name)
        admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def through(address: str, database: str) -> str:
    return make_conninfo(address, dbname=conninfo_to_dict(database)["dbname"])


def console(address: str) -> str:
    return make_conninfo(address, user="admin", dbname="pgbouncer")


LEAKS = """
    def test_clean():
        with connect() as conn:
            conn.execute("insert into visits values (1)")

    def test_clean_pool():
        with psycopg_pool.ConnectionPool(os.environ["APP_DSN"], min_size=1) as pool, pool.connection() as conn:
            conn.execute("insert into visits values (1)")

    def test_left_idle():
        KEPT.append(connect())

    def test_left_in_transaction():
        KEPT.append(connect())
        KEPT[-1].execute("insert into visits values (2)")

    @pytest.fixture(scope="module")
    def shared():
        with connect() as conn:
            yield conn

    def test_transaction_left_open(shared):
        shared.execute("insert into visits values (3)")

    def test_clean_transaction(shared):
        shared.rollback()
        with shared.transaction():
            shared.execute("insert into visits values (4)")
"""


def lines_of(result: pytest.RunResult, test: str) -> list[str]:
    """The failure of one test."""
    lines = result.stdout.lines
    start = next(number for number, line in enumerate(lines) if line.strip("_ ") == test)
    end = next((n for n in range(start + 1, len(lines)) if lines[n].startswith(("____", "===="))), None)
    return lines[start:end]


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_what_a_connection_has_behind_pgbouncer_is_told(run: Run, database: str, pool_mode: str) -> None:
    with pgbouncer(database, pool_mode) as address:
        straight = f"--pgleak-dsn={database}"
        result = run(through(address, database), LEAKS, straight, f"--pgleak-pgbouncer={console(address)}")
    result.assert_outcomes(passed=3, failed=3)
    assert "untracked-backend" not in result.stdout.str()
    assert "the ledger judged alone" not in result.stdout.str()
    idle, held, left = (
        "\n".join(lines_of(result, f"test_{name}"))
        for name in ("left_idle", "left_in_transaction", "transaction_left_open")
    )
    assert f", in {pool_mode} mode; it has " in idle
    assert "xid" not in idle
    # The row of the server connection that serves this client, and no other.
    for text in (held, left):
        [(of_server, of_pgbouncer)] = re.findall(
            r"server +pid (\d+), idle in transaction .*an uncommitted write is held, locks RowExclusiveLock\n"
            rf"  pgbouncer client 127\.0\.0\.1:\d+, in {pool_mode} mode; .* \(pid (\d+)\)\n",
            text,
        )
        assert of_server == of_pgbouncer
    assert "[transaction-left-open]" in left


def test_in_statement_mode(run: Run, database: str) -> None:
    with pgbouncer(database, "statement") as address:
        result = run(
            through(address, database),
            """
            def test_clean():
                with connect(autocommit=True) as conn:
                    conn.execute("insert into visits values (1)")

            def test_left_open():
                KEPT.append(connect(autocommit=True))
                KEPT[-1].execute("insert into visits values (2)")
            """,
            f"--pgleak-dsn={database}",
            f"--pgleak-pgbouncer={console(address)}",
        )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "[[]connection-not-closed]*",
            "  server    no transaction open by the client's account",
            "  pgbouncer client 127.0.0.1:*, in statement mode; it has no server connection at this moment",
        ]
    )


def test_a_server_that_is_not_the_one_behind_pgbouncer_is_asked_for_nothing(run: Run, database: str) -> None:
    other = start(plan(ServerRequest(dsn=None)))
    try:
        with psycopg.connect(other.dsn) as conn:
            conn.execute("create table visits (id int)")
        with pgbouncer(database, "transaction") as address:
            result = run(
                through(address, database),
                """
                def test_left_in_transaction():
                    KEPT.append(connect())
                    KEPT[-1].execute("insert into visits values (2)")
                """,
                f"--pgleak-dsn={other.dsn}",
                f"--pgleak-pgbouncer={console(address)}",
            )
    finally:
        other.stop()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "  server    in a transaction (INTRANS) by the client's account",
            "  pgbouncer client 127.0.0.1:*, in transaction mode; it has a server connection to itself (pid *)",
        ]
    )


def test_the_backends_that_serve_pgbouncer_are_nobodys(run: Run, database: str) -> None:
    """A subprocess connects through it, so that nothing in the process of the tests knows of a pooler."""
    with pgbouncer(database, "transaction") as address:
        result = run(
            through(address, database),
            """
            import subprocess, sys
            SPEAK = "import os, psycopg; psycopg.connect(os.environ['APP_DSN'], autocommit=True).execute('select 1')"

            @pytest.fixture(autouse=True, scope="session")
            def straight():
                with psycopg.connect(os.environ["STRAIGHT"]) as conn:
                    yield conn

            def test_before(straight):
                straight.rollback()

            def test_in_a_subprocess():
                subprocess.run([sys.executable, "-c", SPEAK], check=True)
            """,
            f"--pgleak-pgbouncer={console(address)}",
        )
    result.assert_outcomes(passed=2)
    assert "untracked-backend" not in result.stdout.str()


def test_nothing_is_said_where_addresses_are_translated(run: Run, database: str) -> None:
    with pgbouncer(database, "transaction") as address, translated(address) as outside:
        result = run(
            through(outside, database),
            """
            def test_left_in_transaction():
                KEPT.append(connect())
                KEPT[-1].execute("insert into visits values (2)")

            def test_setting():
                with connect() as conn:
                    conn.execute("set work_mem = '77MB'")

            def test_end():
                KEPT.pop().close()
            """,
            f"--pgleak-dsn={database}",
            f"--pgleak-pgbouncer={console(address)}",
        )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["[[]connection-not-closed]*", "  server *, in a transaction (INTRANS) by the client's*"]
    )
    assert "  pgbouncer " not in result.stdout.str()


SECRET = "s3cr3t-w0rd"


@pytest.fixture(scope="module")
def guarded(database: str) -> Iterator[dict[str, str]]:
    """The parameters of a console that wants passwords."""
    users = {"stats": SECRET, "somebody": SECRET}
    with pgbouncer(database, "session", users, stats_users="stats") as address:
        yield conninfo_to_dict(address) | {"dbname": "pgbouncer", "user": "stats", "password": SECRET}


@contextlib.contextmanager
def opened(dsn: str) -> Iterator[AdminConsole]:
    admin = AdminConsole(dsn, Places())
    try:
        yield admin
    finally:
        admin.close()


def test_a_console_is_read_by_whoever_may_see_its_statistics(guarded: dict[str, str]) -> None:
    del guarded["dbname"]  # there is only one that can be meant
    with opened(make_conninfo(**guarded)) as admin:
        seen = admin.look()
        assert re.match(r"\d+\.\d+", admin.version)
    assert [client.database for client in seen.clients] == ["pgbouncer"]
    guarded["dbname"] = "pgbouncer"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"port": "1"}, "it cannot be reached: .*refused"),
        ({"password": "another"}, "it cannot be reached: .*(password|authentication)"),
        ({"user": "somebody"}, "it cannot be reached: .*not allowed"),
        ({"dbname": "app"}, "database 'app' is not its console"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_a_console_that_cannot_be_read(guarded: dict[str, str], wrong: dict[str, str], told: str) -> None:
    with opened(make_conninfo(**(guarded | wrong))) as admin, pytest.raises(ConsoleError) as error:
        admin.look()
    assert re.match(told, str(error.value), re.DOTALL)
    assert "Name a user of its stats_users or admin_users: " in str(error.value)
    assert SECRET not in str(error.value)


def test_a_console_that_is_postgresql(server_dsn: str) -> None:
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        conn.execute("create database pgbouncer")
        try:
            with opened(make_conninfo(server_dsn, dbname="pgbouncer")) as admin, pytest.raises(ConsoleError) as error:
                admin.look()
        finally:
            conn.execute("drop database pgbouncer with (force)")
    assert "what answers is not PgBouncer, but a server of version " in str(error.value)


def test_a_console_that_was_started_anew_is_read_again(database: str) -> None:
    with pgbouncer(database, "session") as address:
        admin = AdminConsole(console(address), Places())
        admin.look()
    port = conninfo_to_dict(address)["port"]
    try:
        with pytest.raises(ConsoleError, match="it cannot be reached"):
            admin.look()
        with pgbouncer(database, "session", listen_port=port):
            assert admin.look().clients
    finally:
        admin.close()


def test_a_pgbouncer_that_goes_away_fails_no_test(database: str) -> None:
    somebody = (Backend(4711),)
    with pgbouncer(database, "session") as address:
        witness = PgBouncer(lambda: (console(address), "--pgleak-pgbouncer"))
        witness.begin(1, is_set_up=True)
        assert witness.version
        assert witness.without_own(somebody) == somebody
    assert witness.without_own(somebody) == somebody
    assert (witness.version, witness.was_read) == ("", False)
    assert "named by --pgleak-pgbouncer: it cannot be reached" in str(witness.complaint)
    assert witness.take_misconfiguration() is None
    with pgbouncer(database, "session", listen_port=conninfo_to_dict(address)["port"]):
        witness.begin(2, is_set_up=False)
        assert witness.version
        assert witness.was_read
    witness.close()
    assert witness.complaint is None


def test_a_console_whose_name_is_malformed() -> None:
    with opened(f"postgresql://u:{SECRET}@/x@y") as admin, pytest.raises(ConsoleError) as error:
        admin.look()
    assert "the connection string is malformed: " in str(error.value)
    assert SECRET not in str(error.value)


def test_what_is_wrong_with_the_console_is_told_once(run: Run, database: str) -> None:
    source = """
        def test_one():
            with connect() as conn:
                conn.execute("select 1")

        def test_two():
            test_one()
    """
    result = run(database, source, f"--pgleak-pgbouncer=host=127.0.0.1 port=1 password={SECRET}")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "pgleak cannot read PgBouncer's console, named by --pgleak-pgbouncer: it cannot be reached: *",
            "  Name a user of its stats_users or admin_users: *",
        ]
    )
    assert SECRET not in result.stdout.str().partition("test session starts")[2] + result.stderr.str()


STATE = """
    def in_a_transaction(statement, **more):
        with connect(**more) as conn:
            conn.execute(statement)
            conn.execute("select 1")

    @pytest.mark.parametrize("statement", [
        "set work_mem = '77MB'",
        "select set_config('app.tenant', 'seven', false)",
        "set role pg_monitor",
        "select pg_advisory_lock(42)",
        "listen visits",
        "create temporary table kept as select 1",
        "declare kept cursor with hold for select 1",
        "prepare kept as select 1",
    ])
    def test_leaks(statement):
        in_a_transaction(statement)

    def test_leaks_what_psycopg_prepares():
        with connect() as conn:
            for number in range(7):
                conn.execute("select count(*) from visits where id = %s", (number,))

    def test_leaks_without_a_transaction():
        with connect(autocommit=True) as conn:
            conn.execute("set lock_timeout = '3s'")

    def test_leaks_while_the_client_lives_on(living):
        living.execute("set idle_session_timeout = '3h'")
        living.commit()

    @pytest.fixture(scope="module")
    def living():
        with connect() as conn:
            yield conn

    @pytest.mark.parametrize("statement", [
        "set local work_mem = '77MB'",
        "select set_config('app.tenant', 'seven', true)",
        "set local role pg_monitor",
        "select pg_advisory_xact_lock(42)",
        "select pg_advisory_lock(41); select pg_advisory_unlock(41)",
        "listen visits_too; unlisten visits_too",
        "create temporary table dropped on commit drop as select 1",
        "set statement_timeout = '7s'; reset statement_timeout",
        "prepare dropped as select 1; deallocate dropped",
        "set timezone = 'Europe/Vienna'",
        "notify visits",
    ])
    def test_clean(statement):
        in_a_transaction(statement)

    def test_clean_rolled_back(living):
        living.execute("set work_mem = '78MB'")
        living.rollback()

    def test_clean_without_preparing():
        with connect(prepare_threshold=None) as conn:
            for number in range(7):
                conn.execute("select count(*) from visits where id > %s", (number,))

    def test_clean_that_reads(living):
        living.execute("show work_mem")
        living.commit()

    def test_all_is_undone(living):
        [(work_mem, role, locks)] = living.execute(
            "select current_setting('work_mem'), current_setting('role'),"
            " (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())"
        ).fetchall()
        assert (work_mem, role, locks) == ("4MB", "none", 0)
        assert living.execute("select * from pg_prepared_statements").fetchall() == []
        assert living.execute("select * from pg_listening_channels()").fetchall() == []
        assert living.execute("select to_regclass('pg_temp.kept')").fetchone() == (None,)
        living.rollback()
"""

SAID = {
    "[set work_mem = '77MB']": ["  set       *", "  left      setting work_mem = 78848kB (was 4096kB)"],
    "[set role pg_monitor]": ["  set       *", "  left      role pg_monitor"],
    "[select pg_advisory_lock(42)]": ["  locked    *", "  left      advisory lock 42"],
    "[listen visits]": [
        "  listened  *",
        "  left      listening on channel visits",
        "  fix       LISTEN does not work *",
    ],
    "[create temporary table kept as select 1]": ["  created   *", "  left      temporary table kept"],
    "[declare kept cursor with hold for select 1]": ["  declared  *", "  left      cursor kept (WITH HOLD)"],
    "[prepare kept as select 1]": ["  prepared  *", "  left      prepared statement kept"],
    "_what_psycopg_prepares": [
        *("  prepared  test_it.py:* in test_leaks_what_psycopg_prepares", "  left      prepared statement _pg3_0"),
        "  fix       connect with `prepare_threshold=None`, *",
    ],
    "_without_a_transaction": ["  left      setting lock_timeout = 3000ms (was 0ms)"],
    "_while_the_client_lives_on": ["  left      setting idle_session_timeout = *"],
}
# What is undone is a custom setting of its own: without a value that anybody might read.
SAID["[select set_config('app.tenant', 'seven', false)]"] = ["  set       *", "  left      setting app.tenant"]


def test_what_one_client_leaves_to_the_next_in_transaction_mode(run: Run, database: str) -> None:
    with pgbouncer(database, "transaction") as address:
        result = run(
            through(address, database),
            STATE,
            f"--pgleak-dsn={database}",
            f"--pgleak-pgbouncer={console(address)}",
            "-o",
            "pgleak_terminate=true",
        )
    result.assert_outcomes(passed=15, failed=11)
    assert sum(line.startswith("[session-state] ") for line in result.stdout.lines) == len(SAID)
    for test, said in SAID.items():
        told = pytest.LineMatcher(lines_of(result, f"test_leaks{test}"))
        told.fnmatch_lines(["[[]session-state] *", *said], consecutive=False)
        told.fnmatch_lines(["  ended     left on a server connection of PgBouncer's (pid *) in transaction mode; *"])
    assert "seven" not in "\n".join(line for line in result.stdout.lines if "[select set_config" not in line)


@pytest.mark.parametrize(
    ("pool_mode", "settings", "failed"),
    [
        ("session", {}, 0),
        # The state of a session that nobody resets is the next client's.
        ("session", {"server_reset_query": ""}, 2),
        ("statement", {}, 2),
        ("transaction", {"server_reset_query_always": 1}, 0),
    ],
    ids=["session", "session-without-reset", "statement", "transaction-with-reset"],
)
def test_what_one_client_leaves_to_the_next(
    run: Run, database: str, pool_mode: str, settings: dict[str, str | int], failed: int
) -> None:
    with pgbouncer(database, pool_mode, **settings) as address:
        result = run(
            through(address, database),
            """
            def test_leaks():
                with connect(autocommit=True) as conn:
                    conn.execute("set work_mem = '77MB'")

            def test_leaks_again():
                test_leaks()

            def test_clean():
                with connect(autocommit=True) as conn:
                    conn.execute("select pg_advisory_lock(1), pg_advisory_unlock(1)")
            """,
            f"--pgleak-pgbouncer={console(address)}",
        )
    result.assert_outcomes(passed=3 - failed, failed=failed)
    assert result.stdout.str().count(f" in {pool_mode} mode; another client has seen it there") == failed


APP = """
    pytestmark = pytest.mark.pgleak

    import asyncio
    import anyio, httpx
    from contextlib import asynccontextmanager
    from typing import Annotated
    from fastapi import Depends, FastAPI, Request

    @asynccontextmanager
    async def lifespan(app):
        async with psycopg_pool.AsyncConnectionPool(os.environ["APP_DSN"], min_size=2, max_size=4) as app.state.pool:
            yield

    app = FastAPI(lifespan=lifespan)

    async def get_conn(request: Request):
        async with request.app.state.pool.connection() as conn:
            yield conn

    Conn = Annotated[psycopg.AsyncConnection, Depends(get_conn)]

    @app.get("/clean")
    async def clean(conn: Conn):
        await conn.execute("set local work_mem = '77MB'")

    @app.get("/tenant")
    async def tenant(conn: Conn):
        await conn.execute("select set_config('app.tenant', %s, false)", ["seven"])

    @app.get("/two")
    async def two(conn: Conn, other: Annotated[psycopg.AsyncConnection, Depends(get_conn, use_cache=False)]):
        await conn.execute("select 1")
        await other.execute("set lock_timeout = '3s'")

    @app.get("/kept")
    async def kept(request: Request):
        conn = await request.app.state.pool.getconn()
        await conn.execute("insert into visits values (1)")
        KEPT.append(conn)

    @pytest.fixture
    def pgleak_app():
        return app

    @pytest.mark.parametrize("path", ["/clean", "/tenant", "/two", "/kept"])
    async def test_get(pgleak_client, path):
        assert (await pgleak_client.get(path)).status_code == 200

    async def test_get_all(pgleak_client):
        for _ in range(3):
            await asyncio.gather(*(pgleak_client.get(path) for path in ("/clean", "/clean", "/tenant")))
"""


def test_an_application_with_a_pool_of_its_own(run: Run, database: str) -> None:
    with pgbouncer(database, "transaction") as address:
        result = run(
            through(address, database),
            APP,
            f"--pgleak-dsn={database}",
            f"--pgleak-pgbouncer={console(address)}",
            "-o",
            "pgleak_terminate=true",
        )
    result.assert_outcomes(passed=1, failed=4)
    (setting,) = (lines_of(result, f"test_get[/{path}]") for path in ("tenant",))
    pytest.LineMatcher(setting).fnmatch_lines(
        [
            "[[]session-state] *",
            "  set       test_it.py:* in tenant * in GET /tenant (tenant)",
            "  request   #1 GET /tenant → 200",
            "  left      setting app.tenant",
            "  ended     left on a server connection of PgBouncer's (pid *) in transaction mode; *",
        ]
    )
    pytest.LineMatcher(lines_of(result, "test_get[/two]")).fnmatch_lines(
        ["  left      setting lock_timeout = 3000ms *"]
    )
    pytest.LineMatcher(lines_of(result, "test_get[/kept]")).fnmatch_lines(
        ["[[]connection-not-returned] *", "  server    pid *, idle in transaction*", "  pgbouncer client 127.0.0.1:*"]
    )
    every = "\n".join(lines_of(result, "test_get_all"))
    assert every.count("[session-state]") == 1
    assert "  left      setting app.tenant\n" in every


LOST = """
    @pytest.fixture(scope="module", autouse=True)
    def table():
        with connect() as conn:
            conn.execute("create table if not exists kept (id serial, name text)")

    def test_close_without_commit():
        conn = connect()
        conn.execute("insert into kept (name) values ('Ada')")
        conn.close()

    def test_dropped():
        connect().execute("insert into kept (name) values ('Ada')")

    def test_pool():
        with psycopg_pool.ConnectionPool(os.environ["APP_DSN"], min_size=1) as pool:
            conn = pool.getconn()
            conn.execute("insert into kept (name) values ('Ada')")
            pool.putconn(conn)

    def test_clean():
        with connect() as conn:
            conn.execute("insert into kept (name) values ('Ada')")

    def test_clean_read():
        conn = connect()
        conn.execute("select * from kept")
        conn.close()

    def test_clean_sequence():
        conn = connect()
        conn.execute("select nextval('kept_id_seq')")
        conn.close()
"""


def test_writes_that_vanish(run: Run, database: str) -> None:
    with pgbouncer(database, "transaction") as address:
        args = (through(address, database), LOST, f"--pgleak-dsn={database}", f"--pgleak-pgbouncer={console(address)}")
        result = run(*args)
    result.assert_outcomes(passed=3, failed=3)
    for test in ("close_without_commit", "pool"):
        told = ["[[]write-lost]*", "  server    pid *, 1 transaction (xid *) that wrote kept: rolled back"]
        pytest.LineMatcher(lines_of(result, f"test_{test}")).fnmatch_lines(told)
    dropped = ["[[]connection-dropped]*", "  server    pid *, xid *: an uncommitted write was lost"]
    pytest.LineMatcher(lines_of(result, "test_dropped")).fnmatch_lines(dropped)


SHOP = """
import os
from contextlib import asynccontextmanager
from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool

KEPT = []

@asynccontextmanager
async def lifespan(app):
    async with AsyncConnectionPool(os.environ["APP_DSN"], min_size=1, max_size=2, open=False) as app.state.pool:
        await app.state.pool.wait()
        yield

app = FastAPI(lifespan=lifespan)

@app.get("/clean")
async def clean():
    async with app.state.pool.connection() as conn:
        await conn.execute("set local work_mem = '77MB'")

@app.get("/setting")
async def setting():
    async with app.state.pool.connection() as conn:
        await conn.execute("set work_mem = '77MB'")

@app.get("/kept")
async def kept():
    KEPT.append(await app.state.pool.getconn())
    await KEPT[-1].execute("insert into visits values (1)")
"""
LIVE = """
    @pytest.fixture(scope="module")
    def server(pgleak_live):
        with pgleak_live("shop:app", env={"APP_DSN": os.environ["APP_DSN"]}) as server:
            yield server

    @pytest.mark.pgleak
    @pytest.mark.parametrize("path", ["/clean", "/setting", "/kept"])
    def test_get(server, path):
        with server.client() as client:
            assert client.get(path).status_code == 200
"""


def test_in_the_workers_of_a_live_server(run: Run, pytester: pytest.Pytester, database: str) -> None:
    pytester.makepyfile(shop=SHOP)
    with pgbouncer(database, "transaction") as address:
        console_of = f"--pgleak-pgbouncer={console(address)}"
        result = run(through(address, database), LIVE, f"--pgleak-dsn={database}", console_of)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.no_fnmatch_line("*untracked-backend*")
    pytest.LineMatcher(lines_of(result, "test_get[/setting]")).fnmatch_lines(
        ["  set       shop.py:* in setting * in GET /setting (setting)", "  left      setting work_mem = 78848kB*"]
    )
    pytest.LineMatcher(lines_of(result, "test_get[/kept]")).fnmatch_lines(
        ["[[]connection-not-returned]*", "  server    pid *, idle in transaction*", "  pgbouncer client 127.0.0.1:*"]
    )


def test_a_pgbouncer_that_a_fixture_starts_and_stops(run: Run, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    address = make_conninfo(host="127.0.0.1", port=port, user="postgres")
    result = run(
        through(address, database),
        f"""
        import pgbouncers
        from pytest_pgleak.descriptors import Places
        from pytest_pgleak.pgbouncer.console import AdminConsole

        @pytest.fixture(scope="module")
        def started():
            with pgbouncers.pgbouncer(os.environ["STRAIGHT"], "transaction", listen_port={port}) as address:
                yield
                # From 1.23 on it would wait for everybody who is still there.
                admin = AdminConsole("{console(address)}", Places())
                assert [client.database for client in admin.look().clients] == ["pgbouncer"]
                admin.close()

        def test_clean(started):
            with connect() as conn:
                conn.execute("set local work_mem = '77MB'")

        def test_setting(started):
            with connect() as conn:
                conn.execute("set work_mem = '77MB'")

        def test_elsewhere():
            with psycopg.connect(os.environ["STRAIGHT"]) as conn:
                conn.execute("select 1")
        """,
        f"--pgleak-dsn={database}",
        f"--pgleak-pgbouncer={console(address)}",
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["[[]session-state]*"])
    assert "console" not in result.stdout.str()
