"""What was left open through PgBouncer: which client it is, and what PostgreSQL says of it."""

from __future__ import annotations

import re
from collections.abc import Callable

import psycopg
import pytest
from pgbouncers import console, lines_of, needs_pgbouncer, pgbouncer, through, translated

from pytest_pgleak.servers import ServerRequest, plan, start

pytestmark = needs_pgbouncer

Run = Callable[..., pytest.RunResult]


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
    result.stdout.fnmatch_lines(
        [
            "pgleak: the ledger judged alone for the server 127.0.0.1:*",
            "pgleak: PgBouncer's console, named by --pgleak-pgbouncer, knows none of the tests' connections: *",
        ]
    )


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
