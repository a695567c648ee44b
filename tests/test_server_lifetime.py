"""pytest ends in any way: no process and no directory of the server is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_pgleak.servers import ServerError, ServerRequest, plan

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and sockets are POSIX here")

SUITE = """
    import pathlib, time, psycopg, pytest

    @pytest.mark.pgleak
    def test_it(pgleak_postgres, pgleak_dsn):
        with psycopg.connect(pgleak_dsn) as conn:
            directory = conn.execute("show data_directory").fetchone()[0]
            pid = conn.execute("select pg_backend_pid()").fetchone()[0]
        pathlib.Path("started.tmp").write_text(directory + "\\n" + pgleak_postgres.source, encoding="utf-8")
        pathlib.Path("started.tmp").rename("started")
        WAIT
"""


def require(source: str) -> None:
    try:
        plan(ServerRequest(source))
    except ServerError as error:
        pytest.skip(f"no {source} server here: {str(error).splitlines()[0]}")


def processes_of(directory: str) -> list[str]:
    listed = subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if directory in line]


def await_gone(directory: str) -> None:
    deadline = time.monotonic() + 5
    run_directory = Path(directory).parent
    while time.monotonic() < deadline:
        if not processes_of(directory) and not run_directory.exists():
            return
        time.sleep(0.02)
    pytest.fail(f"left behind: {processes_of(directory)} {list(run_directory.glob('*'))}")


@pytest.mark.parametrize("source", ["embedded", "local"])
@pytest.mark.parametrize(
    "how",
    ["normally", "SIGKILL", "SIGINT", "SIGINT twice", "SIGTERM", "os._exit"],
    ids=lambda how: how.replace(" ", "-"),
)
def test_nothing_is_left(how: str, source: str, pytester: pytest.Pytester) -> None:
    require(source)
    wait = {"normally": "pass", "os._exit": "import os; os._exit(3)"}.get(how, "time.sleep(60)")
    pytester.makepyfile(SUITE.replace("WAIT", wait))
    command = [sys.executable, "-m", "pytest", "-p", "no:pytest_asyncio.plugin", "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        [*command, f"--pgleak-server={source}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    started = pytester.path / "started"
    deadline = time.monotonic() + 30
    while not started.exists():
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    directory, actual = started.read_text(encoding="utf-8").splitlines()
    assert actual == source
    if how.startswith("SIG"):
        assert processes_of(directory)
        process.send_signal(getattr(signal, how.split()[0]))
        if how.endswith("twice"):
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
    code = process.wait(timeout=20)
    assert (code == 0) == (how == "normally")
    await_gone(directory)


def test_no_server_is_started_when_no_test_needs_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.pgleak
        def test_it():
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", "--pgleak-bindir=/nowhere")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["pgleak: 1 of 1 tests checked; server: the application's own"])


@pytest.mark.parametrize("source", ["embedded", "local"])
def test_header_names_source_and_version(source: str, pytester: pytest.Pytester) -> None:
    require(source)
    pytester.makepyfile(
        """
        import psycopg, pytest

        @pytest.mark.pgleak
        def test_it(pgleak_postgres, pgleak_dsn):
            with psycopg.connect(pgleak_dsn) as conn:
                version = conn.execute("show server_version").fetchone()[0]
            assert version.split()[0] == pgleak_postgres.version
            print("VERSION", pgleak_postgres.version)
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", f"--pgleak-server={source}", "-s")
    result.assert_outcomes(passed=1)
    version = next(line.split()[-1] for line in result.outlines if "VERSION" in line)
    result.stdout.fnmatch_lines([f"pgleak: 1 of 1 tests checked; server: PostgreSQL {version} from *"])


def test_a_hook_supplies_the_server(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makeconftest(f"def pytest_pgleak_server(config):\n    return {server_dsn!r}\n")
    pytester.makepyfile(
        """
        import psycopg, pytest

        @pytest.mark.pgleak
        def test_it(pgleak_postgres, pgleak_dsn):
            assert pgleak_postgres.source == "pytest_pgleak_server"
            psycopg.connect(pgleak_dsn).close()
        """
    )
    pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin").assert_outcomes(passed=1)
