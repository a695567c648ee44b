"""What a global variable keeps: told once at the end of the session, in use until then, charged to nobody's test."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]

APP = """
    import functools, psycopg, psycopg_pool

    dsn = None
    pool = conn = listener = None

    def open_pool():
        return psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)

    def get_pool():
        global pool
        pool = pool or open_pool()
        return pool

    def get_conn():
        global conn
        conn = conn or psycopg.connect(dsn, autocommit=True)
        return conn

    def get_listener():
        global listener
        listener = listener or get_pool().getconn()
        return listener

    @functools.lru_cache
    def cached():
        return psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)

    @functools.cache
    def cached_by_name(name):
        return psycopg.connect(dsn, autocommit=True)

    class Database:
        shared = None

        @functools.cached_property
        def pool(self):
            return psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)

        @classmethod
        def conn(cls):
            cls.shared = cls.shared or psycopg.connect(dsn, autocommit=True)
            return cls.shared

    database = Database()
    pools = {}

    def tenants(name):
        if name not in pools:
            pools[name] = psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)
        return pools[name]

    def enclosing():
        inner = None

        def get():
            nonlocal inner
            inner = inner or psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)
            return inner

        return get

    enclosed = enclosing()
    kept = []
    by_user = {}

    def leak():
        kept.append(psycopg.connect(dsn))

    def remember(user):
        by_user[user] = psycopg.connect(dsn)
"""

PLACES = """
    import contextvars, queue, threading, weakref
    import psycopg

    dsn = None
    local = threading.local()
    context = contextvars.ContextVar("conn", default=None)
    idle = queue.Queue()
    weak = weakref.WeakValueDictionary()
    by_thread = {}

    def connect():
        return psycopg.connect(dsn, autocommit=True)

    def of_thread():
        if not hasattr(local, "conn"):
            local.conn = connect()
        return local.conn

    def of_context():
        if context.get() is None:
            context.set(connect())
        return context.get()

    def of_ident():
        me = threading.get_ident()
        if me not in by_thread:
            by_thread[me] = connect()
        return by_thread[me]

    def taken():
        try:
            conn = idle.get_nowait()
        except queue.Empty:
            conn = connect()
        idle.put(conn)
        return conn

    def weakly():
        conn = weak["conn"] = connect()
        return conn

    def one_more_in_thread():
        local.all = [*getattr(local, "all", ()), connect()]

    def another_in_thread():
        local.conn = connect()
"""

CONFTEST = """
    import psycopg, psycopg_pool, pytest
    from app import db

    @pytest.fixture(scope="session", autouse=True)
    def address(pgleak_dsn):
        db.dsn = pgleak_dsn
"""

HEADER = """
    import asyncio, psycopg, psycopg_pool, pytest
    from app import db

    def pid(pool):
        with pool.connection() as conn:
            return conn.execute("select pg_backend_pid()").fetchone()[0]
"""


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    """Write an application and its suite, and run that in a process of its own."""

    def write_and_run(source: str, *args: str, conftest: str = "", **modules: str) -> pytest.RunResult:
        package = pytester.mkpydir("app")
        for name, text in ({"db": APP} | modules).items():
            (package / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
        pytester.makeconftest(textwrap.dedent(CONFTEST) + textwrap.dedent(conftest))
        source = textwrap.dedent(HEADER) + textwrap.dedent(source).replace("DSN", repr(server_dsn))
        pytester.makepyfile(test_it=source)
        options = ("-p", "no:cacheprovider", "-W", "ignore", f"--pgleak-dsn={server_dsn}", "--pgleak-select=all")
        return pytester.runpytest_subprocess(*options, *args)

    return write_and_run


def entries(result: pytest.RunResult) -> list[str]:
    """The lines of the summary that open an entry."""
    return sorted(line.strip() for line in result.outlines if " × [" in line)


def test_what_the_first_test_opens_is_told_at_the_end_and_used_until_then(run: Run) -> None:
    result = run(
        """
        WAYS = {
            "variable": lambda: pid(db.get_pool()),
            "cache": lambda: pid(db.cached()),
            "property": lambda: pid(db.database.pool),
            "closure": lambda: pid(db.enclosed()),
            "connection": lambda: db.get_conn().info.backend_pid,
            "cached connection": lambda: db.cached_by_name("main").info.backend_pid,
            "class": lambda: db.Database.conn().info.backend_pid,
            "checkout": lambda: db.get_listener().info.backend_pid,
        }
        seen = {}

        @pytest.mark.parametrize("time", ["first", "second"])
        @pytest.mark.parametrize("way", WAYS)
        def test_it(way, time):
            found = WAYS[way]()
            if time == "second":
                assert found == seen[way]
            seen[way] = found

        @pytest.mark.parametrize("name", ["one", "two"])
        def test_by_name(name):
            pid(db.tenants(name))

        @pytest.mark.parametrize("time", ["first", "second"])
        def test_import(time):
            import app.imported

            assert not app.imported.conn.closed
        """,
        imported="import psycopg\nfrom app import db\nconn = psycopg.connect(db.dsn, autocommit=True)\n",
    )
    result.assert_outcomes(passed=20)
    by = "  by the process (module global"
    assert entries(result) == [
        f"1 × [connection-not-closed] app/db.py:{at} in {function}{by} app.db.{variable})  (warning)"
        for at, function, variable in (
            (17, "get_conn", "conn"),
            (31, "cached_by_name", "cached_by_name()"),
            (42, "Database.conn", "Database.shared"),
        )
    ] + [
        f"1 × [connection-not-closed] app/imported.py:3 in <module>{by} app.imported.conn)  (warning)",
        f"1 × [connection-not-returned] app/db.py:22 in get_listener{by} app.db.listener)  (warning)",
        f"1 × [pool-not-closed] app/db.py:27 in cached{by} app.db.cached())  (warning)",
        f"1 × [pool-not-closed] app/db.py:38 in Database.pool{by} app.db.database.pool)  (warning)",
        f"1 × [pool-not-closed] app/db.py:58 in get{by} app.db.enclosed)  (warning)",
        f"1 × [pool-not-closed] app/db.py:8 in open_pool{by} app.db.pool)  (warning)",
        f"2 × [pool-not-closed] app/db.py:50 in tenants{by} app.db.pools[…])  (warning)",
    ]


def test_one_for_each_thread(run: Run) -> None:
    """In a thread-local, in the thread's own context, under the thread's number; and what is lent from a queue."""
    result = run(
        """
        from concurrent.futures import ThreadPoolExecutor
        from app import places

        executor = ThreadPoolExecutor(2)
        WAYS = ["of_thread", "of_ident", "of_context", "taken"]
        seen = {}

        @pytest.fixture(autouse=True)
        def address(pgleak_dsn):
            places.dsn = pgleak_dsn

        @pytest.mark.parametrize("time", ["first", "second"])
        @pytest.mark.parametrize("way", WAYS)
        def test_it(way, time):
            found = getattr(places, way)().info.backend_pid
            if time == "second":
                assert found == seen[way]
            seen[way] = found

        @pytest.mark.parametrize("time", ["first", "second"])
        @pytest.mark.parametrize("way", ["of_thread", "of_ident"])
        def test_in_threads(way, time):
            work = lambda _: getattr(places, way)().execute("select pg_backend_pid(), pg_sleep(0.05)").fetchone()[0]
            found = set(executor.map(work, range(6)))
            if time == "second":
                assert found == seen[way, "threads"]
            seen[way, "threads"] = found
        """,
        places=PLACES,
    )
    result.assert_outcomes(passed=12)
    by = "[connection-not-closed] app/places.py:13 in connect  by the process (module global app.places."
    assert entries(result) == [
        f"1 × {by}context.get())  (warning)",
        f"1 × {by}idle[…])  (warning)",
        f"3 × {by}by_thread[…])  (warning)",
        f"3 × {by}local.conn)  (warning)",
    ]


def test_leaks_in_a_thread_or_a_context(run: Run) -> None:
    result = run(
        """
        import threading
        from app import places

        @pytest.fixture(autouse=True)
        def address(pgleak_dsn):
            places.dsn = pgleak_dsn

        def test_weak():
            places.weakly()

        def test_overwritten():
            places.another_in_thread()
            places.another_in_thread()

        def test_appended():
            places.one_more_in_thread()

        def test_its_own_code():
            places.local.conn = psycopg.connect(places.dsn)

        def test_a_thread_that_ends():
            thread = threading.Thread(target=places.of_thread)
            thread.start()
            thread.join()

        @pytest.mark.pgleak
        async def test_in_its_own_context():
            places.of_context()
        """,
        "-o",
        "pgleak_grace=0.1",
        places=PLACES,
    )
    assert result.parseoutcomes() == {"failed": 6}
    assert entries(result) == [
        (
            "1 × [connection-dropped] app/places.py:13 in connect"
            "  by the process (module global app.places.local.conn)  (warning)"
        ),
        "1 × [connection-not-closed] test_it.py:26 in test_its_own_code",
        "2 × [connection-not-closed] app/places.py:13 in connect",
        "3 × [connection-dropped] app/places.py:13 in connect",
    ]


def test_threads_that_end_with_a_tests_client(run: Run) -> None:
    """They are AnyIO's: in a server they live on. Which is over first, the thread or the test, is chance."""
    result = run(
        """
        from fastapi import FastAPI
        from fastapi.testclient import TestClient
        from app import places

        app = FastAPI()

        @app.get("/{way}")
        def get(way: str):
            getattr(places, way)()

        @pytest.fixture(autouse=True)
        def address(pgleak_dsn):
            places.dsn = pgleak_dsn

        @pytest.fixture
        def client():
            with TestClient(app) as client:
                yield client

        many = pytest.mark.parametrize("n", range(3))

        @many
        def test_fixture(client, n):
            client.get("/of_thread")

        @many
        def test_block(n):
            with TestClient(app) as client:
                client.get("/of_thread")

        @many
        def test_without(n):
            TestClient(app).get("/of_thread")

        def test_overwritten(client):
            client.get("/another_in_thread")
            client.get("/another_in_thread")
        """,
        places=PLACES,
    )
    assert result.parseoutcomes() == {"passed": 9, "failed": 1}
    by = "  by the process (module global app.places.local"
    told = entries(result)
    assert [line for line in told if by not in line] == ["1 × [connection-dropped] app/places.py:13 in connect"]
    # It is told with the name under which it was kept, or as what went with its thread.
    assert {line.partition("] ")[2] for line in told if by in line} <= {
        f"app/places.py:13 in connect{by}.conn)  (warning)",
        f"app/places.py:13 in connect{by})  (warning)",
    }
    result.stdout.fnmatch_lines(["  ended     garbage-collected*, when its thread ended; nothing called close()"])


def test_the_whole_text(run: Run) -> None:
    result = run("def test_it(): pid(db.get_pool())")
    result.stdout.fnmatch_lines(
        [
            "*= pgleak: 1 warning from 1 line of code =*",
            "[[]pool-not-closed] pool opened and never closed",
            "  opened    app/db.py:8 in open_pool",
            "                return psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)",
            "  owner     the process (module global app.db.pool)",
            "  pool      'pool-1' (ConnectionPool, max_size 1), 0 checked out",
            "  ended     it did not: a process-lifetime pool, still open, 1 connection in it",
            "  fix       nothing, if it is meant to live that long; else open and close it in the lifespan, or in*",
            "  ignore    a line of pgleak_ignore: pool-not-closed app/db.py::open_pool",
        ]
    )
    assert "test_it" not in result.stdout.str().partition("= pgleak:")[2]


def test_leaks_are_leaks_in_whatever_variable(run: Run) -> None:
    result = run(
        """
        @pytest.mark.parametrize("n", [1, 2])
        def test_appended(n):
            db.leak()

        @pytest.mark.parametrize("user", [1, 2, 3])
        def test_one_more_for_each_user(user):
            db.remember(user)

        def test_its_own_code():
            db.conn = psycopg.connect(db.dsn)

        def test_its_own_inner_function():
            def connect():
                global mine
                mine = psycopg.connect(db.dsn)
            connect()

        class TestClass:
            def setup_method(self):
                type(self).conn = psycopg.connect(db.dsn)

            def test_class(self):
                pass

        @pytest.fixture
        def own():
            db.pool = db.open_pool()
            return db.pool

        @pytest.fixture
        def closes_something_else():
            conn = psycopg.connect(db.dsn)
            db.cached()
            yield
            conn.close()

        def test_fixtures_own(own):
            pass

        def test_fixture_that_closes(closes_something_else):
            pass
        """,
        "-o",
        "pgleak_grace=0.1",
    )
    assert result.parseoutcomes() == {"failed": 6, "passed": 4, "errors": 3}
    assert entries(result) == [
        (
            "1 × [connection-not-closed] app/db.py:71 in remember"
            "  by the process (module global app.db.by_user[…])  (warning)"
        ),
        "1 × [connection-not-closed] test_it.py:17 in test_its_own_code",
        "1 × [connection-not-closed] test_it.py:22 in connect",
        (
            "1 × [connection-not-closed] test_it.py:27 in TestClass.setup_method"
            "  by setup_method or teardown_method of TestClass"
        ),
        "1 × [pool-not-closed] app/db.py:27 in cached  by fixture 'closes_something_else' (function scope)",
        "1 × [pool-not-closed] app/db.py:8 in open_pool  by fixture 'own' (function scope)",
        "2 × [connection-not-closed] app/db.py:68 in leak",
        "2 × [connection-not-closed] app/db.py:71 in remember",
    ]


@pytest.mark.parametrize(
    "conftest",
    [
        "def pytest_sessionfinish():\n    db.get_pool().close()\n",
        "@pytest.hookimpl(trylast=True)\ndef pytest_sessionfinish():\n    db.get_pool().close()\n",
        "def pytest_unconfigure():\n    db.get_pool().close()\n",
    ],
    ids=["sessionfinish", "sessionfinish last", "unconfigure"],
)
def test_what_the_suite_closes_after_its_last_test_is_not_told(run: Run, conftest: str) -> None:
    result = run("def test_it(): pid(db.get_pool())", conftest=conftest)
    result.assert_outcomes(passed=1)
    assert entries(result) == []


@pytest.mark.parametrize("registered", ["get_pool().close", "lambda: pool.close()"])
def test_what_is_closed_at_exit_is_not_told(run: Run, registered: str) -> None:
    more = f"import atexit\ndef first_use():\n    atexit.register({registered})\n    return get_pool()\n"
    result = run("def test_it(): pid(db.first_use())", db=textwrap.dedent(APP) + more)
    result.assert_outcomes(passed=1)
    assert entries(result) == []


def test_import_and_collection(run: Run) -> None:
    result = run("conn = psycopg.connect(DSN)\nkept = [psycopg.connect(DSN)]\ndef test_it(): pass")
    result.assert_outcomes(passed=1)
    assert entries(result) == [
        "1 × [connection-not-closed] test_it.py:7 in <module>  by the process (module global test_it.conn)  (warning)",
        (
            "1 × [connection-not-closed] test_it.py:8 in <module>"
            "  by the process (opened at import or collection)  (warning)"
        ),
    ]
    result.stdout.fnmatch_lines(["  ended     it did not: a process-lifetime connection, still open"])


def test_each_worker_of_xdist_has_one_and_the_summary_lists_it_once(run: Run) -> None:
    result = run(
        """
        @pytest.mark.parametrize("n", range(8))
        def test_it(n):
            pid(db.get_pool())
        """,
        "-n2",
    )
    result.assert_outcomes(passed=8)
    assert entries(result) == [
        "2 × [pool-not-closed] app/db.py:8 in open_pool  by the process (module global app.db.pool)  (warning)"
    ]


def test_a_transaction_that_is_left_on_it(run: Run) -> None:
    result = run(
        """
        def test_it():
            db.by_name("main").execute("select 1")
        """,
        db=textwrap.dedent(APP) + "\n@functools.cache\ndef by_name(name):\n    return psycopg.connect(dsn)\n",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["[[]transaction-left-open]*", "  began     test_it.py:* in test_it"])


LAZY_STATE = """
    import psycopg, fastapi
    from contextlib import asynccontextmanager
    from app import db

    @asynccontextmanager
    async def lifespan(app):
        yield

    plain = fastapi.FastAPI()
    with_lifespan = fastapi.FastAPI(lifespan=lifespan)

    @plain.get("/")
    @with_lifespan.get("/")
    def state(request: fastapi.Request):
        if not hasattr(request.app.state, "conn"):
            request.app.state.conn = psycopg.connect(db.dsn, autocommit=True)
        request.app.state.conn.execute("select 1")
"""


def test_the_state_of_an_application_without_a_lifespan(run: Run) -> None:
    result = run(
        """
        from fastapi.testclient import TestClient
        from app import web

        @pytest.mark.parametrize("time", ["first", "second"])
        def test_no_lifespan(time):
            assert TestClient(web.plain).get("/").status_code == 200

        def test_lifespan():
            with TestClient(web.with_lifespan) as client:
                assert client.get("/").status_code == 200
        """,
        web=LAZY_STATE,
    )
    result.assert_outcomes(passed=2, failed=1)
    where = "1 × [connection-not-closed] app/web.py:17 in state"
    assert entries(result) == [where, f"{where}  by the process (module global app.web.plain.state.conn)  (warning)"]


def test_a_block_and_a_look_in_the_middle_of_a_test(run: Run) -> None:
    result = run(
        """
        def test_block(pgleak):
            with pgleak.no_leaks():
                pid(db.get_pool())

        def test_look(pgleak):
            db.get_conn()
            assert pgleak.findings() == ()
        """
    )
    result.assert_outcomes(passed=2)
    assert len(entries(result)) == 2


def test_a_pool_whose_event_loop_is_closed(run: Run) -> None:
    result = run(
        """
        @pytest.mark.asyncio
        @pytest.mark.parametrize("time", ["first", "second"])
        async def test_it(time):
            pool = await db.get_async_pool()
            if time == "first":
                async with pool.connection() as conn:
                    await conn.execute("select 1")
            else:
                conn = await pool.getconn()
                await conn.close()
                await pool.putconn(conn)
                await pool.getconn()

        def test_its_own_loop():
            async def open_one():
                pool = psycopg_pool.AsyncConnectionPool(db.dsn, min_size=1, open=False)
                await pool.open(wait=True)
                db.kept.append(pool)
            asyncio.run(open_one())
        """,
        "-o",
        "pgleak_grace=0.1",
        db=textwrap.dedent(APP)
        + textwrap.dedent(
            """
            async def get_async_pool():
                global pool
                if pool is None:
                    pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False, timeout=0.2)
                    await pool.open()
                return pool
            """
        ),
    )
    result.assert_outcomes(passed=1, failed=2)
    closed = "its event loop is closed: nobody can close it any more, and it opens no other connection"
    fix = "  fix       open and close it in one event loop: in the lifespan, or in a fixture whose loop has *"
    result.stdout.fnmatch_lines(
        [
            "E * pgleak: pool 'pool-1' (max_size 1): 0 checked out",
            "E * its event loop is closed: it can open no connection any more. Open it in the loop that uses it: in *",
            "[[]pool-not-closed] pool opened and never closed",
            f"  ended     it did not: the test ended and the pool is still open, 1 connection in it; {closed}",
            fix,
            "  owner     the process (module global app.db.pool)",
            f"  ended     it did not: a process-lifetime pool, still open; {closed}",
            fix,
        ]
    )
