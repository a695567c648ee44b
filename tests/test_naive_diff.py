"""The mistakes of a before/after diff of ``pg_stat_activity``, one test each.

Each inner test first proves that the naive look is wrong there, then the outer one that pgleak is right.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

CONFTEST = """
    import warnings
    import psycopg, psycopg_pool, pytest

    class Naive:
        '''Counts the rows of the test's database, as everybody does first.'''

        def __init__(self, dsn):
            self.conn = psycopg.connect(dsn, autocommit=True)

        def rows(self):
            return self.conn.execute(
                "select pid, state from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid() order by backend_start"
            ).fetchall()

    @pytest.fixture(scope="session")
    def naive(pgleak_dsn):
        naive = Naive(pgleak_dsn)
        naive.conn.execute("create table visits (id int)")
        yield naive
        naive.conn.close()
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    def write_and_run(source: str) -> pytest.RunResult:
        pytester.makeconftest(textwrap.dedent(CONFTEST))
        pytester.makepyfile(
            test_it="import time, warnings, psycopg, psycopg_pool, pytest\nKEPT = []\n" + textwrap.dedent(source)
        )
        return pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}")

    return write_and_run


def test_a_dropped_connection_leaves_no_row(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_it(naive, pgleak_dsn):
            psycopg.connect(pgleak_dsn).execute("insert into visits values (1)")
            time.sleep(0.1)
            assert naive.rows() == []
            assert naive.conn.execute("select count(*) from visits").fetchone() == (0,)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["[[]connection-dropped]*", "*an uncommitted write was lost"])


def test_a_dropped_pooled_connection_leaves_neither_row_nor_warning_and_costs_a_slot(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_it(naive, pgleak_dsn):
            with psycopg_pool.ConnectionPool(pgleak_dsn, min_size=1, max_size=1, open=False) as pool:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    pool.getconn()
                    time.sleep(0.1)
                assert caught == []
                assert naive.rows() == []
                with pytest.raises(psycopg_pool.PoolTimeout):
                    pool.getconn(timeout=0.1)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["[[]connection-not-returned]*", "*the pool has lost this slot for ever"])


def test_an_honest_close_lingers(run: Run) -> None:
    result = run(
        """
        SEEN = []

        @pytest.mark.pgleak
        @pytest.mark.parametrize("number", range(40))
        def test_it(naive, pgleak_dsn, number):
            with psycopg.connect(pgleak_dsn) as conn:
                for table in range(20):
                    conn.execute(f"create temporary table t{table} (a int)")
            SEEN.extend(naive.rows())

        def test_a_naive_look_saw_some_of_them():
            assert SEEN
        """
    )
    result.assert_outcomes(passed=41)


def test_a_pool_that_grows_and_is_recycled_during_a_request(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="session")
        def pool(pgleak_dsn):
            with psycopg_pool.ConnectionPool(pgleak_dsn, min_size=1, max_size=6, open=False) as pool:
                pool.wait()
                yield pool

        @pytest.mark.pgleak
        def test_grows(naive, pool):
            before = naive.rows()
            conns = [pool.getconn() for _ in range(5)]
            for conn in conns:
                pool.putconn(conn)
            assert len(naive.rows()) > len(before)

        @pytest.mark.pgleak
        def test_recycled(naive, pool):
            before = {pid for pid, _ in naive.rows()}
            pool.max_lifetime = 0
            with pool.connection() as conn:
                conn._expire_at = 0.0
            deadline = time.monotonic() + 5
            while {pid for pid, _ in naive.rows()} <= before and time.monotonic() < deadline:
                time.sleep(0.01)
            assert {pid for pid, _ in naive.rows()} - before
        """
    )
    result.assert_outcomes(passed=2)


def test_one_closed_and_one_leaked_compensate(run: Run) -> None:
    result = run(
        """
        @pytest.fixture
        def before(pgleak_dsn):
            return psycopg.connect(pgleak_dsn)

        @pytest.mark.pgleak
        def test_it(naive, before, pgleak_dsn):
            number = len(naive.rows())
            before.close()
            KEPT.append(psycopg.connect(pgleak_dsn))
            time.sleep(0.1)
            assert len(naive.rows()) == number
        """
    )
    result.assert_outcomes(failed=1)


def test_a_session_fixture_opened_during_the_first_test(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="session")
        def session_connection(pgleak_dsn):
            with psycopg.connect(pgleak_dsn) as conn:
                yield conn

        @pytest.mark.pgleak
        def test_first(naive, request):
            before = naive.rows()
            request.getfixturevalue("session_connection")
            assert len(naive.rows()) == len(before) + 1

        @pytest.mark.pgleak
        def test_second(session_connection):
            pass
        """
    )
    result.assert_outcomes(passed=2)


def test_a_snapshot_inside_a_transaction_is_frozen(run: Run) -> None:
    # The observer reads outside of transactions: it sees what comes after its first look.
    result = run(
        """
        @pytest.mark.pgleak
        @pytest.mark.parametrize("number", range(2))
        def test_it(pgleak_dsn, number):
            KEPT.append(psycopg.connect(pgleak_dsn))
        """
    )
    result.assert_outcomes(failed=2)
    assert result.stdout.str().count("  server    pid ") == 2


def test_the_database_is_dropped_under_the_evidence(run: Run) -> None:
    result = run(
        """
        @pytest.fixture
        def own_database(naive, pgleak_postgres):
            with psycopg.connect(pgleak_postgres.dsn, autocommit=True) as admin:
                admin.execute("create database evidence")
                yield psycopg.conninfo.make_conninfo(pgleak_postgres.dsn, dbname="evidence")
                admin.execute("drop database evidence with (force)")

        @pytest.fixture
        def keeps(own_database):
            KEPT.append(psycopg.connect(own_database))
            yield

        @pytest.mark.pgleak(grace=0.1)
        def test_it(keeps):
            pass
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["[[]connection-not-closed]*", "*is gone: the server or somebody else ended it*"])


def test_every_backend_is_terminated_the_observers_too(run: Run) -> None:
    result = run(
        """
        @pytest.fixture
        def janitor(pgleak_postgres):
            yield
            with psycopg.connect(pgleak_postgres.dsn, autocommit=True) as admin:
                admin.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where application_name = 'pgleak observer' and pid <> pg_backend_pid()"
                )

        @pytest.mark.pgleak
        @pytest.mark.parametrize("number", range(3))
        def test_clean(janitor, pgleak_dsn, number):
            psycopg.connect(pgleak_dsn).close()

        @pytest.mark.pgleak
        def test_leak(janitor, pgleak_dsn):
            KEPT.append(psycopg.connect(pgleak_dsn))
        """
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["  server    pid *, idle*"])
    assert "judged alone" not in result.stdout.str()
