"""What a live server is to the machine it runs on: what it listens on, and what is left of it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="processes are looked for in /proc")

APP = """
from fastapi import FastAPI

app = FastAPI()
"""

TEST = """
import pathlib, time

def test_it(pgleak_live):
    with pgleak_live("shop:app", command=COMMAND, workers=2) as server:
        pathlib.Path("started.tmp").write_text(str(server.workers.directory))
        pathlib.Path("started.tmp").rename("started")
        while not pathlib.Path("go-on").exists():
            time.sleep(0.02)
"""

COMMANDS = {
    "uvicorn": "uvicorn {app} --workers 2",
    "gunicorn": "gunicorn {app} --workers 2",
    "preload": "gunicorn {app} --workers 2 --preload",
}

_ACCEPTS = 0x10000
"""Of the flags in /proc/net/unix: __SO_ACCEPTCON of <linux/net.h>."""

Start = Callable[[str], "tuple[subprocess.Popen[bytes], Path]"]


@pytest.fixture
def start(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start pytest, and return it with the directory of its live server when that serves."""
    # Here gunicorn looks for a place of its own, and in $HOME, which pytester has made the directory of the test.
    (runtime := pytester.mkdir("runtime")).joinpath("gunicorn.ctl").write_text("of another gunicorn")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    started: list[subprocess.Popen[bytes]] = []

    def start(command: str) -> tuple[subprocess.Popen[bytes], Path]:
        pytester.makepyfile(shop=APP, test_it=f"COMMAND = {command!r}\n{TEST}")
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        deadline = time.monotonic() + 60
        while not (pytester.path / "started").exists():
            assert time.monotonic() < deadline, "the server did not start"
            assert process.poll() is None
            time.sleep(0.01)
        return process, Path((pytester.path / "started").read_text())

    yield start
    for process in started:
        process.kill()
        process.wait()


def processes_of(directory: Path) -> dict[int, str]:
    """Return the processes of a server, its supervisor among them, and what they execute."""
    found = {}
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PGLEAK_LIVE={directory}".encode() in environment.read_bytes().split(b"\0"):
                command = (environment.parent / "cmdline").read_bytes()
                found[int(environment.parent.name)] = command.replace(b"\0", b" ").decode()
        except OSError:
            continue  # it is gone, or not ours
    return found


def sockets_of(pids: set[int]) -> set[str]:
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(descriptor.readlink())
            except OSError:
                continue  # it was closed
            if target.startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
    return inodes


def table(name: str) -> list[list[str]]:
    path = Path("/proc/net") / name
    return [line.split() for line in path.read_text().splitlines()[1:]] if path.exists() else []


def listening(pids: set[int]) -> set[str]:
    """Return where these processes listen: addresses, and paths of Unix sockets."""
    inodes, found = sockets_of(pids), set()
    for name in ("tcp", "tcp6"):
        found |= {_address(row[1]) for row in table(name) if row[9] in inodes and row[3] == "0A"}  # TCP_LISTEN
    for name in ("udp", "udp6"):  # there is no listening: who is bound, is reached
        found |= {_address(row[1]) for row in table(name) if row[9] in inodes}
    for row in table("unix"):
        if row[6] in inodes and int(row[3], 16) & _ACCEPTS:
            found.add(row[7] if len(row) > 7 else "?")
    return found


def _address(text: str) -> str:
    packed = bytes.fromhex(text.partition(":")[0])
    words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
    return str(ip_address(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)))


@contextmanager
def ended(process: subprocess.Popen[bytes], directory: Path) -> Iterator[None]:
    yield
    process.wait(timeout=60)
    deadline = time.monotonic() + 20
    while processes_of(directory) or directory.exists():
        left = directory.glob("*") if directory.exists() else ()
        assert time.monotonic() < deadline, (processes_of(directory), list(left))
        time.sleep(0.02)


def test_the_test_can_see_who_listens(tmp_path: Path) -> None:
    with (
        socket.socket() as everywhere,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as local,
    ):
        everywhere.bind(("0.0.0.0", 0))
        datagrams.bind(("127.0.0.1", 0))
        local.bind(str(tmp_path / "socket"))
        everywhere.listen()
        local.listen()
        assert {"0.0.0.0", "127.0.0.1", str(tmp_path / "socket")} <= listening({os.getpid()})
    assert _address("00000000000000000000000001000000:1F90") == "::1"


@pytest.mark.parametrize("which", COMMANDS)
def test_nobody_listens_where_others_can_reach_it(which: str, start: Start, pytester: pytest.Pytester) -> None:
    process, directory = start(COMMANDS[which])
    processes = processes_of(directory)
    assert len(processes) >= 4, processes  # the supervisor, the server, and two workers at least
    found = listening({process.pid, *processes})
    assert found == {"127.0.0.1", str(directory / "socket")}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    with ended(process, directory):
        (pytester.path / "go-on").touch()


@pytest.mark.parametrize("which", COMMANDS)
@pytest.mark.parametrize("how", ["normally", "SIGKILL", "SIGINT", "SIGTERM"])
def test_nothing_is_left(how: str, which: str, start: Start, pytester: pytest.Pytester) -> None:
    process, directory = start(COMMANDS[which])
    with ended(process, directory):
        if how == "normally":
            (pytester.path / "go-on").touch()
        else:
            process.send_signal(getattr(signal, how))
    assert not (pytester.path / ".gunicorn").exists()
    assert (pytester.path / "runtime" / "gunicorn.ctl").read_text() == "of another gunicorn"


def test_a_control_socket_that_the_command_names_is_made(start: Start, pytester: pytest.Pytester) -> None:
    process, directory = start("gunicorn {app} --workers 2 --control-socket mine/control")
    made, deadline = str(pytester.path / "mine" / "control"), time.monotonic() + 20
    while made not in (found := listening(set(processes_of(directory)))):  # a thread of gunicorn's makes it
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    with ended(process, directory):
        (pytester.path / "go-on").touch()


def test_a_child_that_leaves_a_test_in_its_middle_leaves_the_server_to_its_parent(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        shop=APP,
        test_it="""
        import os, pathlib, sys
        import pytest

        @pytest.mark.pgleak
        @pytest.mark.parametrize("number", range(2))
        def test_it(pgleak_live_server, number):
            directory = pgleak_live_server.workers.directory
            if not number:
                if not (child := os.fork()):
                    sys.exit("the child's")
                os.waitpid(child, 0)
            assert pathlib.Path(directory).exists()
            with pgleak_live_server.client() as client:
                assert client.get("/openapi.json").status_code == 200
        """,
    )
    pytester.makeini("[pytest]\npgleak_live_command = uvicorn shop:app\n")
    result = pytester.runpytest_subprocess("-x", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    assert "internal error" not in result.stdout.str()
