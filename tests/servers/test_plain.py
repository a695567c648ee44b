"""The way for systems without flock and Unix sockets, forced here: a port, a temporary directory, a process that waits.

Linux is where it was run; what only Windows does (its names of programs, its consoles) is not tested by this.
"""

from __future__ import annotations

import os
import signal

import pytest

from pytest_pgleak.servers import binaries
from pytest_pgleak.servers.binaries import Binaries

# Nothing that only POSIX has may be imported on the way.
START = """
import os, sys, time
sys.modules.update(dict.fromkeys(["fcntl", "pwd", "grp", "resource"]))
from pytest_pgleak.servers import ServerError, ServerRequest, cluster, plan, start
"""
USE = """
server = start(plan(ServerRequest(server=SOURCE, bindir=None, plain=True)))
import psycopg
with psycopg.connect(server.dsn) as conn:
    used_password = conn.pgconn.used_password
    print(server.version == conn.execute("show server_version").fetchone()[0].split()[0], used_password, end=" ")
    print(*conn.execute("select host(inet_server_addr()), rolsuper from pg_roles where rolname = user").fetchone())
    listens = [conn.execute(f"show {name}").fetchone()[0] for name in ("listen_addresses", "unix_socket_directories")]
    print(listens, conn.execute("show fsync").fetchone()[0])
    print(conn.execute("select line_number from pg_hba_file_rules where auth_method <> 'scram-sha-256'").fetchall())
    print(conn.info.password, flush=True)
"""
EXPECTED = ["True True 127.0.0.1 True", "['127.0.0.1', ''] off", "[]"]


@pytest.fixture
def run(request, run_dir, python):
    """Run a script as a user who may start a server: root may not, and this way becomes nobody else."""
    identity = {}
    if os.geteuid() == 0:
        identity = {"executable": request.getfixturevalue("nobodys_python"), **request.getfixturevalue("as_nobody")}

    def run(source, script):
        return python(f"SOURCE = {source!r}\n{START}{script}", environment={"TMPDIR": str(run_dir.path)}, **identity)

    return run


def read(process, number):
    lines = [process.stdout.readline().strip() for _ in range(number)]
    if not all(lines):
        pytest.fail(process.communicate()[1])
    return lines


def test_start_and_stop(owned_plan, run, run_dir):
    with run(
        owned_plan.source, f"{USE}server.stop(); print(os.listdir({str(run_dir.path)!r})); server.stop()"
    ) as owner:
        output, errors = owner.communicate(timeout=60)
    *described, password, left = output.splitlines()
    assert described == EXPECTED, errors
    assert left == "[]"
    assert errors == ""
    assert len(password) == 32
    assert run_dir.is_clean()


@pytest.mark.parametrize("end", ["SIGKILL", "SIGINT", "os._exit(3)"])
def test_any_end_of_the_owner_leaves_nothing(end, any_plan, run, run_dir, processes_with):
    with run(any_plan.source, f"{USE}{'time.sleep(60)' if end.startswith('SIG') else end}") as owner:
        *described, password = read(owner, 4)
        assert described == EXPECTED
        if end.startswith("SIG"):
            assert processes_with(str(run_dir.path))
            assert processes_with(password) == {}
            owner.send_signal(getattr(signal, end))
        assert owner.wait(10) != 0
        assert run_dir.is_clean()


def test_the_owner_dies_while_the_cluster_is_made(any_plan, run, run_dir, wait_until):
    with run(any_plan.source, USE) as owner:
        assert wait_until(lambda: list(run_dir.path.glob("*/data/*")))
        owner.kill()
        owner.wait()
        assert run_dir.is_clean()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("cluster._SETTINGS['shared_buffers'] = 'much'", ["exited pg_ctl 1", 'parameter "shared_buffers": "much"']),
        ("cluster.initdb_command = lambda bindir, *_: [str(bindir / 'initdb'), '--no']", ["exited initdb 1", "--no"]),
        ("import tempfile; tempfile.tempdir = '/proc/nowhere'", ["No such file or directory: '/proc/nowhere/"]),
    ],
    ids=["postgres", "initdb", "directory"],
)
def test_a_server_that_does_not_start(change, expected, any_plan, run, run_dir):
    script = f"""
{change}
try:
    start(plan(ServerRequest(server=SOURCE, plain=True)))
except ServerError as error:
    print(error)
"""
    with run(any_plan.source, script) as owner:
        output, errors = owner.communicate(timeout=60)
    assert errors == ""
    for words in ("did not start", "--pgleak-dsn", *expected):
        assert words in output
    assert run_dir.is_clean()


def test_a_port_that_somebody_took_meanwhile(any_plan, run, run_dir):
    script = (
        """
import socket
from pytest_pgleak.servers import tcp
taken = socket.create_server(("127.0.0.1", 0))
doors = [tcp.Door(taken.getsockname()[1], "pw"), tcp.choose_door()]
tcp.choose_door = lambda: doors.pop(0)
"""
        + USE
    )
    with run(any_plan.source, script) as owner:
        assert read(owner, 4)[:3] == EXPECTED
    assert run_dir.is_clean()


def test_a_whole_run_of_pytest(any_plan, run, run_dir):
    suite = run_dir.path / "suite"
    suite.mkdir(mode=0o755)
    (suite / "conftest.py").write_text(
        "from pytest_pgleak.servers import ServerRequest, plan, start\n"
        "def pytest_pgleak_server(config):\n"
        f"    return start(plan(ServerRequest(server={any_plan.source!r}, plain=True)))\n"
    )
    (suite / "test_it.py").write_text(
        "import os, psycopg, pytest\nKEPT = []\n"
        "@pytest.mark.pgleak\ndef test_leak(pgleak_dsn):\n    KEPT.append(psycopg.connect(pgleak_dsn))\n"
        "@pytest.mark.pgleak\ndef test_clean(pgleak_fresh_dsn):\n    psycopg.connect(pgleak_fresh_dsn).close()\n"
    )
    script = f"import pytest; sys.exit(pytest.main([{str(suite)!r}, '-p', 'no:cacheprovider', '-p', 'pgleak', '-q']))"
    with run(any_plan.source, script) as owner:
        output, _ = owner.communicate(timeout=60)
    assert "1 failed, 1 passed" in output
    assert "[connection-not-closed]" in output
    for path in sorted(suite.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    suite.rmdir()
    assert run_dir.is_clean()


def test_windows_keeps_the_programs_elsewhere(tmp_path, monkeypatch):
    for version in ("9.6", "17", "16"):
        directory = tmp_path / "PostgreSQL" / version / "bin"
        directory.mkdir(parents=True)
        for name in ("postgres.exe", "initdb.exe"):
            (directory / name).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}.2'\n")
            (directory / name).chmod(0o755)
    monkeypatch.setattr(binaries, "_SUFFIX", ".exe")
    monkeypatch.setenv("PROGRAMFILES", str(tmp_path))
    monkeypatch.setenv("PATH", "/nonexistent")

    assert binaries.from_system() == Binaries(tmp_path / "PostgreSQL" / "17" / "bin", "17.2")
