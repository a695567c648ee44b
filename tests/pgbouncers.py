"""A real PgBouncer (Debian package ``pgbouncer``) on loopback, in front of a server of the tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

PROGRAM = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
PATIENCE = 10.0
"""Seconds; it answers after about 30 ms."""

needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed (Debian package pgbouncer)")


@contextlib.contextmanager
def pgbouncer(
    server_dsn: str, pool_mode: str, passwords: Mapping[str, str] | None = None, **settings: str | int
) -> Iterator[str]:
    """Run PgBouncer.

    Args:
        server_dsn: The server behind it, with its host and port.
        pool_mode: ``session``, ``transaction`` or ``statement``.
        passwords: The passwords of its users; everybody may come in without one where it is missing.
        settings: More of its settings.

    Yields:
        A DSN that leads through it, without a database.
    """
    assert PROGRAM is not None
    server = conninfo_to_dict(server_dsn)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        directory = Path(name)
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "any" if passwords is None else "plain",
            "pool_mode": pool_mode,
            "admin_users": "admin",
            "logfile": directory / "log",
            "pidfile": directory / "pid",
            "ignore_startup_parameters": "extra_float_digits",
            **settings,
        }
        port = int(lines["listen_port"])
        if passwords is not None:
            lines["auth_file"] = directory / "userlist.txt"
            listed = "".join(f'"{user}" "{password}"\n' for user, password in passwords.items())
            (directory / "userlist.txt").write_text(listed, encoding="utf-8")
        target = f"host={server['host']} port={server.get('port', 5432)} user={server['user']}"
        text = [f"[databases]\n* = {target}\n[pgbouncer]", *(f"{key} = {value}" for key, value in lines.items())]
        (directory / "pgbouncer.ini").write_text("\n".join(text) + "\n", encoding="utf-8")
        with subprocess.Popen(
            [PROGRAM, "-q", str(directory / "pgbouncer.ini")], **_unprivileged(directory), stderr=subprocess.DEVNULL
        ) as process:
            try:
                _await(process, port, directory / "log")
                yield make_conninfo(host="127.0.0.1", port=port, user=server["user"])
            finally:
                process.kill()


def _unprivileged(directory: Path) -> dict[str, object]:
    """PgBouncer refuses to run as root, and the directory of the server's socket is open to its user alone."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    for path in (directory, *directory.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise AssertionError(f"pgbouncer does not answer:\n{log.read_text() if log.exists() else ''}")


@contextlib.contextmanager
def translated(dsn: str) -> Iterator[str]:
    """Translate addresses before PgBouncer, as the published port of a container does."""
    parameters = conninfo_to_dict(dsn)
    target = str(parameters["host"]), int(str(parameters["port"]))

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(target) as server:
                asking = threading.Thread(target=forward, args=(self.request, server))
                asking.start()
                forward(server, self.request)
                asking.join()

    def forward(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):  # whoever has gone
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as relay:
        serving = threading.Thread(target=relay.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield make_conninfo(dsn, port=relay.server_address[1])
        finally:
            relay.shutdown()
            serving.join()


def through(address: str, database: str) -> str:
    return make_conninfo(address, dbname=conninfo_to_dict(database)["dbname"])


def console(address: str) -> str:
    return make_conninfo(address, user="admin", dbname="pgbouncer")


def lines_of(result: pytest.RunResult, test: str) -> list[str]:
    """The failure of one test."""
    lines = result.stdout.lines
    start = next(number for number, line in enumerate(lines) if line.strip("_ ") == test)
    end = next((n for n in range(start + 1, len(lines)) if lines[n].startswith(("____", "===="))), None)
    return lines[start:end]
