"""PgBouncer's console: who may read it, and what is said where it cannot be read."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from pgbouncers import console, needs_pgbouncer, pgbouncer, through
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pytest_pgleak.activity import Backend
from pytest_pgleak.descriptors import Places
from pytest_pgleak.pgbouncer.console import AdminConsole, ConsoleError
from pytest_pgleak.pgbouncer.witness import PgBouncer

pytestmark = needs_pgbouncer

Run = Callable[..., pytest.RunResult]


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


def test_a_pgbouncer_that_a_fixture_starts_and_stops(run: Run, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
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
