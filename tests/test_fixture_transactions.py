"""A wider fixture's transaction is one finding, against the fixture, however many tests see it open."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator

import psycopg
import pytest

Run = Callable[..., pytest.RunResult]

HEADER = """
    import psycopg, psycopg_pool, pytest, pytest_asyncio

    many = pytest.mark.parametrize("n", range(20))
"""


@pytest.fixture
def foreign_dsn(server_dsn: str) -> Iterator[str]:
    """A database that pgleak has not created, in which it undoes nothing."""
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        name = f"not_ours_{os.getpid()}"
        conn.execute(f"drop database if exists {name} with (force)")
        conn.execute(f"create database {name}")
        yield psycopg.conninfo.make_conninfo(server_dsn, dbname=name)
        conn.execute(f"drop database if exists {name} with (force)")


@pytest.fixture(params=["undone", "left alone"])
def run(request: pytest.FixtureRequest, pytester: pytest.Pytester, server_dsn: str, foreign_dsn: str) -> Run:
    """Run an inner suite on a database of pgleak's, where it rolls back what was left, or on a foreign one."""

    def write_and_run(source: str, *args: str) -> pytest.RunResult:
        dsn = "pgleak_dsn" if request.param == "undone" else "foreign_dsn"
        foreign = f"@pytest.fixture(scope='session')\ndef foreign_dsn(pgleak_postgres): return {foreign_dsn!r}\n"
        pytester.makepyfile(test_it=textwrap.dedent(HEADER) + foreign + textwrap.dedent(source).replace("DSN", dsn))
        options = ("-p", "no:cacheprovider", f"--pgleak-dsn={server_dsn}", "--pgleak-select=all", "-W", "ignore")
        return pytester.runpytest_subprocess(*options, *args)

    return write_and_run


def entries(result: pytest.RunResult) -> list[str]:
    """What the summary names, without line numbers: the function, and who answers for it."""
    return sorted(line.partition(" in ")[2] for line in result.outlines if " × [" in line)


def test_one_finding_each(run: Run) -> None:
    result = run(
        """
        def in_set_up(DSN):
            with psycopg.connect(DSN) as conn:
                conn.execute("select 1")
                yield conn

        def by_a_test(DSN):
            with psycopg.connect(DSN) as conn:
                yield conn

        def taken(DSN):
            with psycopg_pool.ConnectionPool(DSN, min_size=1, open=True) as pool:
                conn = pool.getconn()
                yield conn
                pool.putconn(conn)

        @pytest_asyncio.fixture(scope="module", loop_scope="module")
        async def asynchronous(DSN):
            async with await psycopg.AsyncConnection.connect(DSN) as conn:
                yield conn

        session_in_set_up = pytest.fixture(scope="session", name="a")(in_set_up)
        module_in_set_up = pytest.fixture(scope="module", name="b")(in_set_up)
        session_by_a_test = pytest.fixture(scope="session", name="c")(by_a_test)
        module_by_a_test = pytest.fixture(scope="module", name="d")(by_a_test)
        session_taken = pytest.fixture(scope="session", name="e")(taken)

        @many
        def test_session_in_set_up(a, n):
            pass

        @many
        def test_module_in_set_up(b, n):
            b.execute("select 1")

        @many
        def test_each_executes(c, n):
            c.execute("select 1")

        @many
        def test_only_the_first_executes(d, n):
            if not n:
                d.execute("select 1")

        @many
        def test_taken_from_a_pool(e, n):
            e.execute("select 1")

        @many
        @pytest.mark.asyncio(loop_scope="module")
        async def test_asynchronous(asynchronous, n):
            await asynchronous.execute("select 1")

        @pytest.fixture(scope="class", autouse=True)
        def of_class(request, DSN):
            if request.cls is not None:
                with psycopg.connect(DSN) as conn:
                    conn.execute("select 1")
                    yield conn
            else:
                yield

        @many
        class TestAutouse:
            def test_it(self, n):
                pass
        """
    )
    # Four fixtures end with the last test: one error.
    assert result.parseoutcomes() == {"passed": 136, "failed": 4, "errors": 1}
    assert entries(result) == [
        "asynchronous  by fixture 'asynchronous' (module scope)",
        "by_a_test  by fixture 'c' (session scope)",
        "by_a_test  by fixture 'd' (module scope)",
        "in_set_up  by fixture 'a' (session scope)",
        "in_set_up  by fixture 'b' (module scope)",
        "of_class  by fixture 'of_class' (class scope)",
        "taken  by fixture 'e' (session scope)",
    ]


def test_those_that_tests_end_are_the_tests_own(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="module")
        def db(DSN):
            with psycopg.connect(DSN) as conn:
                yield conn

        def test_commits(db):
            db.execute("select 1")
            db.commit()

        def test_forgets(db):
            db.execute("select 1")

        def test_rolls_back(db):
            db.rollback()

        def test_forgets_too(db):
            db.execute("select 1")

        def test_ends_that(db):
            db.execute("select 1")
            db.rollback()

        def test_block(db):
            with db.transaction():
                db.execute("select 1")
        """
    )
    result.assert_outcomes(passed=4, failed=2)
    assert entries(result) == ["test_forgets", "test_forgets_too"]


def test_those_that_are_on_purpose(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="module")
        def rolled_back(DSN):
            conn = psycopg.connect(DSN)
            conn.execute("select 1")
            yield conn
            conn.rollback()
            conn.close()

        @pytest.fixture(scope="module")
        def block(DSN):
            with psycopg.connect(DSN) as conn, conn.transaction(force_rollback=True):
                yield conn

        @pytest.fixture(scope="module")
        def explicit(DSN):
            with psycopg.connect(DSN, autocommit=True) as conn:
                conn.execute("begin")
                yield conn

        @pytest.fixture(scope="module")
        def plain(DSN):
            with psycopg.connect(DSN) as conn:
                conn.execute("select 1")
                conn.commit()
                yield conn

        @pytest.fixture(scope="module")
        def outer(DSN):
            with psycopg.connect(DSN) as conn:
                conn.execute("select 1")
                yield conn

        @pytest.fixture(scope="module")
        def lent(outer):
            return outer

        @pytest.fixture
        def isolated(lent):
            with lent.transaction(force_rollback=True):
                yield lent

        @pytest.fixture
        def one_each(DSN):
            with psycopg.connect(DSN) as conn:
                conn.execute("select 1")
                yield conn

        @many
        def test_them(rolled_back, block, explicit, plain, one_each, n):
            rolled_back.execute("select 1")
            block.execute("select 1")

        @many
        def test_savepoints(isolated, n):
            isolated.execute("select 1")
        """
    )
    result.assert_outcomes(passed=40)
    assert entries(result) == []


def test_those_of_what_a_test_opens_and_somebody_else_closes(run: Run) -> None:
    """A second look, for which a task that is still at work gives reason, sees no more than the first one."""
    result = run(
        """
        import asyncio

        pytestmark = pytest.mark.pgleak

        async def work():
            await asyncio.sleep(30)

        @pytest.fixture
        def make(DSN):
            conns = []

            def connect():
                conns.append(psycopg.connect(DSN))
                return conns[-1]

            yield connect
            for conn in conns:
                conn.close()

        async def test_finalizer(DSN, request):
            conn = psycopg.connect(DSN)
            request.addfinalizer(conn.close)
            conn.execute("select 1")
            task = asyncio.create_task(work())
            await asyncio.sleep(0)

        async def test_factory(make):
            make().execute("select 1")
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
        """
    )
    result.assert_outcomes(passed=2)
    assert entries(result) == []
