"""Suites whose connections lead through a real PgBouncer, with its console named and without."""

from __future__ import annotations

import contextlib
import re
import textwrap
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from pgbouncers import needs_pgbouncer, pgbouncer
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pytest_pgleak.descriptors import Places
from pytest_pgleak.pgbouncer.console import AdminConsole, ConsoleError
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
