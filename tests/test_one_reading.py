"""What the server says at the end of one test is what it says at the start of the next, unless something came between.

Here something does: a process of the suite's own, which stays. Nobody is to be accused of it but who began it.
"""

from __future__ import annotations

import textwrap
import uuid
from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pytest_pgleak.observer import Observer
from pytest_pgleak.observers import OBSERVER_NAME

Run = Callable[[str], pytest.RunResult]

HEADER = """
    import atexit, subprocess, sys
    import psycopg, pytest

    pytestmark = pytest.mark.pgleak

    WORKER = (
        "import sys, psycopg; conn = psycopg.connect(sys.argv[1], application_name='worker');"
        "print('connected', flush=True); sys.stdin.read()"
    )

    def begin_worker(dsn):
        command = [sys.executable, "-c", WORKER, dsn]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdout.readline()
        atexit.register(process.communicate)

    @pytest.fixture(scope="session", autouse=True)
    def dsn(pgleak_dsn):
        global DSN
        DSN = pgleak_dsn
        with psycopg.connect(pgleak_dsn):  # so that the first test is not the first that looks
            yield pgleak_dsn
"""


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    def write_and_run(source: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=textwrap.dedent(HEADER) + textwrap.dedent(source))
        result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}")
        assert "internal error" not in result.stdout.str()
        return result

    return write_and_run


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(
            """
            class TestIt:
                def test_one(self): pass
                def test_two(self): pass
                def setup_method(self, method):
                    if method.__name__ == "test_two":
                        begin_worker(DSN)
            """,
            id="setup_method",
        ),
        pytest.param(
            """
            class TestIt:
                def test_one(self): pass
                def test_two(self): pass
                def teardown_method(self, method):
                    if method.__name__ == "test_one":
                        begin_worker(DSN)
            """,
            id="teardown_method",
        ),
        pytest.param(
            """
            def test_one(): pass
            def test_two(): pass
            def setup_function(function):
                if function is test_two:
                    begin_worker(DSN)
            """,
            id="setup_function",
        ),
        pytest.param(
            """
            def test_one(request):
                request.addfinalizer(lambda: begin_worker(DSN))
            def test_two(): pass
            """,
            id="addfinalizer",
        ),
        pytest.param(
            """
            def test_one(): pass
            @pytest.fixture
            def worker(dsn):
                begin_worker(dsn)
            def test_two(worker): pass
            """,
            id="fixture",
        ),
        pytest.param(
            """
            def test_one(): pass
            @pytest.fixture(params=["only"])
            def worker(dsn, request):
                begin_worker(dsn)
            def test_two(worker): pass
            """,
            id="fixture-with-parameters",
        ),
    ],
)
def test_what_begins_between_two_tests_is_no_tests_doing(run: Run, source: str) -> None:
    result = run(source)
    result.assert_outcomes(passed=2)
    assert "untracked-backend" not in result.stdout.str()


def test_what_an_unchecked_test_begins(run: Run) -> None:
    result = run(
        """
        pytestmark = []

        @pytest.mark.pgleak
        def test_one(): pass

        def test_unchecked():
            begin_worker(DSN)

        @pytest.mark.pgleak
        def test_two(): pass
        """
    )
    result.assert_outcomes(passed=3)
    assert "untracked-backend" not in result.stdout.str()


@pytest.mark.parametrize("arguments", ["", "number, tmp_path, monkeypatch"])
def test_what_a_test_begins_is_its_doing(run: Run, arguments: str) -> None:
    parametrize = '@pytest.mark.parametrize("number", [1])' if arguments else ""
    result = run(
        f"""
        def test_one(): pass

        {parametrize}
        def test_two({arguments}):
            begin_worker(DSN)

        def test_three(): pass
        """
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*pgleak: 1 warning from 1 line*", "*untracked-backend*", "*::test_two*"])


def test_a_pool_that_connects_in_an_event_loop_that_stands_still(run: Run) -> None:
    """Its backend is there, and psycopg does not know yet which one it is."""
    result = run(
        """
        import asyncio, time, psycopg_pool

        @pytest.fixture
        def loop():
            loop = asyncio.new_event_loop()
            yield loop
            loop.close()

        @pytest.fixture
        def pool(dsn, loop):
            pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False)
            yield pool
            loop.run_until_complete(pool.close())

        @pytest.mark.parametrize("turns", range(9))
        def test_it(loop, pool, turns):
            loop.run_until_complete(pool.open())
            for _ in range(turns):
                loop.call_soon(loop.stop)
                loop.run_forever()
                time.sleep(0.01)
        """
    )
    result.assert_outcomes(passed=9)
    assert "untracked-backend" not in result.stdout.str()


def test_a_database_that_a_test_is_the_first_to_enter(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="session")
        def databases(dsn):
            with psycopg.connect(dsn, autocommit=True) as admin:
                made = {}
                for name in ("one", "two"):
                    made[name] = psycopg.conninfo.make_conninfo(dsn, dbname=f"{admin.info.dbname}_{name}")
                    admin.execute(f"create database {admin.info.dbname}_{name}")
                begin_worker(made["one"])
                yield made
                for name in made:
                    admin.execute(f"drop database {admin.info.dbname}_{name} with (force)")

        @pytest.fixture(scope="session")
        def first(databases):
            with psycopg.connect(databases["one"]) as conn:
                yield conn

        @pytest.fixture(scope="session")
        def second(databases):
            with psycopg.connect(databases["two"]) as conn:
                yield conn

        def test_where_somebody_has_been(databases, request):
            request.getfixturevalue("first")

        def test_that_begins_one(databases, request):
            request.getfixturevalue("second")
            begin_worker(databases["two"])
        """
    )
    result.assert_outcomes(passed=2)
    assert "where_somebody_has_been" not in result.stdout.str()
    result.stdout.fnmatch_lines(["*pgleak: 1 warning from 1 line*", "*untracked-backend*", "*::test_that_begins_one*"])


def test_the_quick_look_leaves_out_pgleak_itself(server_dsn: str) -> None:
    name = f"maintenance_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        observer = Observer([make_conninfo(server_dsn, dbname=name, application_name=OBSERVER_NAME)])
        try:
            assert observer.count([name])[0] == 0
            assert observer.present([name])[0] == frozenset()
            with psycopg.connect(make_conninfo(server_dsn, dbname=name)) as conn:
                assert observer.count([name])[0] == 1
                assert {pid for pid, _ in observer.present([name])[0]} == {conn.info.backend_pid}
        finally:
            observer.close()
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
