"""``pgleak.no_leaks()`` and ``pgleak.findings()``: in tests that are checked and in tests that are not."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]

HEADER = """
import asyncio, psycopg, psycopg_pool, pytest

KEPT = []

def keep(dsn):
    KEPT.append(psycopg.connect(dsn))
"""
ASYNCIO = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
pgleak_grace = 0.3
"""


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    pytester.makefile(".ini", pytest=ASYNCIO)

    def write_and_run(source: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=HEADER + textwrap.dedent(source))
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", f"--pgleak-dsn={server_dsn}", *args)

    return write_and_run


SYNC = """
def test_clean(pgleak, pgleak_dsn):
    with pgleak.no_leaks():
        with psycopg.connect(pgleak_dsn) as conn:
            conn.execute("select 1")
    keep(pgleak_dsn)  # outside of the block, and nobody checks this test
    with pgleak.no_leaks():
        KEPT[-1].execute("select 1")

def test_open(pgleak, pgleak_dsn):
    with pgleak.no_leaks():
        keep(pgleak_dsn)

def test_dropped(pgleak, pgleak_dsn):
    with pgleak.no_leaks():
        psycopg.connect(pgleak_dsn)

def test_lost_write(pgleak, pgleak_dsn):
    with pgleak.no_leaks():
        conn = psycopg.connect(pgleak_dsn)
        conn.execute("create table lost (a int)")
        conn.close()

def test_session_state(pgleak, pgleak_dsn):
    with pgleak.no_leaks(), psycopg_pool.ConnectionPool(pgleak_dsn, min_size=1, max_size=1, open=False) as pool:
        with pool.connection() as conn:
            conn.execute("listen news")
        with pool.connection() as conn:
            conn.execute("select 1")
"""
ASYNC = """
async def test_clean(pgleak, pgleak_dsn):
    async with pgleak.no_leaks():
        async with await psycopg.AsyncConnection.connect(pgleak_dsn) as conn:
            await conn.execute("select 1")

async def test_a_task_that_is_about_to_finish(pgleak, pgleak_dsn):
    async def work():
        async with await psycopg.AsyncConnection.connect(pgleak_dsn) as conn:
            await asyncio.sleep(0.01)
            await conn.execute("select 1")

    async with pgleak.no_leaks():
        task = asyncio.create_task(work())
    await task

async def test_a_task_that_keeps(pgleak, pgleak_dsn):
    async def work():
        KEPT.append(await psycopg.AsyncConnection.connect(pgleak_dsn))

    async with pgleak.no_leaks():
        task = asyncio.create_task(work())
    await task

async def test_open(pgleak, pgleak_dsn):
    async with pgleak.no_leaks():
        KEPT.append(await psycopg.AsyncConnection.connect(pgleak_dsn))

async def test_plain_with(pgleak, pgleak_dsn):
    with pgleak.no_leaks():
        await psycopg.AsyncConnection.connect(pgleak_dsn)

async def test_lost_write(pgleak, pgleak_dsn):
    async with pgleak.no_leaks():
        conn = await psycopg.AsyncConnection.connect(pgleak_dsn)
        await conn.execute("create table lost (a int)")
        await conn.close()
"""


@pytest.mark.parametrize("args", [(), ("-n2",)])
def test_in_tests_that_nobody_checks(run: Run, args: tuple[str, ...]) -> None:
    result = run(SYNC + ASYNC.replace("def test_", "def test_async_"), *args)
    result.assert_outcomes(passed=3, failed=8)
    result.stdout.fnmatch_lines_random(
        [
            "*[[]connection-not-closed] test_it.py:* in keep  by the no_leaks() block",
            "*[[]connection-dropped] test_it.py:* in test_dropped  by the no_leaks() block",
            "*[[]connection-not-closed] test_it.py:* in work  by the no_leaks() block",
        ]
    )
    text = result.stdout.str()
    assert text.count("× [write-lost]") == 2
    assert "xid" in text
    assert "× [session-state]" in text
    assert "pgleak: 8 leaks from 8 lines of code" in text
    assert "Traceback" not in text


def test_in_tests_that_are_checked(run: Run) -> None:
    source = SYNC + ASYNC.replace("def test_", "def test_async_")
    result = run(source.replace("keep(pgleak_dsn)  #", "#"), "--pgleak-select=all", "-k", "not test_clean")
    result.assert_outcomes(passed=2, failed=8)
    assert "pgleak: 8 leaks from 8 lines of code" in result.stdout.str()


CAUGHT = """
@pytest.mark.pgleak
def test_it(pgleak, pgleak_dsn):
    with pytest.raises(pytest.fail.Exception, match="connection-dropped"):
        with pgleak.no_leaks():
            psycopg.connect(pgleak_dsn)
    if LEAKS:
        keep(pgleak_dsn)
"""


@pytest.mark.parametrize("leaks", [True, False])
def test_a_failure_that_is_caught_is_none(run: Run, leaks: bool) -> None:
    result = run(CAUGHT.replace("LEAKS", str(leaks)))
    result.assert_outcomes(failed=int(leaks), passed=int(not leaks))
    # What the test itself leaks is told, and nothing else.
    assert "connection-dropped]" not in result.stdout.str()
    assert ("pgleak: 1 leak from 1 line" in result.stdout.str()) is leaks


def test_both_in_one_test(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_it(pgleak, pgleak_dsn):
            keep(pgleak_dsn)
            with pgleak.no_leaks():
                psycopg.connect(pgleak_dsn)
        """
    )
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "pgleak: 2 leaks from 2 lines of code" in text
    assert "pgleak also found" in text


BLOCKS = """
def test_dropped(pgleak, pgleak_dsn):
    with pgleak.no_leaks():
        psycopg.connect(pgleak_dsn)
    assert pgleak.findings() == ()

def test_findings(pgleak, pgleak_dsn):
    keep(pgleak_dsn)
    assert [finding.kind for finding in pgleak.findings()] == ["connection-not-closed"]
    KEPT.pop().close()
    assert pgleak.findings() == ()
"""


def test_findings_in_tests_that_nobody_checks(run: Run) -> None:
    run(BLOCKS).assert_outcomes(passed=1, failed=1)
    run(BLOCKS, "--pgleak-select=all").assert_outcomes(passed=1, failed=1)


def test_levels(run: Run) -> None:
    result = run(BLOCKS, "-o", "pgleak_levels=connection-dropped = warn")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "   1 × [[]connection-dropped] test_it.py:* in test_dropped  by the no_leaks() block  (warning)",
            # Nothing else shows it, so it is shown here.
            "  ended     garbage-collected; nothing called close()",
        ]
    )
    # What is there is there.
    off = "pgleak_levels=connection-dropped = off\n  connection-not-closed = off"
    result = run(BLOCKS, "-o", off)
    result.assert_outcomes(passed=2)
    assert "connection-dropped" not in result.stdout.str()


def test_mode_warn(run: Run) -> None:
    result = run(BLOCKS, "--pgleak-mode=warn")
    result.assert_outcomes(passed=2)
    assert "   1 × [connection-dropped]" in result.stdout.str()


def test_mode_off(run: Run) -> None:
    result = run(BLOCKS, "--pgleak-mode=off", "-k", "dropped")
    result.assert_outcomes(passed=1)
    assert "pgleak:" not in result.stdout.str()


def test_ignore_rules_and_the_hook(run: Run, pytester: pytest.Pytester) -> None:
    rules = "pgleak_ignore=connection-dropped test_it.py::test_dropped\n  connection-not-closed *::keep"
    result = run(BLOCKS, "-o", rules)
    result.assert_outcomes(passed=2)
    assert "connection-dropped" not in result.stdout.str()
    pytester.makeconftest("def pytest_pgleak_ignore(finding, item): return item.name.startswith('test_')")
    run(BLOCKS).assert_outcomes(passed=2)


def test_the_marker_allows(run: Run) -> None:
    allow = "\npytestmark = pytest.mark.pgleak(allow=['connection-dropped', 'connection-not-closed'])\n"
    result = run(BLOCKS + allow)
    result.assert_outcomes(passed=2)
    assert "connection-dropped" not in result.stdout.str()


def test_the_baseline(run: Run, pytester: pytest.Pytester) -> None:
    baseline = ("--pgleak-baseline=known.json", "-k", "dropped")
    run(BLOCKS, *baseline).assert_outcomes(passed=1)
    known = json.loads((pytester.path / "known.json").read_text())["known"]
    assert [(entry["kind"], entry["function"]) for entry in known] == [("connection-dropped", "test_dropped")]
    for args in ((), ("-n1",)):
        result = run(BLOCKS, *baseline, *args)
        result.assert_outcomes(passed=1)
        assert "pgleak: 1 known finding from 1 line of code is in known.json" in result.stdout.str()
    # Somebody else's leak is not known.
    run(BLOCKS.replace("test_dropped", "test_is_dropped"), *baseline).assert_outcomes(failed=1)


def test_an_error_of_its_own_passes_through(run: Run) -> None:
    result = run(
        """
        def test_it(pgleak, pgleak_dsn):
            with pytest.raises(ValueError, match="^mine$"):
                with pgleak.no_leaks():
                    psycopg.connect(pgleak_dsn)
                    raise ValueError("mine")
        """
    )
    result.assert_outcomes(passed=1)


def test_what_was_there_before_is_not_the_blocks(run: Run) -> None:
    result = run(
        """
        import threading

        @pytest.fixture
        def listener(pgleak_dsn):
            go, done = threading.Event(), threading.Event()

            def work():
                go.wait()
                keep(pgleak_dsn)
                done.set()
                go.clear()
                go.wait()
                KEPT.pop().close()

            thread = threading.Thread(target=work)
            thread.start()
            yield go, done
            go.set()
            thread.join()

        def test_thread(pgleak, listener):
            go, done = listener
            with pgleak.no_leaks():
                go.set()
                assert done.wait(10)

        async def test_task(pgleak, pgleak_dsn):
            go = asyncio.Event()

            async def work():
                await go.wait()
                async with await psycopg.AsyncConnection.connect(pgleak_dsn):
                    await asyncio.sleep(1)

            task = asyncio.create_task(work())
            await asyncio.sleep(0)
            async with pgleak.no_leaks():
                go.set()
                await asyncio.sleep(0.1)
            task.cancel()
        """
    )
    result.assert_outcomes(passed=2)


def test_a_test_that_is_not_checked_stays_so(run: Run) -> None:
    result = run(
        """
        def test_uses_the_fixture_only(pgleak, pgleak_dsn):
            psycopg.connect(pgleak_dsn)

        def test_does_not(pgleak_dsn):
            psycopg.connect(pgleak_dsn)
        """
    )
    result.assert_outcomes(passed=2)
    assert "connection-dropped" not in result.stdout.str()
