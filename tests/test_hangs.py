"""What happens to a run that hangs: a wait for a lock is told of, and ended where that is right; so are lost slots."""

from __future__ import annotations

import textwrap
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

Run = Callable[..., pytest.RunResult]

CONFTEST = """
    import threading
    import psycopg, psycopg_pool, pytest
    from pytest_pgleak.hangs.live_terminal import LiveTerminal

    KEPT = []
    TOLD = threading.Event()
    write = LiveTerminal.write

    def tell(self, text):
        write(self, text)
        TOLD.set()

    LiveTerminal.write = tell

    def when_told(action):
        TOLD.clear()

        def wait():
            TOLD.wait(60)
            action()

        threading.Thread(target=wait).start()

    @pytest.fixture(scope="session")
    def table(pgleak_dsn):
        with psycopg.connect(pgleak_dsn) as conn:
            conn.execute("create table visits (name text)")

    @pytest.fixture(scope="session")
    def other(pgleak_dsn):
        with psycopg.connect(pgleak_dsn, autocommit=True) as conn:
            yield conn
"""
HEADER = "import threading, psycopg, psycopg_pool, pytest\nfrom conftest import KEPT, when_told\n"
SOON = "[pytest]\npgleak_blocked_after = 0.3\n"


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    """Write an inner suite and run it in a process of its own."""

    def write_and_run(source: str, *args: str, ini: str = SOON, conftest: str = "") -> pytest.RunResult:
        pytester.makeini(ini)
        pytester.makeconftest(textwrap.dedent(CONFTEST) + textwrap.dedent(conftest))
        pytester.makepyfile(test_it=HEADER + textwrap.dedent(source))
        return pytester.runpytest_subprocess(
            "-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}", *args, timeout=120
        )

    return write_and_run


@pytest.fixture
def foreign_dsn(server_dsn: str) -> Iterator[str]:
    name = f"foreign_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        conn.execute(f"create database {name}")
        with psycopg.connect(make_conninfo(server_dsn, dbname=name)) as inside:
            inside.execute("create table visits (name text)")
        yield make_conninfo(server_dsn, dbname=name)
        conn.execute(f"drop database {name} with (force)")


@pytest.fixture
def few(server_dsn: str) -> Iterator[str]:
    """A role that may have two connections."""
    role = f"few_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        conn.execute(f"create role {role} login connection limit 2 password 's3cr3t'")
        yield make_conninfo(server_dsn, user=role, password="s3cr3t")
        conn.execute(f"drop role {role}")


LEAVES = """
    def test_leaves(table, pgleak_dsn):
        KEPT.append(psycopg.connect(pgleak_dsn))
        KEPT[-1].execute("insert into visits values ('s3cr3t')")
"""
TRUNCATES = """
    @pytest.mark.pgleak
    def test_truncates(table, pgleak_dsn):
        with psycopg.connect(pgleak_dsn) as conn:
            conn.execute("truncate visits")
"""
MESSAGE = [
    "pgleak: test_it.py::test_truncates (call) has been waiting for a lock for *",
    "  waiting   truncate visits",
    "            pid *, database pgleak_*, opened test_it.py:* in test_truncates",
    "  lock      AccessExclusiveLock on relation visits",
    "  held by   pid *, idle in transaction*, xid *: an uncommitted write is held, locks RowExclusiveLock",
    "  last sql  insert into visits values ('…')",
    "  opened    test_it.py:5 in test_leaves, by test_it.py::test_leaves, which is over",
    "  done      pid * was terminated, the run goes on",
]


def messages(result: pytest.RunResult) -> int:
    return result.stdout.str().count("has been waiting for a lock")


@pytest.mark.parametrize("capture", ["--capture=fd", "--capture=sys", "--capture=tee-sys", "--capture=no"])
def test_what_an_unmarked_test_left_is_named_and_ended(run: Run, capture: str) -> None:
    result = run(LEAVES + TRUNCATES, capture)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(MESSAGE, consecutive=True)
    assert messages(result) == 1
    assert "s3cr3t" not in result.stdout.str()


def test_a_clean_suite_is_told_nothing(run: Run) -> None:
    closes = LEAVES + "        KEPT.pop().close()\n"
    result = run(closes + TRUNCATES)
    result.assert_outcomes(passed=2)
    assert messages(result) == 0


def test_what_a_test_was_allowed_to_leave(run: Run) -> None:
    leaves = LEAVES.replace("def", "@pytest.mark.pgleak(allow=['connection-not-closed'])\n    def")
    result = run(leaves + TRUNCATES)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [MESSAGE[0], "  opened    test_it.py:6 in test_leaves, by *, which is over", MESSAGE[-1]]
    )


def test_an_unmarked_test_waits_no_longer_once_a_marked_one_has_begun(run: Run) -> None:
    marked = "    @pytest.mark.pgleak\n    def test_first():\n        pass\n"
    result = run(marked + LEAVES + TRUNCATES.replace("    @pytest.mark.pgleak\n", ""))
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines([MESSAGE[0], MESSAGE[-1]])


def test_in_a_workers_own_words_under_xdist(run: Run) -> None:
    result = run(LEAVES + TRUNCATES, "-n1")
    result.assert_outcomes(passed=2)
    result.stderr.fnmatch_lines(MESSAGE, consecutive=True)


def test_in_pytesters_own_process(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makeini(SOON)
    pytester.makepyfile(
        test_it="""
        import psycopg, pytest

        KEPT = []

        def test_leaves(pgleak_dsn):
            KEPT.append(psycopg.connect(pgleak_dsn))
            KEPT[-1].execute("select pg_advisory_xact_lock(42)")

        @pytest.mark.pgleak
        def test_locks(pgleak_dsn):
            with psycopg.connect(pgleak_dsn) as conn:
                conn.execute("select pg_advisory_xact_lock(42)")
            KEPT.pop().close()
        """
    )
    result = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}"
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["pgleak: test_it.py::test_locks (call) has been *", MESSAGE[-1]])


def test_in_a_database_of_somebody_elses_it_is_only_named(run: Run, foreign_dsn: str) -> None:
    result = run(
        f"""
        def test_leaves():
            KEPT.append(psycopg.connect({foreign_dsn!r}))
            KEPT[-1].execute("insert into visits values (1)")
            when_told(KEPT[-1].close)

        @pytest.mark.pgleak
        def test_truncates():
            with psycopg.connect({foreign_dsn!r}) as conn:
                conn.execute("truncate visits")
        """
    )
    result.assert_outcomes(passed=2)
    by_hand = (
        "  by hand   select pg_terminate_backend(*); in a database that is not its own, pgleak needs pgleak_terminate*"
    )
    result.stdout.fnmatch_lines([MESSAGE[0], "  opened    test_it.py:5 in test_leaves, by *, which is over", by_hand])
    assert messages(result) == 1


def test_in_a_database_of_somebody_elses_if_the_user_allows(run: Run, foreign_dsn: str) -> None:
    result = run(
        f"""
        def test_leaves():
            KEPT.append(psycopg.connect({foreign_dsn!r}))
            KEPT[-1].execute("insert into visits values (1)")

        @pytest.mark.pgleak
        def test_truncates():
            with psycopg.connect({foreign_dsn!r}) as conn:
                conn.execute("truncate visits")
        """,
        ini=SOON + "pgleak_terminate = true\n",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([MESSAGE[0], MESSAGE[-1]])


def test_a_fixture_that_drops_what_an_inner_fixture_has_left_locked(run: Run) -> None:
    result = run(
        """
        @pytest.fixture
        def own_table(pgleak_dsn):
            with psycopg.connect(pgleak_dsn, autocommit=True) as conn:
                conn.execute("create table own (a int)")
                yield
                conn.execute("drop table own")

        @pytest.fixture
        def leaves(own_table, pgleak_dsn):
            KEPT.append(psycopg.connect(pgleak_dsn))
            KEPT[-1].execute("insert into own values (1)")
            yield

        @pytest.mark.pgleak
        def test_it(leaves):
            pass

        @pytest.mark.pgleak
        def test_clean(own_table):
            pass
        """
    )
    # The leak itself is reported as ever.
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "pgleak: test_it.py::test_it (teardown) has been waiting for a lock for *",
            "  waiting   drop table own",
            "  opened    test_it.py:* in leaves, by fixture 'leaves' (function scope), which is over",
            "  done      pid * was terminated, the run goes on",
            "*ERROR at teardown of test_it*",
            "[[]connection-not-closed]*",
            "*- pgleak: waited on a lock -*",
            "pgleak: test_it.py::test_it (teardown) has been waiting for a lock for *",
        ]
    )


def test_a_fixture_that_drops_what_its_own_test_was_allowed_to_leave(run: Run) -> None:
    result = run(
        """
        @pytest.fixture
        def own_table(pgleak_dsn):
            with psycopg.connect(pgleak_dsn, autocommit=True) as conn:
                conn.execute("create table own (a int)")
                yield
                conn.execute("drop table own")

        @pytest.mark.pgleak(allow=["connection-not-closed"])
        def test_it(own_table, pgleak_dsn):
            KEPT.append(psycopg.connect(pgleak_dsn))
            KEPT[-1].execute("insert into own values (1)")
        """
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["pgleak: test_it.py::test_it (teardown) *", MESSAGE[-1]])


def test_a_session_fixture_that_drops_everything(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="session")
        def schema(pgleak_dsn):
            with psycopg.connect(pgleak_dsn, autocommit=True) as conn:
                conn.execute("create schema shop; create table shop.items (a int)")
                yield
                conn.execute("drop schema shop cascade")

        def test_leaves(schema, pgleak_dsn):
            KEPT.append(psycopg.connect(pgleak_dsn))
            KEPT[-1].execute("select * from shop.items")

        @pytest.mark.pgleak
        def test_last(schema):
            pass
        """
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "pgleak: test_it.py::test_last (teardown) *",
            "  waiting   drop schema shop cascade",
            "  lock      AccessExclusiveLock on relation shop.items",
            MESSAGE[-1],
        ]
    )


def test_a_set_up_that_waits(run: Run) -> None:
    result = run(
        LEAVES
        + """
    @pytest.fixture
    def emptied(table, other):
        other.execute("truncate visits")

    @pytest.mark.pgleak
    def test_it(emptied):
        assert not "failed"
"""
    )
    result.assert_outcomes(passed=1, failed=1)
    # What its set-up waited for stands beside the failure of the test.
    result.stdout.fnmatch_lines(
        ["pgleak: test_it.py::test_it (setup) *", MESSAGE[-1], "*- pgleak: waited on a lock -*", MESSAGE[-1]]
    )


def test_an_async_test_that_waits(run: Run) -> None:
    result = run(
        LEAVES
        + """
    @pytest.mark.pgleak
    async def test_truncates(pgleak_dsn):
        async with await psycopg.AsyncConnection.connect(pgleak_dsn) as conn:
            await conn.execute("truncate visits")
"""
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(MESSAGE, consecutive=True)


def test_a_row_that_somebody_else_has_updated(run: Run) -> None:
    result = run(
        """
        def test_leaves(table, pgleak_dsn, other):
            other.execute("insert into visits values ('a')")
            KEPT.append(psycopg.connect(pgleak_dsn))
            KEPT[-1].execute("update visits set name = 'b'")

        @pytest.mark.pgleak
        def test_updates(other):
            other.execute("update visits set name = 'c'")
        """
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["  lock      ShareLock on transaction *: on a row that*", MESSAGE[-1]])


def test_an_advisory_lock_of_a_session_that_nobody_ended(run: Run) -> None:
    result = run(
        """
        def test_leaves(pgleak_dsn):
            KEPT.append(psycopg.connect(pgleak_dsn, autocommit=True))
            KEPT[-1].execute("select pg_advisory_lock(42)")

        @pytest.mark.pgleak
        def test_locks(other):
            other.execute("select pg_advisory_lock(42)")
        """
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["  lock      ExclusiveLock on the advisory key 42", "  held by   pid *, idle*", MESSAGE[-1]]
    )


def test_the_running_tests_own_transaction_is_left_alone(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_it(table, pgleak_dsn, other):
            with psycopg.connect(pgleak_dsn) as conn:
                conn.execute("insert into visits values ('a')")
                when_told(conn.rollback)
                other.execute("truncate visits")
                conn.execute("select 1")
                conn.rollback()
        """
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["  opened    test_it.py:* in test_it, by this test", "  by hand   select pg_terminate_backend(*)"]
    )
    assert messages(result) == 1


def test_the_transaction_of_a_living_fixture_is_left_alone(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="module")
        def holds(table, pgleak_dsn):
            with psycopg.connect(pgleak_dsn) as conn:
                conn.execute("insert into visits values ('a')")
                when_told(conn.rollback)
                yield conn
                conn.execute("select 1")

        def test_first(holds):
            pass

        @pytest.mark.pgleak
        def test_truncates(other, holds):
            other.execute("truncate visits")
        """
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["  opened    test_it.py:* in holds, by fixture 'holds' (module scope)", "  by hand   *"]
    )


def test_the_connection_of_an_earlier_test_that_is_in_use_again_is_left_alone(run: Run) -> None:
    result = run(
        """
        def test_opens(table, pgleak_dsn):
            KEPT.append(psycopg.connect(pgleak_dsn))

        @pytest.mark.pgleak
        def test_checked():
            pass

        def test_uses_it_again(other):
            KEPT[-1].execute("insert into visits values ('a')")
            when_told(KEPT[-1].rollback)
            other.execute("truncate visits")
            KEPT[-1].execute("select 1")
        """
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["  by hand   select pg_terminate_backend(*)"])


def test_another_driver_is_named_by_its_application_name(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_it(table, pgleak_dsn, other):
            dsn = psycopg.conninfo.make_conninfo(pgleak_dsn, application_name="migrations")
            conn = psycopg.pq.PGconn.connect(dsn.encode())
            conn.exec_(b"begin; lock table visits")
            when_told(conn.finish)
            other.execute("truncate visits")
        """
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["  opened    not by psycopg in this process: application_name 'migrations', role *, database pgleak_*"]
    )


def test_a_prepared_transaction(run: Run, server_dsn: str) -> None:
    with psycopg.connect(server_dsn) as conn:
        if conn.execute("select current_setting('max_prepared_transactions')::int").fetchone() == (0,):
            pytest.skip("the server allows no prepared transactions")
    result = run(
        """
        import os

        @pytest.mark.pgleak
        def test_it(table, pgleak_dsn, other):
            gid = f"'it''s {os.getpid()}'"
            other.execute(f"begin; insert into visits values ('a'); prepare transaction {gid}")

            def undo():
                with psycopg.connect(pgleak_dsn, autocommit=True) as conn:
                    conn.execute(f"rollback prepared {gid}")

            when_told(undo)
            other.execute("truncate visits")
        """
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "  held by   prepared transaction 'it''s *', of role *, prepared * s ago, RowExclusiveLock",
            "  by hand   ROLLBACK PREPARED 'it''s *'  (in database pgleak_*)",
        ]
    )
    assert messages(result) == 1


def test_a_test_that_is_slow_but_not_blocked(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_slow(other):
            other.execute("select pg_sleep(1)")

        @pytest.mark.pgleak
        def test_waits_but_not_for_long(table, pgleak_dsn, other):
            other.execute("select pg_sleep(0.5)")
            with psycopg.connect(pgleak_dsn) as conn:
                conn.execute("insert into visits values ('a')")
                threading.Timer(0.05, conn.rollback).start()
                other.execute("truncate visits")
        """,
        ini="[pytest]\npgleak_blocked_after = 0.4\n",
    )
    result.assert_outcomes(passed=2)
    assert messages(result) == 0


THREAD = """
    def test_{name}():
        import os

        # No thread that Python knows; only the system does.
        uncounted = len(os.listdir("/proc/self/task")) - threading.active_count()
        assert (uncounted == 1) is {there}
"""


def test_the_thread_is_there_from_the_first_checked_test_on(run: Run) -> None:
    first = THREAD.format(name="first", there=False)
    result = run(first + TRUNCATES + THREAD.format(name="last", there=True))
    result.assert_outcomes(passed=3)


@pytest.mark.parametrize("args", [(), ("--pgleak-select=all",)])
def test_there_is_no_thread_where_nobody_is_to_be_told(run: Run, args: tuple[str, ...]) -> None:
    ini = "[pytest]\npgleak_blocked_after = 0\n" if args else SOON
    result = run(THREAD.format(name="it", there=False), *args, ini=ini)
    result.assert_outcomes(passed=1)


FAILING = """
    import pytest_pgleak.hangs.lock_watch
    from pytest_pgleak.observer import ObserverError

    looks = iter([{error}, {error}])
    lock_waits = pytest_pgleak.hangs.lock_watch.lock_waits

    def fail_first(*args):
        if (error := next(looks, None)) is not None:
            raise error
        return lock_waits(*args)

    pytest_pgleak.hangs.lock_watch.lock_waits = fail_first
"""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("ObserverError('gone fishing')", "pgleak: could not look for statements that wait for a lock: gone fishing"),
        ("KeyError('oops')", "pgleak: internal error of pytest-pgleak in the look for lock waits*"),
    ],
)
def test_it_goes_on_after_an_error_of_its_own(run: Run, error: str, told: str) -> None:
    result = run(LEAVES + TRUNCATES, conftest=FAILING.format(error=error))
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([*MESSAGE, told])


def test_a_patience_that_cannot_be_meant(run: Run) -> None:
    result = run(TRUNCATES, ini="[pytest]\npgleak_blocked_after = soon\n")
    result.stderr.fnmatch_lines(["*pgleak_blocked_after = soon: expected a number of seconds*"])


def note_of(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("E   ")]


def test_a_pool_timeout_says_who_holds_the_connections(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="module")
        def pool(pgleak_dsn):
            with psycopg_pool.ConnectionPool(pgleak_dsn, min_size=1, max_size=3, timeout=0.2, name="app") as pool:
                yield pool
                pool.putconn(KEPT.pop())

        def test_keeps(pool):
            KEPT.append(pool.getconn())

        def test_loses(pool):
            pool.getconn()

        @pytest.mark.pgleak
        def test_it(pool):
            with pool.connection() as conn:
                conn.execute("select 's3cr3t'")
                pool.getconn()
        """
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E  *PoolTimeout: couldn't get a connection after 0.20 sec",
            "E  *pgleak: pool 'app' (max_size 3): 2 checked out, 1 slot lost for ever",
            "E  *  pid * taken * s ago at test_it.py:* in test_keeps, by test_it.py::test_keeps, idle",
            "E  *  pid * taken * s ago at test_it.py:* in test_it, by this test, idle in transaction",
            "E  *    last sql  select '…'",
            "E  *  a slot that is lost: taken * s ago at test_it.py:* in test_loses, by *, garbage-collected without*",
        ],
        consecutive=True,
    )
    assert not any("s3cr3t" in line for line in note_of(result))


def test_an_async_pool_and_one_that_lets_nobody_wait(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        async def test_waits(pgleak_dsn):
            pool = psycopg_pool.AsyncConnectionPool(pgleak_dsn, min_size=1, max_size=1, timeout=0.2, open=False)
            async with pool, pool.connection(), pool.connection():
                pass

        @pytest.mark.pgleak
        async def test_may_not_wait(pgleak_dsn):
            import asyncio

            pool = psycopg_pool.AsyncConnectionPool(pgleak_dsn, min_size=1, max_size=1, max_waiting=1, open=False)
            async with pool, pool.connection():
                waiting = asyncio.create_task(pool.getconn(timeout=0.2))
                await asyncio.sleep(0)
                try:
                    async with pool.connection():
                        pass
                finally:
                    with pytest.raises(psycopg_pool.PoolTimeout):
                        await waiting
        """
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "E  *PoolTimeout: couldn't get a connection after 0.20 sec",
            "E  *pgleak: pool 'pool-1' (max_size 1): 1 checked out",
            "E  *  pid * at test_it.py:* in test_waits, by this test, *",
            "E  *TooManyRequests: *",
            "E  *pgleak: pool 'pool-2' (max_size 1): 1 checked out",
            "E  *  pid * at test_it.py:* in test_may_not_wait, by this test, *",
        ]
    )


APP = """
    from fastapi import FastAPI, Response

    @pytest.fixture
    def pgleak_app(pgleak_dsn):
        pool = psycopg_pool.AsyncConnectionPool(pgleak_dsn, min_size=1, max_size=1, timeout=0.2, open=False)

        async def lifespan(app):
            async with pool:
                yield

        import contextlib
        app = FastAPI(lifespan=contextlib.asynccontextmanager(lifespan))

        @app.get("/keeps/")
        async def keeps():
            KEPT.append(await pool.getconn())

        @app.get("/takes/")
        async def takes():
            async with pool.connection():
                pass

        @app.get("/catches/")
        async def catches():
            try:
                await pool.getconn()
            except psycopg_pool.PoolTimeout:
                return Response(status_code=503)

        return app
"""


@pytest.mark.parametrize("sync", [False, True])
def test_in_a_request(run: Run, sync: bool) -> None:
    test = """
    @pytest.mark.pgleak
    async def test_it(pgleak_client):
        await pgleak_client.get("/keeps/")
        await pgleak_client.get("/takes/")
"""
    if sync:
        test = test.replace("async ", "").replace("await ", "").replace("pgleak_client", "pgleak_sync_client")
    result = run(APP + test)
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(
        [
            "E  *PoolTimeout: couldn't get a connection after 0.20 sec",
            "E  *pgleak: pool 'pool-1' (max_size 1): 1 checked out",
            "E  *  pid * taken * s ago at test_it.py:* in keeps, GET /keeps/ (#1), by this test, idle",
        ]
    )


def test_an_application_that_catches_the_error(run: Run) -> None:
    result = run(
        APP
        + """
    @pytest.mark.pgleak
    async def test_it(pgleak_client):
        await pgleak_client.get("/keeps/")
        assert (await pgleak_client.get("/catches/")).status_code == 200
"""
    )
    result.stdout.fnmatch_lines(
        [
            "E  *assert 503 == 200",
            "*- pgleak: who held the connections -*",
            "pgleak: pool 'pool-1' (max_size 1): 1 checked out",
            "  pid * taken * s ago at test_it.py:* in keeps, GET /keeps/ (#1), by this test, idle",
        ]
    )


def test_an_unmarked_test_gets_no_note(run: Run) -> None:
    result = run(
        """
        def test_it(pgleak_dsn):
            with psycopg_pool.ConnectionPool(pgleak_dsn, min_size=1, max_size=1, timeout=0.2) as pool:
                with pool.connection(), pool.connection():
                    pass

        @pytest.mark.pgleak
        def test_clean(pgleak_dsn):
            with psycopg_pool.ConnectionPool(pgleak_dsn, min_size=1, max_size=1, timeout=0.2) as pool:
                with pool.connection():
                    with pytest.raises(psycopg_pool.PoolTimeout):
                        pool.getconn()
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    assert "pgleak: pool" not in result.stdout.str()


CROWD = [
    "E  *OperationalError: *too many connections for role*",
    "E  *pgleak: this process has 2 connections open to that server",
    "E  *  2 × test_it.py:* in test_it, the oldest * s ago, by this test (pid *, *)",
    "E  *others have * connection*",
    "E  *  * × application_name 'pgleak observer', role *, database *",
    "E  *limits: max_connections *, * of them for superusers; the role may have 2",
]


@pytest.mark.parametrize("doubled", [False, True], ids=["one host", "two hosts"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_server_that_takes_nobody_any_more(run: Run, few: str, doubled: bool, is_async: bool) -> None:
    if doubled:
        host = psycopg.conninfo.conninfo_to_dict(few).get("host")
        port = psycopg.conninfo.conninfo_to_dict(few).get("port", "5432")
        few = make_conninfo(few, host=f"{host},{host}", port=f"{port},{port}")
    connect = "await psycopg.AsyncConnection.connect" if is_async else "psycopg.connect"
    result = run(
        f"""
        @pytest.mark.pgleak
        {"async " * is_async}def test_it(pgleak_postgres):
            for _ in range(3):
                KEPT.append({connect}({few!r}))
        """
    )
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(CROWD)
    # psycopg raises an error of its own about both hosts: it has the note, once.
    assert sum("this process has" in line for line in note_of(result)) == 1
    assert not any("s3cr3t" in line for line in note_of(result))


@pytest.mark.parametrize("kind", ["ConnectionPool", "NullConnectionPool"])
def test_a_pool_that_cannot_connect_because_the_server_is_full(run: Run, few: str, kind: str) -> None:
    result = run(
        f"""
        @pytest.mark.pgleak
        def test_it(pgleak_postgres):
            for _ in range(2):
                KEPT.append(psycopg.connect({few!r}))
            with psycopg_pool.{kind}({few!r}, open=False) as pool:
                pool.wait(0.3)
        """
    )
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(
        [
            "E  *PoolTimeout: pool initialization incomplete after 0.3 sec",
            "E  *pgleak: pool 'pool-1'*: 0 checked out",
            "E  *  the pool could not open another one: *FATAL: too many connections for role*",
            "E  *pgleak: this process has 2 connections open to that server",
            "E  *  2 × test_it.py:* in test_it, *",
        ]
    )
