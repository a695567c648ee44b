"""The process that is the server's parent. It runs as a script, by itself; nothing imports it.

    python -I -S supervisor_main.py DIRECTORY PROGRAM [ARGUMENT...]

It starts PROGRAM and waits for its standard input to end: pytest has the other end of that pipe, and the kernel closes
it however pytest ends. Then PROGRAM is told to stop (SIGTERM) and gets some seconds for it; what is still there of all
that it has started is killed. A line ``stop`` does the same, and leaves DIRECTORY to pytest. It reports on its standard
output, a line each: ``started PID``, ``killed`` and ``exited CODE``.

Whatever PROGRAM leaves behind becomes a child of this process (PR_SET_CHILD_SUBREAPER), so that nothing is missed. On
other systems than Linux its process group stands in for that.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys

try:
    import ctypes

    _libc: ctypes.CDLL | None = ctypes.CDLL(None)
except (ImportError, OSError):
    _libc = None

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_PR_SET_CHILD_SUBREAPER = 36
_STOP = signal.SIGUSR1
_PATIENCE = 8.0  # seconds for a graceful shutdown
_BLOCKED = {signal.SIGCHLD, _STOP, signal.SIGALRM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

_pytest_is_through = _thread.allocate_lock()
_is_left_to_us = [True]


def main(directory: str, command: list[str]) -> None:
    """Supervise one server until pytest has had enough of it, has died, or it exits."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    if _libc is not None and hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    server = _spawn(command)
    _report(f"started {server}")
    _pytest_is_through.acquire()
    _thread.start_new_thread(_await_pytest, ())
    code = _wait(server)
    _kill_all(server)
    _report(f"exited {code}")
    _pytest_is_through.acquire()  # it still wants to read the log
    if _is_left_to_us[0]:
        _remove(directory)


def _spawn(command: list[str]) -> int:
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if _libc is not None and hasattr(_libc, "prctl"):
            _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
            if os.getppid() != supervisor:
                os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # Standard output becomes the log, as standard error is: the other is for reports alone.
        os.dup2(2, 1)
        os.execvp(command[0], command)  # noqa: S606 - the user's own command
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _wait(server: int) -> int:
    """Return the exit code of the server, which is told to stop when the time has come."""
    while True:
        # All that there is, for the server's own children may have become ours.
        while True:
            try:
                reaped, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0
            if reaped == server:
                return os.waitstatus_to_exitcode(status)
            if not reaped:
                break
        received = signal.sigwait({signal.SIGCHLD, _STOP, signal.SIGALRM})
        if received == _STOP:
            os.kill(server, signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
        elif received == signal.SIGALRM:
            _report("killed")
            os.kill(server, signal.SIGKILL)


def _kill_all(server: int) -> None:
    """Kill what the server has left behind, and what that has started, until nothing is there."""
    _kill(-server)
    while True:
        for child in _children():
            _kill(child)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _kill(pid: int) -> None:
    try:  # noqa: SIM105 - contextlib is another import
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass  # it is gone already


def _children() -> list[int]:
    try:
        entries = os.listdir("/proc")  # noqa: PTH208 - pathlib is another import
    except OSError:
        return []  # another system
    return [int(entry) for entry in entries if entry.isdigit() and _parent(entry) == os.getpid()]


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            # The name of the program, in parentheses, may have anything in it.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0  # it is gone


def _await_pytest() -> None:
    if os.read(0, 5) == b"stop\n":
        _is_left_to_us[0] = False
    _pytest_is_through.release()
    os.kill(os.getpid(), _STOP)


def _report(line: str) -> None:
    try:  # noqa: SIM105 - contextlib is another import
        os.write(1, f"{line}\n".encode())
    except OSError:
        pass  # nobody is left to read it


def _remove(directory: str) -> None:
    """Delete a directory of files; shutil.rmtree is not worth its import."""
    try:
        for name in os.listdir(directory):  # noqa: PTH208 - pathlib is another import
            os.unlink(f"{directory}/{name}")  # noqa: PTH108
        os.rmdir(directory)  # noqa: PTH106
    except OSError:
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    main(sys.argv[1], sys.argv[2:])
    os._exit(0)  # the other thread may still be waiting
