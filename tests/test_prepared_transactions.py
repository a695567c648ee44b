"""A prepared transaction in an inner run: its text, where it may be rolled back, and where it may not."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pytest_pgleak.observer import Observer

Run = Callable[..., pytest.RunResult]

HEADER = """
    import contextlib, os, psycopg, pytest

    DSN = os.environ.get("SHARED_DSN", "")

    def prepare(conn, gid):
        conn.tpc_begin(gid)
        conn.execute("create table made_by_it (a int)")
        conn.execute("insert into visits select 1 from visits")
        conn.tpc_prepare()

    @pytest.fixture(scope="module", autouse=True)
    def visits(request):
        dsn = DSN or request.getfixturevalue("pgleak_dsn")
        with psycopg.connect(dsn) as conn:
            conn.execute("create table visits (a int)")

    def left(dsn):
        with psycopg.connect(dsn) as conn:
            sql = "select gid from pg_prepared_xacts where database = current_database()"
            return [gid for gid, in conn.execute(sql)]
"""


@pytest.fixture(scope="module")
def two_phases(server_dsn: str) -> str:
    with psycopg.connect(server_dsn) as conn:
        row = conn.execute("show max_prepared_transactions").fetchone()
    if row == ("0",):
        pytest.skip("the server has max_prepared_transactions = 0")
    return server_dsn


@pytest.fixture
def shared(two_phases: str) -> Iterator[str]:
    """A database that is not pgleak's."""
    name = "shared_by_others"
    dsn = make_conninfo(two_phases, dbname=name)
    with psycopg.connect(two_phases, autocommit=True) as conn:
        conn.execute(f"drop database if exists {name} with (force)")
        conn.execute(f"create database {name}")
        yield dsn
        with psycopg.connect(dsn, autocommit=True) as inside:
            for (gid,) in inside.execute("select gid from pg_prepared_xacts where database = %s", [name]).fetchall():
                inside.execute(psycopg.sql.SQL("rollback prepared {}").format(gid))
        conn.execute(f"drop database {name} with (force)")


@pytest.fixture
def run(pytester: pytest.Pytester, two_phases: str) -> Run:
    def write_and_run(source: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=textwrap.dedent(HEADER) + textwrap.dedent(source))
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", f"--pgleak-dsn={two_phases}", *args)

    return write_and_run


def gids(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as conn:
        return [gid for (gid,) in conn.execute("select gid from pg_prepared_xacts where database = current_database()")]


def test_the_quick_look_sees_the_very_last_transaction(two_phases: str) -> None:
    observer = Observer([two_phases])
    with psycopg.connect(two_phases, autocommit=True) as conn:
        conn.execute("begin")
        conn.execute("select txid_current()")
        conn.execute("prepare transaction 'the last one'")
        try:
            assert observer.count(["postgres"])[1]
        finally:
            conn.execute("rollback prepared 'the last one'")
    give_up_at = time.monotonic() + 30
    while observer.count(["postgres"])[1]:  # somebody else may write at this moment
        assert time.monotonic() < give_up_at
    observer.close()


def test_in_a_database_of_pgleaks_it_is_rolled_back(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_left(pgleak_dsn):
            with contextlib.closing(psycopg.connect(pgleak_dsn)) as conn:
                prepare(conn, "it's mine")

        def test_after(pgleak_dsn):
            assert left(pgleak_dsn) == []
        """
    )
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "[[]prepared-transaction] prepared transaction left behind",
            "  prepared  test_it.py:9 in prepare",
            "                conn.tpc_prepare()",
            "  called by test_it.py:* in test_left",
            (
                "  server    gid 'it''s mine', prepared * s ago in database pgleak_main_* by role *, xid *,"
                " locks visits RowExclusiveLock"
            ),
            "  ended     the test ended; nothing called tpc_commit() or tpc_rollback()",
            "  fix       call `conn.tpc_commit()` when all have prepared, `conn.tpc_rollback()` when one has failed",
            '  allow     @pytest.mark.pgleak(allow=["prepared-transaction"])',
            "   1 × [[]prepared-transaction] test_it.py:9 in prepare",
            "FAILED test_it.py::test_left - pgleak: prepared-transaction at test_it.py:9 *",
        ]
    )
    assert "undo" not in result.stdout.str()
    assert "internal error" not in result.stdout.str()


LEFT_IN_SHARED = """
    @pytest.mark.pgleak
    def test_left():
        with contextlib.closing(psycopg.connect(DSN)) as conn:
            prepare(conn, "it's theirs")
"""


def test_elsewhere_it_stays_and_the_text_says_how_to_remove_it(
    run: Run, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARED_DSN", shared)
    result = run(LEFT_IN_SHARED)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["  undo      in database shared_by_others: ROLLBACK PREPARED 'it''s theirs';"])
    assert gids(shared) == ["it's theirs"]


def test_elsewhere_it_is_rolled_back_with_pgleak_terminate(
    run: Run, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARED_DSN", shared)
    result = run(LEFT_IN_SHARED, "-o", "pgleak_terminate=true")
    result.assert_outcomes(failed=1)
    assert "undo" not in result.stdout.str()
    assert gids(shared) == []


def test_what_others_prepare_elsewhere_is_theirs(run: Run, shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARED_DSN", shared)
    result = run(
        """
        import subprocess, sys

        @pytest.fixture(scope="module")
        def conn():
            with psycopg.connect(DSN, autocommit=True) as conn:
                yield conn

        @pytest.mark.pgleak
        def test_it(conn, pgleak_dsn):
            code = "import sys, psycopg; c = psycopg.connect(sys.argv[1]); c.tpc_begin('x'); c.tpc_prepare()"
            subprocess.run([sys.executable, "-c", code, DSN], check=True)
        """,
        "-o",
        "pgleak_terminate=true",
    )
    result.assert_outcomes(passed=1)
    assert gids(shared) == ["x"]


def test_who_waits_for_it(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="module")
        def db(pgleak_dsn):
            with psycopg.connect(pgleak_dsn, autocommit=True) as conn:
                conn.execute("create table stock (a int)")
                conn.execute("insert into stock values (1)")
            return pgleak_dsn

        @pytest.fixture
        def waiting(db):
            conn = psycopg.connect(db)
            yield conn.pgconn
            conn.cancel()
            conn.pgconn.get_result()
            conn.close()

        @pytest.mark.pgleak(grace=0.1)
        def test_left(waiting, db):
            with contextlib.closing(psycopg.connect(db)) as conn:
                conn.tpc_begin("slow")
                conn.execute("update stock set a = 2")
                conn.tpc_prepare()
            waiting.send_query(b"update stock set a = 3")
            with psycopg.connect(db, autocommit=True) as conn:
                sql = "select count(*) from pg_locks where not granted and pid = %s"
                while not conn.execute(sql, [waiting.backend_pid]).fetchone()[0]:
                    pass
        """
    )
    result.stdout.fnmatch_lines(
        ["  server    gid 'slow'*", "  blocks    pid *, that waits for it: update stock set a = …"]
    )


def test_a_fresh_database(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_left(pgleak_fresh_dsn):
            with contextlib.closing(psycopg.connect(pgleak_fresh_dsn)) as conn:
                prepare(conn, "left")

        @pytest.mark.pgleak(allow=["prepared-transaction"])
        def test_allowed(pgleak_fresh_dsn):
            with contextlib.closing(psycopg.connect(pgleak_fresh_dsn)) as conn:
                prepare(conn, "allowed")
        """
    )
    result.assert_outcomes(failed=1, passed=1)
    assert "could not clean up" not in result.stdout.str()  # it is dropped with what is allowed to be there


def test_no_leaks_and_findings(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_block(pgleak, pgleak_dsn):
            with contextlib.closing(psycopg.connect(pgleak_dsn)) as conn:
                with pytest.raises(pytest.fail.Exception, match="prepared-transaction"), pgleak.no_leaks():
                    prepare(conn, "a")
                conn.tpc_rollback()

        @pytest.mark.pgleak
        def test_findings(pgleak, pgleak_dsn):
            with psycopg.connect(pgleak_dsn) as conn:
                prepare(conn, "a")
                assert "prepared-transaction" in [finding.kind for finding in pgleak.findings()]
                conn.tpc_rollback()
                assert "prepared-transaction" not in [finding.kind for finding in pgleak.findings()]
        """
    )
    result.assert_outcomes(passed=2)


def test_a_test_that_fails_by_itself(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_it(pgleak_dsn):
            with contextlib.closing(psycopg.connect(pgleak_dsn)) as conn:
                prepare(conn, "a")
                assert False, "my own"
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*my own*", "*pgleak also found*", "[[]prepared-transaction]*", "FAILED*my own*"])


def test_unmarked_tests_are_not_looked_at(run: Run) -> None:
    result = run(
        """
        def test_it(pgleak_dsn):
            with contextlib.closing(psycopg.connect(pgleak_dsn)) as conn:
                prepare(conn, "a")

        @pytest.mark.pgleak
        def test_next(pgleak_dsn):
            assert left(pgleak_dsn) == ["a"]
        """
    )
    result.assert_outcomes(passed=2)
    assert "could not clean up" not in result.stdout.str()
