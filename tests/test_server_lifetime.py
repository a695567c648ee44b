"""pytest ends in any way: no process, no directory and no shared memory of the server is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_pgleak.servers import ServerError, ServerRequest, plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes and shared memory in /proc")

SUITE = """
    import os, pathlib, re, time, psycopg, pytest

    def tell(name, *lines):
        pathlib.Path(f"{name}.tmp").write_text("\\n".join(map(str, lines)), encoding="utf-8")
        pathlib.Path(f"{name}.tmp").rename(name)

    @pytest.mark.pgleak
    @pytest.mark.parametrize("number", range(NUMBER))
    def test_it(pgleak_postgres, pgleak_dsn, number):
        with psycopg.connect(pgleak_dsn) as conn:
            [directory] = conn.execute("show data_directory").fetchone()
            dbname = conn.info.dbname
        # Its lines: https://www.postgresql.org/docs/current/storage-file-layout.html, and miscadmin.h.
        postmaster, *_, shared_memory, _ = pathlib.Path(directory, "postmaster.pid").read_text().splitlines()
        mapped = re.findall(r"/dev/shm/\\S+|/SYSV\\S+", pathlib.Path(f"/proc/{postmaster}/maps").read_text())
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        tell(worker, directory, pgleak_postgres.source, dbname, os.getpid(), shared_memory.split()[1], *mapped)
        WAIT
"""
UNTIL_TOLD = """
        for _ in range(3000):
            if pathlib.Path("go").exists():
                break
            time.sleep(0.02)
"""
FORK = """
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        tell("child", child)
"""
COMMAND = [sys.executable, "-m", "pytest", "-p", "no:pytest_asyncio.plugin", "-p", "no:cacheprovider"]


@dataclass(frozen=True)
class Told:
    """What a test of `SUITE` has told of its server, and of itself."""

    directory: str
    source: str
    dbname: str
    pid: int
    shared_memory: str
    mapped: tuple[str, ...]


def told_by(worker: str, folder: Path) -> Told:
    deadline = time.monotonic() + 30
    while not (folder / worker).exists():
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    directory, source, dbname, pid, shared_memory, *mapped = (folder / worker).read_text(encoding="utf-8").splitlines()
    return Told(directory, source, dbname, int(pid), shared_memory, tuple(mapped))


def require(source: str) -> None:
    try:
        plan(ServerRequest(source))
    except ServerError as error:
        pytest.skip(f"no {source} server here: {str(error).splitlines()[0]}")


def processes_of(directory: str) -> list[str]:
    listed = subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if directory in line]


def await_gone(told: Told) -> None:
    deadline = time.monotonic() + 5
    run_directory = Path(told.directory).parent
    while processes_of(told.directory) or run_directory.exists():
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {processes_of(told.directory)} {list(run_directory.glob('*'))}")
        time.sleep(0.02)
    segments = [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()]
    assert told.shared_memory not in segments
    assert [path for path in told.mapped if Path(path).exists()] == []


@pytest.mark.parametrize("source", ["embedded", "local"])
@pytest.mark.parametrize(
    "how",
    ["normally", "SIGKILL", "SIGINT", "SIGINT twice", "SIGTERM", "os._exit", "fork"],
    ids=lambda how: how.replace(" ", "-"),
)
def test_nothing_is_left(how: str, source: str, pytester: pytest.Pytester) -> None:
    require(source)
    wait = {"normally": "pass", "os._exit": "os._exit(3)", "fork": FORK}.get(how, "time.sleep(60)")
    pytester.makepyfile(SUITE.replace("WAIT", wait).replace("NUMBER", "1"))
    process = subprocess.Popen(
        [*COMMAND, f"--pgleak-server={source}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    told = told_by("main", pytester.path)
    assert told.source == source
    if how.startswith("SIG"):
        assert processes_of(told.directory)
        process.send_signal(getattr(signal, how.split()[0]))
        if how.endswith("twice"):
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
    code = process.wait(timeout=20)
    assert (code == 0) == (how in ("normally", "fork"))
    await_gone(told)
    if how == "fork":
        os.kill(int((pytester.path / "child").read_text()), signal.SIGKILL)  # it was still there


@pytest.mark.parametrize(
    "how", ["SIGKILL of one", "SIGKILL of all", "SIGKILL of the controller", "SIGINT twice"], ids=lambda how: how
)
def test_nothing_is_left_by_workers_that_share_a_server(how: str, pytester: pytest.Pytester) -> None:
    source = plan(ServerRequest()).source
    pytester.makepyfile(SUITE.replace("WAIT", UNTIL_TOLD.lstrip()).replace("NUMBER", "6"))
    process = subprocess.Popen(
        [*COMMAND, f"--pgleak-server={source}", "-n2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that all of them can be reached, as by a terminal's Ctrl-C
    )
    told = [told_by(worker, pytester.path) for worker in ("gw0", "gw1")]
    assert len({each.directory for each in told}) == 1
    assert len({each.dbname for each in told}) == 2
    if how == "SIGKILL of one":
        os.kill(told[0].pid, signal.SIGKILL)
        told.append(told_by("gw2", pytester.path))  # xdist replaces it, and the new one joins the others
    elif how == "SIGKILL of the controller":
        process.kill()
    elif how == "SIGKILL of all":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
    (pytester.path / "go").touch()
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    if how == "SIGKILL of one":
        assert "worker 'gw0' crashed" in output
        assert "1 failed, 5 passed" in output
        assert len({each.directory for each in told}) == 1
        assert len({each.dbname for each in told}) == 3
    await_gone(told[0])


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
