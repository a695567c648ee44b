"""A suite has the same outcomes with the plugin as without it, and what it finds is told at the end of the run."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from twice import Twice, assert_same, twice

pytestmark = pytest.mark.usefixtures("all_plugins")

__all__ = ["twice"]  # a fixture

OBJECTS = """
    import gc, inspect, os, pickle, sys, threading, tracemalloc, typing, warnings, weakref
    import unittest.mock as mock
    import psycopg, psycopg_pool, pytest

    def descriptors():
        return sorted(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else []

    def test_descriptors(dsn):
        before = descriptors()
        conn = psycopg.connect(dsn)
        conn.execute("create table visits (name text)")
        conn.execute("insert into visits values ('a')")
        conn.rollback()  # pgleak asks the server here, for the first time
        conn.close()
        assert descriptors() == before

    def test_threads(dsn):
        assert threading.enumerate() == [threading.main_thread()]
        psycopg.connect(dsn).close()
        assert threading.active_count() == 1

    def test_weak_references(dsn):
        conn = psycopg.connect(dsn)
        reference = weakref.ref(conn)
        conn.execute("select 1")
        conn.close()
        assert sys.getrefcount(conn) == 2
        del conn
        assert reference() is None

    def test_weak_references_to_a_pool(dsn):
        with psycopg_pool.ConnectionPool(dsn, min_size=1) as pool, pool.connection() as conn:
            member = weakref.ref(conn)
        reference = weakref.ref(pool)
        del pool, conn
        assert member() is None
        gc.collect()
        assert reference() is None

    def test_no_garbage_collection(dsn):
        gc.disable()
        try:
            conn = psycopg.connect(dsn)
            conn.me = conn
            conn.close()
            reference = weakref.ref(conn)
            del conn
            assert reference() is not None
            gc.collect()
            assert reference() is None
        finally:
            gc.enable()
        assert gc.garbage == []

    def work(dsn, pool):
        with psycopg.connect(dsn) as conn, conn.cursor() as cursor:
            cursor.execute("create temp table t as select 1 as a")
            assert cursor.execute("select * from t").fetchall() == [(1,)]
        with pool.connection() as conn:
            conn.execute("select 1")

    def test_objects_and_memory(dsn):
        objects, bytes = [], []
        with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1) as pool:
            tracemalloc.start()
            try:
                for _ in range(5):
                    for _ in range(5):
                        work(dsn, pool)
                    gc.collect()
                    objects.append(len(gc.get_objects()))
                    bytes.append(tracemalloc.get_traced_memory()[0])
            finally:
                tracemalloc.stop()
        assert objects[1] == objects[2] == objects[3] == objects[4], objects
        assert bytes[4] - bytes[1] < 20_000, bytes  # 15 rounds; one event with its stack has more than 2,000

    def test_introspection():
        assert list(inspect.signature(psycopg.Connection.close).parameters) == ["self"]
        assert "conninfo" in inspect.signature(psycopg_pool.ConnectionPool).parameters
        assert inspect.iscoroutinefunction(psycopg.AsyncConnection.close)
        assert inspect.unwrap(psycopg.Connection.close).__code__.co_filename == psycopg.connection.__file__
        assert psycopg.Connection.close.__module__ == "psycopg.connection"
        assert inspect.getsource(psycopg.Connection.close).lstrip().startswith("def close(self)")
        assert typing.get_type_hints(psycopg.Connection.close) == {"return": type(None)}
        assert pickle.loads(pickle.dumps(psycopg.Connection.close)) is psycopg.Connection.close
        assert pickle.loads(pickle.dumps(psycopg_pool.ConnectionPool)) is psycopg_pool.ConnectionPool

    @pytest.mark.asyncio
    async def test_autospec():
        fake = mock.create_autospec(psycopg.AsyncConnection, instance=True)
        await fake.close()
        fake.close.assert_awaited_once_with()
        with pytest.raises(TypeError):
            fake.close(1, 2)
        with pytest.raises(TypeError):
            mock.create_autospec(psycopg.Connection, instance=True).wait()

    def test_the_error_is_the_applications(dsn):
        with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, timeout=0.05) as pool, pool.connection():
            with pytest.raises(psycopg_pool.PoolTimeout, match=r"sec$") as caught:
                pool.getconn()
        assert not hasattr(caught.value, "__notes__")
"""

WARNINGS = """
    import gc, warnings
    import psycopg, pytest

    KEPT = []

    def test_dropped(dsn):
        psycopg.connect(dsn)

    def test_dropped_in_a_cycle(dsn):
        conn = psycopg.connect(dsn)
        conn.me = conn

    def test_whatever_comes_next():
        gc.collect()

    @pytest.mark.asyncio
    async def test_dropped_in_an_event_loop(dsn):
        await psycopg.AsyncConnection.connect(dsn)

    def test_recwarn(dsn, recwarn):
        warnings.simplefilter("always")
        psycopg.connect(dsn)
        gc.collect()
        assert [warning.category for warning in recwarn] == [ResourceWarning]

    def test_warns(dsn):
        with pytest.warns(ResourceWarning) as caught:
            psycopg.connect(dsn)
        assert [warning.filename.endswith("_connection_base.py") for warning in caught] == [True]

    @pytest.mark.filterwarnings("default")
    def test_warnings_summary(dsn):
        psycopg.connect(dsn)
        KEPT.append(psycopg.connect(dsn))

    def test_end():
        KEPT.pop().close()
"""

PATCHES = """
    import sys
    import unittest.mock as mock
    import psycopg, psycopg_pool, pytest

    class Own(psycopg.Connection):
        closes = 0

        def close(self):
            self.closes += 1
            super().close()

    class WithoutInit(psycopg.Connection):
        def __init__(self):
            pass

    class Fake:
        notice_handler = notify_handler = None

    class FakeWithStatus(Fake):
        status = 0

        def finish(self):
            self.status = 1

    def test_subclasses(dsn):
        conn = Own.connect(dsn)
        conn.close()
        assert conn.closes == 1
        WithoutInit()

    def test_fakes():
        psycopg.Connection(FakeWithStatus()).close()
        conn = psycopg.Connection(mock.MagicMock())
        conn.pgconn.status = 1
        conn.close()

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_fake_that_has_nothing():
        with pytest.raises(AttributeError, match="status"):
            psycopg.Connection(Fake()).close()

    def test_the_users_patch_above_ours(dsn, monkeypatch):
        close, closed = psycopg.Connection.close, []
        monkeypatch.setattr(psycopg.Connection, "close", lambda self: (close(self), closed.append(self)))
        psycopg.connect(dsn).close()
        assert len(closed) == 1

    def test_a_patch_that_closes_by_itself(dsn, monkeypatch):
        monkeypatch.setattr(psycopg.Connection, "close", lambda self: self.pgconn.finish())
        psycopg.connect(dsn).close()

    def test_connect_is_mocked():
        with mock.patch("psycopg.connect") as connect:
            psycopg.connect("x").cursor().execute("select 1")
        connect.assert_called_once_with("x")

    @pytest.mark.asyncio
    async def test_async_connect_is_mocked():
        with mock.patch.object(psycopg.AsyncConnection, "connect", mock.AsyncMock()) as connect:
            await (await psycopg.AsyncConnection.connect("x")).execute("select 1")
        connect.assert_awaited_once_with("x")

    @pytest.fixture
    def open_all_the_time(dsn):
        with psycopg.connect(dsn) as conn:
            yield conn

    @pytest.mark.parametrize("module", [mock.MagicMock(), None])
    def test_psycopg_is_mocked(open_all_the_time, monkeypatch, module):
        monkeypatch.setitem(sys.modules, "psycopg", module)

    def test_it_is_there_again(open_all_the_time):
        open_all_the_time.execute("select 1")
"""

TIME = """
    import asyncio, time
    import unittest.mock as mock
    import psycopg, pytest

    KEPT = []

    @pytest.fixture
    def frozen(monkeypatch):
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        monkeypatch.setattr(time, "sleep", sleep := mock.Mock())
        monkeypatch.setattr(asyncio, "sleep", mock.AsyncMock(side_effect=AssertionError))
        yield
        sleep.assert_not_called()

    def test_sync(dsn, frozen):
        KEPT.append(psycopg.connect(dsn))

    @pytest.mark.asyncio
    async def test_async(dsn, frozen):
        KEPT.append(await psycopg.AsyncConnection.connect(dsn))

    @pytest.mark.asyncio
    async def test_tasks(dsn):
        await KEPT.pop().close()
        assert len(asyncio.all_tasks()) == 1
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await conn.execute("select 1")
        assert len(asyncio.all_tasks()) == 1

    def test_end():
        KEPT.pop().close()
"""

STYLES = '''
    import multiprocessing, os, unittest
    import psycopg, psycopg_pool, pytest

    KEPT = []

    def connect(dsn):
        """
        >>> psycopg.connect(os.environ["SERVER_DSN"]).close()
        >>> 1 + 1
        3
        """

    def test_leaves_things_for_the_next_test(dsn):
        KEPT.append(psycopg.connect(dsn, autocommit=True))
        KEPT.append(psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=2, open=True))
        KEPT.append(KEPT[1].getconn())
        KEPT[0].execute("create table kept (number int)")
        KEPT[2].execute("insert into kept values (1)")

    def test_needs_what_is_there():
        KEPT[0].execute("insert into kept values (2)")
        KEPT[2].commit()
        KEPT[1].putconn(KEPT[2])
        with KEPT[1].connection() as conn:
            assert conn.execute("select count(*) from kept").fetchone() == (2,)
        KEPT[1].close()
        KEPT[0].close()
        KEPT.clear()

    class TestUnittest(unittest.TestCase):
        def setUp(self):
            self.conn = psycopg.connect(os.environ["SERVER_DSN"])

        def tearDown(self):
            self.conn.close()

        def test_clean(self):
            self.conn.execute("select 1")

        def test_leak(self):
            KEPT.append(psycopg.connect(os.environ["SERVER_DSN"]))

        @unittest.expectedFailure
        def test_expected_failure(self):
            raise AssertionError

        @unittest.skip("not today")
        def test_skip(self):
            pass

        def test_subtests(self):
            for number in range(3):
                with self.subTest(number=number):
                    self.assertNotEqual(number, 1)

    class TestAsyncUnittest(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self):
            self.conn = await psycopg.AsyncConnection.connect(os.environ["SERVER_DSN"])

        async def asyncTearDown(self):
            await self.conn.close()

        async def test_clean(self):
            await self.conn.execute("select 1")

        async def test_leak(self):
            self.conn, kept = await psycopg.AsyncConnection.connect(os.environ["SERVER_DSN"]), self.conn
            KEPT.append(kept.pgconn)

    @pytest.fixture(scope="module", params=["a", "b"])
    def wide(request, dsn):
        with psycopg.connect(dsn) as conn:
            yield conn

    @pytest.mark.parametrize("number", [1, 2])
    def test_parametrized_wider_fixture(wide, number):
        wide.execute("select 1")

    def test_dynamic_fixture(request):
        request.getfixturevalue("wide" if False else "dsn")
        KEPT.append(psycopg.connect(request.getfixturevalue("dsn")))

    @pytest.mark.skip
    def test_skipped():
        pass

    @pytest.mark.xfail
    def test_xfail(dsn):
        KEPT.append(psycopg.connect(dsn))
        raise AssertionError

    @pytest.mark.xfail(strict=True)
    def test_xfail_strict(dsn):
        KEPT.append(psycopg.connect(dsn))

    def test_prints(dsn, capfd):
        print("captured by the test")
        assert capfd.readouterr().out == "captured by the test\\n"
        print("captured by pytest")
        KEPT.append(psycopg.connect(dsn))
        raise AssertionError("on purpose")

    @pytest.fixture
    def broken(dsn):
        yield
        raise AssertionError("in the teardown")

    def test_broken_teardown(broken, dsn):
        KEPT.append(psycopg.connect(dsn))

    def child(dsn, answers):
        with psycopg.connect(dsn) as conn:
            answers.put(conn.execute("select 1").fetchone())

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_multiprocessing(dsn, method):
        before = psycopg.connect(dsn)
        context = multiprocessing.get_context(method)
        answers = context.Queue()
        process = context.Process(target=child, args=(dsn, answers))
        process.start()
        assert answers.get(timeout=30) == (1,)
        process.join()
        assert process.exitcode == 0
        assert before.execute("select 1").fetchone() == (1,)
        before.close()
        psycopg.connect(dsn).close()

    def test_fork(dsn):
        conn = psycopg.connect(dsn)
        conn.execute("create temp table t (a int)")
        if (pid := os.fork()) == 0:
            with psycopg.connect(dsn) as own:
                own.execute("create temp table t (a int)")
                own.rollback()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        conn.execute("select * from t")
        conn.close()
'''


SMALL = """
    import psycopg, pytest

    KEPT = []

    def test_clean(dsn):
        with psycopg.connect(dsn) as conn:
            conn.execute("select 1")

    def test_leak(dsn):
        KEPT.append(psycopg.connect(dsn))

    def test_fails(dsn):
        kept = psycopg.connect(dsn)
        print("captured by pytest")
        assert kept.closed

    @pytest.mark.parametrize("number", range(3))
    def test_more(dsn, number):
        psycopg.connect(dsn).close()
        assert number < 2
"""


def test_what_suites_assert_on(twice) -> None:
    twice.write(ini="filterwarnings = error", test_objects=OBJECTS, test_patches=PATCHES, test_time=TIME)
    off, _ = twice.compare()
    assert off.result.parseoutcomes() == {"passed": off.result.parseoutcomes()["passed"]}


def test_warnings_are_errors(twice) -> None:
    twice.write(ini="filterwarnings = error", test_warnings=WARNINGS)
    off, found = twice.compare()
    # They are where they were: with the test that dropped it, or with the one in which the cycle was collected.
    assert off["counts"]["failed"] == 3
    assert off["counts"]["warnings"] == 1
    found.result.stdout.fnmatch_lines(["*= pgleak: * warnings from * lines of code =*"])


def test_styles_of_tests(twice) -> None:
    twice.write(test_styles=STYLES)
    off, found = twice.compare("--doctest-modules", "--setup-show", "--junitxml=junit.xml", "-rA")
    assert off["counts"]["failed"] == 4
    assert off.of("test_needs_what_is_there")[1] == ("call", "passed")
    found.result.stdout.fnmatch_lines(
        [
            "*= pgleak: * warnings from * lines of code =*",
            "*[[]pool-not-closed] test_styles.py:* in test_leaves_things_for_the_next_test  (warning)",
        ]
    )


@pytest.mark.parametrize(
    "args",
    [("-x", "-s"), ("--maxfail=2", "-p", "no:terminal")],
    ids=" ".join,
)
def test_pytests_own_options(twice, args) -> None:
    twice.write(test_small=SMALL)
    _, found = twice.compare(*args)
    assert found.of("test_leak")[1] == ("call", "passed")


@pytest.mark.parametrize("again", ["--stepwise", "--lf", "--ff"])
def test_what_is_run_again(twice, again) -> None:
    twice.write(test_small=SMALL)
    caches = []
    for args in (Twice.OFF, Twice.ON):
        first = ("--stepwise",) if again == "--stepwise" else ()
        runs = [twice.once(*args, *first), twice.once(*args, again)]
        last = Path(twice.pytester.path, ".pytest_cache", "v", "cache")
        caches.append((runs, json.loads((last / "lastfailed").read_text(encoding="utf-8"))))
        twice.pytester.run(sys.executable, "-c", "import shutil; shutil.rmtree('.pytest_cache')")
    (off, off_failed), (found, found_failed) = caches
    for one, other in zip(off, found, strict=True):
        assert_same(one, other)
    assert found_failed == off_failed
    assert "test_small.py::test_leak" not in off_failed


def test_pdb(twice) -> None:
    twice.write(test_small=SMALL)
    off, found = twice.compare("--pdb", stdin=b"kept.closed\nc\nnumber\nq\n")
    for run in (off, found):
        run.result.stdout.fnmatch_lines(["*> *test_small.py*test_fails()*", "(Pdb) False", "(Pdb) *", "(Pdb) 2"])
        assert run.text.count("entering PDB") == 2


FLAKY = """
    import psycopg, pytest

    KEPT = []

    @pytest.fixture
    def fixture_that_leaks(dsn):
        KEPT.append(psycopg.connect(dsn))

    @pytest.mark.flaky(reruns=2)
    def test_second_try(dsn, fixture_that_leaks):
        if len(KEPT) == 1:
            KEPT.append(psycopg.connect(dsn, application_name="discarded"))
            raise AssertionError("flaky")

    class TestInClass:
        tries = []

        @pytest.mark.flaky(reruns=1, condition="KEPT")
        @pytest.mark.asyncio
        async def test_async(self, dsn):
            self.tries.append(self)
            await (await psycopg.AsyncConnection.connect(dsn)).close()
            assert len(self.tries) == 2

    def test_whatever_comes_next(dsn):
        psycopg.connect(dsn).close()
"""


def test_rerunfailures(twice) -> None:
    twice.write(test_flaky=FLAKY)
    off, found = twice.compare("-p", "rerunfailures")
    assert (off["status"], off["counts"]["rerun"]) == (0, 2)
    # What the first try has left is told neither then nor later; what the second one has, is.
    assert found.text.count("× [") == 1
    found.result.stdout.fnmatch_lines(["   1 × [[]connection-not-closed] test_flaky.py:* in fixture_that_leaks *"])


def test_a_leak_that_does_not_come_back(twice) -> None:
    source = """
        import psycopg, pytest
        KEPT = []

        @pytest.mark.flaky(reruns=1)
        def test_it(dsn):
            if not KEPT:
                KEPT.append(psycopg.connect(dsn))
    """
    twice.write(test_it=source)
    found = twice.once("--pgleak-select=all", "-p", "rerunfailures")
    assert (found["status"], found["counts"]["rerun"]) == (0, 1)
    assert "× [" not in found.text


def test_randomly(twice) -> None:
    twice.write(test_small=SMALL, test_more_of_it=SMALL)
    off, found = twice.compare("-p", "randomly", "-p", "randomly", "--randomly-seed=1")
    assert [report[0] for report in off["reports"]] != sorted(report[0] for report in off["reports"])
    assert off["reports"] == found["reports"]


SLOW = """
    import time
    import psycopg, pytest

    KEPT = []

    def test_first(dsn):
        pass  # the database is made here, without a timeout

    @pytest.mark.timeout(0.8, method="METHOD")
    def test_in_time(dsn):
        KEPT.append(psycopg.connect(dsn))  # pgleak looks at it for longer than is left
        time.sleep(0.3)

    @pytest.mark.asyncio
    @pytest.mark.timeout(0.8, method="METHOD", func_only=True)
    async def test_in_time_in_an_event_loop(dsn):
        KEPT.append(await psycopg.AsyncConnection.connect(dsn))
        time.sleep(0.3)

    @pytest.mark.timeout(0.8, method="METHOD")
    def test_not_in_time(dsn):
        KEPT.append(psycopg.connect(dsn))
        time.sleep(5)

    def test_whatever_comes_next(dsn):
        psycopg.connect(dsn).close()
"""


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_timeout(twice, method) -> None:
    twice.write(test_slow=SLOW.replace("METHOD", method))
    only = () if method == "signal" else ("--deselect", "test_slow.py::test_not_in_time")  # that ends the process
    off, found = twice.compare(*only, on=("-o", "pgleak_grace=1.5"))
    assert off.of("test_in_time") == [("setup", "passed"), ("call", "passed"), ("teardown", "passed")] * 2
    assert ("call", "failed") in off.of("test_not_in_time") or method == "thread"
    found.result.stdout.fnmatch_lines(["*[[]connection-not-closed] test_slow.py:* in test_in_time  (warning)"])


def test_cov(twice) -> None:
    application = """
        import psycopg

        def visit(dsn, write):
            conn = psycopg.connect(dsn)
            if write:
                conn.execute("create table visits (name text)")
            conn.close()
    """
    tests = """
        from application import visit

        def test_it(dsn):
            visit(dsn, write=False)
    """
    twice.write(application=application, test_it=tests)
    covered = []
    for args in (Twice.OFF, Twice.ON):
        twice.once(*args, "--cov=.", "--cov-branch", "--cov-report=xml")
        classes = ElementTree.parse(Path(twice.pytester.path, "coverage.xml")).iter("class")
        covered.append(
            {
                each.get("filename"): [(line.get("number"), line.get("hits")) for line in each.iter("line")]
                for each in classes
            }
        )
    off, found = covered
    assert found == off
    assert ("6", "0") in off["application.py"]
    assert not [name for name in found if "pgleak" in name]


GROUPS = """
    import os, time
    import psycopg, psycopg_pool, pytest

    class TestGroup:
        kept = []

        def test_leaves(self, dsn):
            self.kept.append(psycopg_pool.ConnectionPool(dsn, min_size=1, open=True))

        def test_uses(self):
            with self.kept.pop() as pool, pool.connection() as conn:
                conn.execute("select 1")

    def test_fails(dsn):
        psycopg.connect(dsn)
        raise AssertionError("on purpose")

    @pytest.mark.parametrize("number", range(6))
    def test_more(dsn, number):
        psycopg.connect(dsn).close()
"""


@pytest.mark.parametrize("dist", ["load", "loadgroup"])
def test_xdist_with_tests_that_stand_alone(twice, dist) -> None:
    twice.write(test_small=SMALL)
    _, found = twice.compare("-n2", f"--dist={dist}", ordered=False)
    found.result.stdout.fnmatch_lines(["   1 × [[]connection-not-closed] test_small.py:* in test_leak*"])


def test_xdist_with_tests_that_belong_together(twice) -> None:
    twice.write(test_groups=GROUPS)
    off, found = twice.compare("-n2", "--dist=loadscope", ordered=False)
    assert (off["counts"]["passed"], off["counts"]["failed"]) == (8, 1)
    found.result.stdout.fnmatch_lines(["   1 × [[]pool-not-closed] test_groups.py:* in TestGroup.test_leaves*"])


CRASH = """
    import os
    import psycopg, pytest

    @pytest.mark.parametrize("number", range(4))
    def test_it(dsn, number):
        psycopg.connect(dsn)

    def test_crash(dsn):
        psycopg.connect(dsn).execute("select 1")
        os._exit(3)

    @pytest.mark.parametrize("number", range(4))
    def test_after(dsn, number):
        psycopg.connect(dsn)
"""


@pytest.mark.parametrize("dist", ["load", "worksteal"])
def test_a_crashed_worker(twice, dist) -> None:
    twice.write(test_crash=CRASH)
    off, found = twice.compare("-n2", f"--dist={dist}", ordered=False)
    assert (off["counts"]["passed"], off["counts"]["failed"]) == (8, 1)
    found.result.stdout.fnmatch_lines(["*[[]connection-dropped] test_crash.py:* in test_after*"])
