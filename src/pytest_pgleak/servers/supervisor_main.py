"""The process that is postgres' parent. It runs as a script, by itself; nothing imports it.

    python -I -S supervisor_main.py UID GID RUN_DIR [OTHER_DIR...] ';' initdb ... ';' postgres ...

It becomes UID (``-`` to stay), runs initdb, starts postgres and waits for the exclusive lock on RUN_DIR/alive.lock,
which it gets when the last owner has let go of it or died. Then it stops postgres and removes the directories. It
reports on its standard output, a line each: ``started``, ``exited PROGRAM CODE``.

Imports are few and come first: starting Python is on the way of every test session (17 ms of it with these), and after
the change of user the standard library may be out of reach.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import signal
import sys

try:
    import ctypes

    _libc: ctypes.CDLL | None = ctypes.CDLL(None)
except (ImportError, OSError):
    _libc = None

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_OWNER_GONE = signal.SIGUSR1
# Waited for or ignored. Blocked and not ignored, for a child would inherit that. A terminal's Ctrl-C or hang-up does
# not come here anyway (own session); a SIGTERM for everybody ends pytest, and with it us.
_BLOCKED = {signal.SIGCHLD, _OWNER_GONE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def main(arguments: list[str]) -> None:
    """Supervise one server until its owners are gone or it exits."""
    head, initdb, postgres = _split(arguments)
    directories = head[2:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    lock = os.open(f"{directories[0]}/alive.lock", os.O_RDWR)
    if head[0] != "-":
        _become(int(head[0]), int(head[1]))
    os.umask(0o077)
    try:
        _run(lock, initdb, postgres)
    finally:
        # The lock is held from here to the end: nobody else takes the directories for leftovers meanwhile.
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The lock file after the data: interrupted in between, the rest is still recognised as a leftover.
        for directory in (f"{directories[0]}/data", *directories):
            _remove(directory)


def _run(lock: int, initdb: list[str], postgres: list[str]) -> None:
    code = _wait(_spawn(initdb))
    if code != 0:
        _report(f"exited initdb {code}")
        return
    if _owner_is_gone(lock):
        return
    # From the main thread: the death signal follows the thread that forked. And before the other thread exists.
    server = _spawn(postgres)
    _report("started")
    _thread.start_new_thread(_await_owners, (lock,))
    _report(f"exited postgres {_wait(server, signal.SIGQUIT)}")


def _split(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    first = arguments.index(";")
    second = arguments.index(";", first + 1)
    return arguments[:first], arguments[first + 1 : second], arguments[second + 1 :]


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _spawn(command: list[str]) -> int:
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if _libc is not None and hasattr(_libc, "prctl"):
            _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGQUIT))
            if os.getppid() != supervisor:
                os._exit(1)
        # Standard output becomes the log, as standard error is: the other is for reports alone.
        os.dup2(2, 1)
        os.execv(command[0], command)  # noqa: S606 - the command is the plugin's own
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    os._exit(127)


def _wait(pid: int, at_end_of_owners: int | None = None) -> int:
    """The exit code of child `pid`, which gets a signal when the owners are gone.

    Signals are received and children reaped in this one thread only, so the pid cannot have become somebody else's.
    """
    while True:
        reaped, status = os.waitpid(pid, os.WNOHANG)
        if reaped:
            return os.waitstatus_to_exitcode(status)
        if signal.sigwait({signal.SIGCHLD, _OWNER_GONE}) == _OWNER_GONE and at_end_of_owners is not None:
            os.kill(pid, at_end_of_owners)


def _owner_is_gone(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _await_owners(lock: int) -> None:
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.kill(os.getpid(), _OWNER_GONE)


def _report(line: str) -> None:
    try:  # noqa: SIM105 - contextlib is another import
        os.write(1, f"{line}\n".encode())
    except OSError:
        pass  # nobody is left to read it


def _remove(path: str) -> None:
    """Delete a directory; shutil.rmtree is not worth its import. Links (tablespaces) are not followed."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    _remove(entry.path)
                else:
                    os.unlink(entry.path)  # noqa: PTH108 - pathlib is another import
        os.rmdir(path)  # noqa: PTH106
    except OSError:
        pass  # the owner or the next sweep removes what is left


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # the other thread may still be waiting
