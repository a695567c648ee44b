"""What pytest shows of session state, what is undone where, and what the settings change."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator

import psycopg
import pytest

Run = Callable[..., pytest.RunResult]

POOL = """
    import psycopg, psycopg_pool, pytest

    @pytest.fixture(scope="session")
    def pool():
        with psycopg_pool.ConnectionPool(DSN, min_size=1, max_size=1, open=False, name="p") as pool:
            yield pool

    def use(pool, *statements):
        with pool.connection() as conn:
            for statement in statements:
                cursor = conn.execute(statement)
            return cursor
"""


@pytest.fixture
def foreign_dsn(server_dsn: str) -> Iterator[str]:
    """A database that pgleak has not created."""
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        name = f"somebody_elses_{os.getpid()}"
        conn.execute(f"drop database if exists {name} with (force)")
        conn.execute(f"create database {name}")
        yield psycopg.conninfo.make_conninfo(server_dsn, dbname=name)
        conn.execute(f"drop database if exists {name} with (force)")


@pytest.fixture
def run(pytester: pytest.Pytester, foreign_dsn: str) -> Run:
    """Write an inner suite and run it in a process of its own."""

    def write_and_run(source: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=textwrap.dedent(POOL).replace("DSN", repr(foreign_dsn)) + textwrap.dedent(source))
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", *args)

    return write_and_run


TWO = """
    @pytest.mark.pgleak
    def test_first(pool):
        use(pool, "set app.user_id = 's3cr3t'", "set lock_timeout = '7s'", "select pg_advisory_lock(42)")

    @pytest.mark.pgleak
    def test_second(pool):
        print("lock_timeout is", *use(pool, "show lock_timeout").fetchone())
        print("locks:", *use(pool, "select count(*) from pg_locks where locktype = 'advisory'").fetchone())
        use(pool, "set local app.user_id = '8'")
"""


def test_the_failure(run: Run) -> None:
    result = run(TWO, "-rP")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "[[]session-state] session state left on a pooled connection",
            "  set       test_it.py:11 in use",
            "                cursor = conn.execute(statement)",
            "  called by test_it.py:16 in test_first",
            "  taken     test_it.py:9 in use",
            "  pool      'p' (ConnectionPool, max_size 1), 0 checked out",
            "  left      setting lock_timeout = 7000ms (was 0ms), setting app.user_id, advisory lock 42",
            "  ended     given back to its pool like this (pid *",
            "  fix       `set local lock_timeout …` inside `with conn.transaction():`, or `reset all` in *",
            '  allow     @pytest.mark.pgleak(allow=["session-state"])',
            "*= pgleak: 1 leak from 1 line of code =*",
        ]
    )
    assert "pgleak */" not in result.stdout.str()


def test_in_somebody_elses_database_nothing_is_undone(run: Run) -> None:
    run(TWO, "-rP").stdout.fnmatch_lines(["lock_timeout is 7s", "locks: 1"])


def test_with_leave_it_is(run: Run) -> None:
    result = run(TWO, "-rP", "-o", "pgleak_terminate=true")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["lock_timeout is 0", "locks: 0"])


def test_a_warning(run: Run) -> None:
    result = run(TWO, "-o", "pgleak_levels=session-state = warn")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*session-state*", "*setting lock_timeout = 7000ms*"])


def test_off_means_that_nobody_looks(run: Run) -> None:
    source = (
        TWO
        + """
        pid = use(pool, "select pg_backend_pid()").fetchone()[0]
        with psycopg.connect(pool.conninfo, autocommit=True) as other:
            print("last:", *other.execute("select query from pg_stat_activity where pid = %s", (pid,)).fetchone())
    """
    )
    result = run(source, "-rP", "-o", "pgleak_levels=session-state = off")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["lock_timeout is 7s", "last: COMMIT"])


def test_a_no_leaks_block(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_it(pool, pgleak):
            use(pool, "select 1")
            with pytest.raises(pytest.fail.Exception, match="session-state"), pgleak.no_leaks():
                use(pool, "listen visits")
            with pgleak.no_leaks():
                use(pool, "set local lock_timeout = 1")
        """
    )
    result.assert_outcomes(passed=1)


def test_a_pool_that_looks_different(run: Run) -> None:
    result = run(
        """
        import psycopg_pool.pool

        @pytest.fixture(autouse=True)
        def another_version(pool, monkeypatch):
            # As if a later psycopg_pool had renamed it.
            insides = "pytest_pgleak.psycopg_internals.idle.in_hand"
            monkeypatch.setattr(insides, lambda connection, action: {}["renamed"])

        @pytest.mark.pgleak
        def test_it(pool):
            use(pool, "listen visits")
            assert use(pool, "select 1").fetchone() == (1,)
            assert pool.get_stats()["pool_available"] == 1
        """
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["pgleak: internal error of pytest-pgleak in the look at a session*"])
