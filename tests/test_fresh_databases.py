"""``pgleak_fresh_dsn`` on a server of pgleak's own: made and dropped while the tests run, and nobody notices."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import psycopg
import pytest

from pytest_pgleak.descriptors import Places
from pytest_pgleak.fresh_databases import FreshDatabasesAhead, new_name
from pytest_pgleak.servers.databases import create_database, drop_database, with_dbname

Run = Callable[..., pytest.RunResult]

COMMON = """
    import time, psycopg, pytest
    from psycopg.conninfo import conninfo_to_dict

    pytestmark = pytest.mark.pgleak

    USED = []

    def name_of(dsn):
        return conninfo_to_dict(dsn)["dbname"]

    def rows(dsn, statement, *parameters):
        with psycopg.connect(dsn) as conn:
            return conn.execute(statement, parameters).fetchall()

    def fresh_ones(server):
        return {name for name, in rows(server.dsn, "select datname from pg_database where datname ~ 'pgleak_fresh'")}

    def until(condition):
        give_up_at = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    (pytester.path / "schema.sql").write_text("create table visits (id serial primary key, note text);")

    def write_and_run(tests: str, *args: str, schema: str = "schema.sql") -> pytest.RunResult:
        pytester.makeini(f"[pytest]\npgleak_schema = {schema}\n")
        pytester.makepyfile(test_it=textwrap.dedent(COMMON) + textwrap.dedent(tests))
        result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", *args)
        assert "internal error" not in result.stdout.str()
        return result

    return write_and_run


SEVERAL = """
    @pytest.mark.parametrize("number", range(6))
    def test_it(pgleak_fresh_dsn, number):
        assert name_of(pgleak_fresh_dsn) not in USED
        USED.append(name_of(pgleak_fresh_dsn))
        with psycopg.connect(pgleak_fresh_dsn) as conn:
            assert conn.execute("select count(*) from visits").fetchone() == (0,)
            conn.execute("insert into visits (note) values ('mine')")

    def test_those_before_are_dropped(pgleak_postgres):
        # The last one is kept for one more test; one has been made for a test that does not come.
        until(lambda: not set(USED[:-1]) & fresh_ones(pgleak_postgres))
        assert len(fresh_ones(pgleak_postgres)) <= 2
"""


TABLES = """
    @pytest.fixture(scope="session", autouse=True)
    def tables(pgleak_dsn):
        with psycopg.connect(pgleak_dsn) as conn:
            conn.execute("create table visits (id serial primary key, note text)")
"""


@pytest.mark.parametrize("schema", ["schema.sql", ""])
def test_each_test_has_its_own_and_they_go_away(run: Run, schema: str) -> None:
    tests = SEVERAL if schema else TABLES + SEVERAL
    run(tests, schema=schema).assert_outcomes(passed=7)


def test_a_copy_of_a_database_that_changes_is_never_an_old_one(run: Run) -> None:
    result = run(
        """
        @pytest.mark.parametrize("number", range(4))
        def test_it(pgleak_dsn, pgleak_fresh_dsn, number):
            tables = rows(pgleak_fresh_dsn, "select relname from pg_class where relname ~ '^t[0-9]$' order by 1")
            assert tables == [(f"t{earlier}",) for earlier in range(number)]
            with psycopg.connect(pgleak_dsn) as conn:
                conn.execute(f"create table t{number} ()")
        """,
        schema="",
    )
    result.assert_outcomes(passed=4)


def test_nobody_is_accused_of_the_connections_that_make_and_drop_them(run: Run) -> None:
    # The application is in the database that they are in, too.
    result = run(
        """
        @pytest.mark.pgleak(max_connections=2)
        @pytest.mark.parametrize("number", range(6))
        def test_it(pgleak_postgres, pgleak_fresh_dsn, number):
            with psycopg.connect(pgleak_postgres.dsn), psycopg.connect(pgleak_fresh_dsn):
                time.sleep(0.02)
        """,
        "--pgleak-select=all",
    )
    result.assert_outcomes(passed=6)
    assert "untracked" not in result.stdout.str()


def test_a_leak_in_a_database_that_was_made_ahead_is_found(run: Run) -> None:
    result = run(
        """
        KEPT = []

        @pytest.mark.parametrize("number", range(4))
        def test_it(pgleak_fresh_dsn, number):
            KEPT.append(psycopg.connect(pgleak_fresh_dsn))
            KEPT[-1].execute("insert into visits default values")
        """
    )
    result.assert_outcomes(failed=4)
    assert result.stdout.str().count("an uncommitted write is held") == 4


def test_a_suite_that_terminates_all_connections_but_its_own(run: Run) -> None:
    result = run(
        """
        @pytest.mark.parametrize("number", range(5))
        def test_it(pgleak_postgres, pgleak_fresh_dsn, number):
            assert rows(pgleak_fresh_dsn, "select count(*) from visits") == [(0,)]
            rows(
                pgleak_postgres.dsn,
                "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                " where backend_type = 'client backend' and pid <> pg_backend_pid()",
            )
        """
    )
    result.assert_outcomes(passed=5)
    assert "clean up" not in result.stdout.str()


def test_a_prepared_transaction_does_not_keep_a_database(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak(allow=["prepared-transaction"])
        def test_left(pgleak_fresh_dsn):
            USED.append(name_of(pgleak_fresh_dsn))
            with psycopg.connect(pgleak_fresh_dsn, autocommit=True) as conn:
                conn.execute("begin")
                conn.execute("insert into visits default values")
                conn.execute("prepare transaction 'left'")

        @pytest.mark.parametrize("number", range(3))
        def test_others(pgleak_fresh_dsn, number):
            pass

        def test_dropped(pgleak_postgres):
            until(lambda: not set(USED) & fresh_ones(pgleak_postgres))
        """
    )
    result.assert_outcomes(passed=5)
    assert "clean up" not in result.stdout.str()


def test_children_that_each_run_a_test_do_not_share_one(run: Run, pytester: pytest.Pytester) -> None:
    # As pytest-forked does it.
    pytester.makeconftest(
        """
        import os, pytest
        from _pytest.runner import runtestprotocol

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_protocol(item, nextitem):
            if "child" not in item.name:
                return None
            if not (child := os.fork()):
                reports = runtestprotocol(item, nextitem=nextitem, log=False)
                os._exit(any(report.failed for report in reports))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            return True
        """
    )
    result = run(
        """
        @pytest.mark.parametrize("kind", ["here", "here too", "child", "another child", "again here", "and again"])
        def test_it(pgleak_fresh_dsn, kind):
            with psycopg.connect(pgleak_fresh_dsn) as conn:
                assert conn.execute("select count(*) from visits").fetchone() == (0,)
                conn.execute("insert into visits default values")
        """
    )
    result.assert_outcomes(passed=4)
    assert result.ret == 0


def test_a_child_that_leaves_a_test_in_its_middle_lets_its_parents_be(run: Run) -> None:
    result = run(
        """
        import os, sys

        @pytest.mark.parametrize("number", range(4))
        def test_it(pgleak_fresh_dsn, pgleak_postgres, number):
            USED.append(name_of(pgleak_fresh_dsn))
            if number == 2:
                if not (child := os.fork()):
                    sys.exit("the child's")
                os.waitpid(child, 0)
                assert USED[1] in fresh_ones(pgleak_postgres)
        """,
        "-x",
    )
    result.assert_outcomes(passed=4)
    assert result.ret == 0


def test_a_child_that_ends_the_session_takes_nothing_from_a_server_that_is_given(run: Run, server_dsn: str) -> None:
    result = run(
        """
        import os, sys

        @pytest.mark.parametrize("number", range(3))
        def test_it(pgleak_dsn, pgleak_fresh_dsn, pgleak_postgres, number):
            USED.append(name_of(pgleak_fresh_dsn))
            if number == 1:
                if not (child := os.fork()):
                    sys.exit("the child's")
                os.waitpid(child, 0)
            assert rows(pgleak_dsn, "select 1") == [(1,)]
            assert {*USED[-2:]} <= fresh_ones(pgleak_postgres)
        """,
        *("-x", f"--pgleak-dsn={server_dsn}"),
    )
    result.assert_outcomes(passed=3)
    assert result.ret == 0


def test_a_copy_that_could_not_be_made_ahead_is_handed_out_to_nobody(server_dsn: str) -> None:
    template, names = new_name(), []
    create_database(server_dsn, template)
    made = FreshDatabasesAhead(server_dsn, Places())
    try:
        names += [made.copy_of_lasting(template), made.copy_of_lasting(template)]
        names.append(made.copy_of("template0"))  # the one ahead is there by now
        with psycopg.connect(with_dbname(server_dsn, template)):
            names += [made.copy_of_lasting(template), made.copy_of("template0")]
        names.append(made.copy_of_lasting(template))
        for name in names:
            psycopg.connect(with_dbname(server_dsn, name)).close()
    finally:
        made.close()
        for name in (*names, template):
            drop_database(server_dsn, name)
