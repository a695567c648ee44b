"""Lost writes beside other errors: a test that fails by itself keeps its error, and learns what was lost before."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]

HEADER = """
    import contextlib, psycopg, psycopg_pool, pytest
    from fastapi import Depends, FastAPI, HTTPException
    from fastapi.testclient import TestClient

    INSERT = "insert into visits values (now())"

    @pytest.fixture
    def db(pgleak_dsn):
        with psycopg.connect(pgleak_dsn) as conn:
            conn.execute("create table if not exists visits (timestamp timestamptz)")
            conn.execute("truncate visits")
        return pgleak_dsn

    def count(db):
        with psycopg.connect(db) as conn:
            return conn.execute("select count(*) from visits").fetchone()[0]

    def application(db):
        app = FastAPI()

        def get_conn():
            conn = psycopg.connect(db)
            try:
                yield conn
            finally:
                conn.close()

        @app.post("/")
        def write(conn=Depends(get_conn)):
            conn.execute(INSERT)

        return app
"""


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    """Run an inner suite in a process of its own."""

    def write_and_run(source: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=textwrap.dedent(HEADER) + textwrap.dedent(source))
        return pytester.runpytest_subprocess(
            *(
                "-p",
                "no:cacheprovider",
                "-p",
                "no:pytest_asyncio.plugin",
                "-W",
                "ignore",
                f"--pgleak-dsn={server_dsn}",
                *args,
            )
        )

    return write_and_run


def test_what_was_lost_before_a_failure_may_be_the_reason(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_visit(db):
            conn = psycopg.connect(db)
            conn.execute(INSERT)
            conn.close()
            assert count(db) == 1

        @pytest.mark.pgleak
        def test_request(db):
            assert TestClient(application(db)).post("/").status_code == 200
            assert count(db) == 1
        """
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "E * assert 0 == 1",
            "*- pgleak also found -*",
            "This happened before the test failed; it may be the reason.",
            "[[]write-lost] a write was rolled back without a word",
            "  ended     close() at test_it.py:* in test_visit with the transaction open; nothing had called commit()",
            "E * assert 0 == 1",
            "*- pgleak also found -*",
            "[[]write-lost] a write was rolled back without a word",
            "  request   #1 POST / → 200: the client was told that all is well",
        ]
    )


def test_what_the_failure_interrupted_is_no_finding(run: Run) -> None:
    result = run(
        """
        pytestmark = pytest.mark.pgleak

        def test_close(db):
            with contextlib.closing(psycopg.connect(db)) as conn:
                conn.execute(INSERT)
                assert False

        def test_with(db):
            with psycopg.connect(db) as conn:
                conn.execute(INSERT)
                assert False

        def test_block(db):
            with psycopg.connect(db) as conn, conn.transaction():
                conn.execute(INSERT)
                assert False

        def test_finalizer(db, request):
            conn = psycopg.connect(db)
            request.addfinalizer(conn.close)
            conn.execute(INSERT)
            assert False

        def test_exit_stack(db):
            with contextlib.ExitStack() as stack:
                conn = psycopg.connect(db)
                stack.callback(conn.close)
                conn.execute(INSERT)
                assert False

        @pytest.fixture
        def factory(db):
            with contextlib.ExitStack() as stack:
                def connect():
                    conn = psycopg.connect(db)
                    stack.callback(conn.close)
                    return conn
                yield connect

        def test_factory(factory):
            factory().execute(INSERT)
            assert False

        def test_skips_in_the_middle(db):
            with contextlib.closing(psycopg.connect(db)) as conn:
                conn.execute(INSERT)
                pytest.skip("later")
        """
    )
    result.assert_outcomes(failed=6, skipped=1)
    result.stdout.no_fnmatch_line("*write-lost*")


@pytest.mark.parametrize(
    ("option", "outcome", "line"),
    [
        ("fail", {"failed": 1}, "[[]commit-after-response] write committed after the response had started"),
        ("warn", {"passed": 1}, "   1 × [[]commit-after-response] test_it.py:*  (warning)"),
        ("off", {"passed": 1}, None),
    ],
)
def test_late_commits_by_their_level(run: Run, option: str, outcome: dict[str, int], line: str | None) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_it(db):
            app = FastAPI()

            def get_conn():
                with psycopg.connect(db) as conn:
                    yield conn

            @app.post("/")
            def write(conn=Depends(get_conn)):
                conn.execute(INSERT)

            TestClient(app).post("/")
        """,
        "-o",
        f"pgleak_levels=commit-after-response = {option}",
    )
    result.assert_outcomes(**outcome)
    if line is None:
        result.stdout.no_fnmatch_line("*commit-after-response*")
    else:
        result.stdout.fnmatch_lines([line])


def test_warnings_are_told_in_the_summary_and_may_be_made_to_fail(run: Run) -> None:
    source = """
        @pytest.mark.pgleak
        def test_it(db):
            with psycopg_pool.ConnectionPool(db, min_size=1, max_size=4, open=False) as pool:
                with pool.connection():
                    with pool.connection():
                        pass
                conn = pool.getconn()
                conn.execute("select 1")
                pool.putconn(conn)
        """
    result = run(source)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*= pgleak: 2 warnings from 2 lines of code =*",
            "[[]nested-checkout] second connection taken from a pool while holding one",
            "  while     another one is held, taken at test_it.py:* in test_it",
            "[[]returned-in-transaction] connection returned to its pool in a transaction",
        ]
    )
    result = run(source, "-o", "pgleak_levels=nested-checkout = fail\nreturned-in-transaction = off")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*returned-in-transaction*")


def test_how_often_on_the_same_lines(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_direct(db):
            for _ in range(7):
                conn = psycopg.connect(db)
                conn.execute(INSERT)
                conn.close()

        @pytest.mark.pgleak
        def test_requests(db):
            client = TestClient(application(db))
            for _ in range(3):
                client.post("/")
        """
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "[[]write-lost] a write was rolled back without a word",
            "  server    pid *, 7 transactions (xid *, *, *, *, *, …) that wrote visits: rolled back",
            "[[]write-lost] a write was rolled back without a word (3 times)",
            "  request   #1 POST / → 200, also #2, #3: the client was told that all is well",
        ]
    )
