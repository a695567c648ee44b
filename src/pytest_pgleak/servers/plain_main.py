"""The process that keeps a server where the supervisor cannot run. A script by itself; nothing imports it.

    python -I -S plain_main.py RUN_DIR ';' initdb ... ';' pg_ctl ...

It runs initdb, takes over the settings that its owner has written, and has pg_ctl start the server. Then it waits for a
line or the end of its standard input: that comes when the owner stops, and when it dies in whatever way. It stops the
server and removes the directory. It reports on its standard output, a line: ``started``, or ``exited PROGRAM CODE``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

_STOP = ("stop", "-m", "immediate", "-w", "-t", "10")
_ATTEMPTS = 50  # Windows does not remove a file that somebody has open: a virus scanner, a process that is ending
_PAUSE = 0.1  # seconds


def main(arguments: list[str]) -> None:
    """Keep one server until its owner is gone."""
    first = arguments.index(";")
    second = arguments.index(";", first + 1)
    run_dir, initdb, pg_ctl = arguments[0], arguments[first + 1 : second], arguments[second + 1 :]
    data = os.path.join(run_dir, "data")  # noqa: PTH118 - pathlib is another import
    try:
        started = _is_started(run_dir, data, initdb, pg_ctl)
        if started:
            _report("started")
        sys.stdin.buffer.readline()  # also when it did not start: the owner reads the log
        if started:
            _run([*pg_ctl, *_STOP, "-D", data])
    finally:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Windows removes no file that is open, as our log is
        _remove(run_dir)


def _is_started(run_dir: str, data: str, initdb: list[str], pg_ctl: list[str]) -> bool:
    if (code := _run([*initdb, "-D", data])) != 0:
        _report(f"exited initdb {code}")
        return False
    with (
        open(os.path.join(run_dir, "settings.conf"), "rb") as ours,  # noqa: PTH118, PTH123
        open(os.path.join(data, "postgresql.auto.conf"), "ab") as all_of_them,  # noqa: PTH118, PTH123
    ):
        all_of_them.write(ours.read())
    # The log is a file: a pipe would be open as long as the server is.
    log = os.path.join(run_dir, "server.log")  # noqa: PTH118
    if (code := _run([*pg_ctl, "start", "-w", "-t", "60", "-l", log, "-D", data])) != 0:
        _report(f"exited pg_ctl {code}")
        _run([*pg_ctl, *_STOP, "-D", data])
        return False
    return True


def _run(command: list[str]) -> int:
    try:
        return subprocess.call(command, stdin=subprocess.DEVNULL, stdout=2)  # noqa: S603 - the plugin's own command
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
        return 127


def _remove(run_dir: str) -> None:
    for _ in range(_ATTEMPTS):
        shutil.rmtree(run_dir, ignore_errors=True)
        if not os.path.exists(run_dir):  # noqa: PTH110
            return
        time.sleep(_PAUSE)


def _report(line: str) -> None:
    try:  # noqa: SIM105 - contextlib is another import
        os.write(1, f"{line}\n".encode())
    except OSError:
        pass  # nobody is left to read it


if __name__ == "__main__":
    main(sys.argv[1:])
