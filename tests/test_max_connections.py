"""``max_connections`` in an inner run: its text, its neighbours in other workers, and what it leaves behind."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]

HEADER = """
    import contextlib, os, subprocess, sys, threading, time
    import psycopg, psycopg_pool, pytest

    def connect(dsn):
        return psycopg.connect(dsn)

    WORKER = (
        "import sys, psycopg; conn = psycopg.connect(sys.argv[1], application_name='worker');"
        "print('connected', flush=True); sys.stdin.read()"
    )

    @contextlib.contextmanager
    def worker(dsn):
        command = [sys.executable, "-c", WORKER, dsn]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            yield
            time.sleep(0.3)
            process.stdin.close()
"""


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    def write_and_run(source: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=textwrap.dedent(HEADER).lstrip() + textwrap.dedent(source))
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", f"--pgleak-dsn={server_dsn}", *args)

    return write_and_run


def test_the_holders_are_listed(run: Run) -> None:
    result = run(
        """
        @pytest.fixture
        def pool(pgleak_dsn):
            with psycopg_pool.ConnectionPool(pgleak_dsn, min_size=3, max_size=3, name="main", open=False) as pool:
                pool.wait()
                yield pool

        @pytest.mark.pgleak(max_connections=4)
        def test_it(pool, pgleak_dsn):
            with worker(pgleak_dsn), connect(pgleak_dsn):
                time.sleep(0.3)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*_ test_it _*",
            "[[]too-many-connections] more connections open at once than allowed",
            "  at once   5 connections were open at once, max_connections allows 4",
            "  held by   3 × pool 'main' (test_it.py:* in pool)",
            "            1 × test_it.py:5 in connect",
            "            1 × pid * (application_name 'worker'), not opened by this process",
            (
                "  fix       lower the pool's max_size (3 for 'main'), close earlier, or raise max_connections;"
                " the server has to hold workers × max_size"
            ),
            '  allow     @pytest.mark.pgleak(allow=["too-many-connections"])',
            "   1 × [[]too-many-connections] at once: 5",
            "FAILED test_it.py::test_it - pgleak: too-many-connections",
        ]
    )


def test_the_line_that_went_over(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak(max_connections=1)
        def test_it(pgleak_dsn):
            with connect(pgleak_dsn):
                with psycopg.connect(pgleak_dsn):
                    with connect(pgleak_dsn):
                        pass
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "  opened    test_it.py:* in test_it",
            "                with psycopg.connect(pgleak_dsn):",
            "  at once   3 connections were open at once, max_connections allows 1",
            "  held by   2 × test_it.py:5 in connect",
            "            1 × test_it.py:* in test_it",
            "FAILED test_it.py::test_it - pgleak: too-many-connections at test_it.py:*",
        ]
    )


def test_levels_and_modes_apply(run: Run) -> None:
    source = """
        @pytest.mark.pgleak(max_connections=0)
        def test_it(pgleak_dsn):
            with connect(pgleak_dsn):
                pass
    """
    run(source, "-o", "pgleak_levels=too-many-connections = off").assert_outcomes(passed=1)
    run(source, "--pgleak-mode=off").assert_outcomes(passed=1)
    result = run(source, "--pgleak-mode=warn")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["   1 × [[]too-many-connections] test_it.py:5 in connect  (warning)"])


def test_a_test_that_fails_by_itself(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak(max_connections=0)
        def test_it(pgleak_dsn):
            with connect(pgleak_dsn):
                assert False, "my own"

        @pytest.mark.pgleak(max_connections=0)
        async def test_async(pgleak_dsn):
            with connect(pgleak_dsn):
                assert False, "my own"
        """
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*my own*", "*pgleak also found*", "[[]too-many-connections]*"] * 2)


def test_without_a_server_to_look_at_the_ledger_counts_alone(run: Run) -> None:
    result = run(
        """
        import os

        @pytest.mark.pgleak(max_connections=1)
        def test_it():
            with connect(os.environ["APPLICATIONS_DSN"]), connect(os.environ["APPLICATIONS_DSN"]):
                pass
        """,
        "-o",
        "pgleak_select=all",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["  held by   2 × test_it.py:5 in connect"])


@pytest.fixture(autouse=True)
def _dsn_of_an_application(server_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLICATIONS_DSN", server_dsn)


def test_other_workers_of_xdist_are_not_counted_in_a_database_that_they_share(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="module")
        def known():
            with connect(os.environ["APPLICATIONS_DSN"]) as conn:
                yield conn

        @pytest.mark.pgleak(max_connections=2)
        @pytest.mark.parametrize("number", range(4))
        def test_it(known, number):
            with connect(os.environ["APPLICATIONS_DSN"]):
                time.sleep(0.3)
        """,
        "-n2",
        "-o",
        "pgleak_levels=untracked-backend = off",
    )
    result.assert_outcomes(passed=4)


def test_their_own_processes_are(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak(max_connections=0)
        @pytest.mark.parametrize("number", range(2))
        def test_it(pgleak_dsn, number):
            with worker(pgleak_dsn):
                pass
        """,
        "-n2",
    )
    result.assert_outcomes(failed=2)


def test_no_thread_stays_behind(run: Run) -> None:
    result = run(
        """
        def samples():
            # A thread that `threading` does not know is among them.
            frames = list(sys._current_frames().values())
            while frames := [frame for frame in frames if frame is not None]:
                if any(frame.f_globals["__name__"] == "pytest_pgleak.budget.sampler" for frame in frames):
                    return True
                frames = [frame.f_back for frame in frames]
            return False

        def samples_soon():
            give_up_at = time.monotonic() + 10
            while not samples() and time.monotonic() < give_up_at:
                time.sleep(0.01)
            return samples()

        @pytest.mark.pgleak(max_connections=3)
        def test_with(pgleak_dsn):
            assert samples_soon()

        @pytest.mark.pgleak(max_connections=3)
        async def test_with_async(pgleak_dsn):
            assert samples_soon()

        @pytest.mark.pgleak
        def test_without(pgleak_dsn):
            assert not samples()

        @pytest.mark.pgleak(max_connections=3)
        def test_skipped(pgleak_dsn):
            pytest.skip("in the middle")

        def test_after():
            assert not samples()
        """
    )
    result.assert_outcomes(passed=4, skipped=1)
    assert "internal error" not in result.stdout.str()
