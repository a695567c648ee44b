"""The process that is postgres' parent. It runs by itself, and nothing of the plugin imports it.

    python -I -S supervisor_main.py UID GID TEMPLATE RUN_DIR [OTHER_DIR...] ';' initdb ... ';' postgres ...

(The owner has it imported by a line of Python, and not executed as a script: then its bytecode is kept.)

It becomes UID (``-`` to stay), copies TEMPLATE, or runs initdb (and makes TEMPLATE from what that has made, unless it
is ``-``), starts postgres and waits for the exclusive lock on RUN_DIR/alive.lock,
which it gets when the last owner has let go of it or died. Then it stops postgres and removes the directories. It
reports on its standard output, a line each: ``started``, ``exited PROGRAM CODE``.

Imports are few and come first: starting Python is on the way of every test session (10 ms of it with these), and after
the change of user the standard library may be out of reach.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import sys
import zlib

TYPE_CHECKING = False  # typing is another import
if TYPE_CHECKING:
    import signal
else:
    try:
        # What `signal` is made of, without its enums: 4 ms less.
        import _signal as signal
    except ImportError:
        import signal

try:
    import ctypes

    _libc: ctypes.CDLL | None = ctypes.CDLL(None)
except (ImportError, OSError):
    _libc = None

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_OWNER_GONE = signal.SIGUSR1
_HEAD = 24  # bytes
_LONGEST_INDEX = 1 << 20  # bytes; a cluster of a thousand files has 25,000
# Waited for or ignored. Blocked and not ignored, for a child would inherit that. A terminal's Ctrl-C or hang-up does
# not come here anyway (own session); a SIGTERM for everybody ends pytest, and with it us.
_BLOCKED = {signal.SIGCHLD, _OWNER_GONE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def main(arguments: list[str]) -> None:
    """Supervise one server until its owners are gone or it exits."""
    head, initdb, postgres = _split(arguments)
    template, directories = head[2], head[3:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    # BSD and macOS drop a blocked signal that is to be ignored, as this one is by default, and sigwait waits for ever.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    lock = os.open(f"{directories[0]}/alive.lock", os.O_RDWR)
    if head[0] != "-":
        _become(int(head[0]), int(head[1]))
    os.umask(0o077)
    try:
        _run(lock, template, f"{directories[0]}/data", initdb, postgres)
    finally:
        # The lock is held from here to the end: nobody else takes the directories for leftovers meanwhile.
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The lock file after the data: interrupted in between, the rest is still recognised as a leftover.
        for directory in (f"{directories[0]}/data", *directories):
            _remove(directory)


def _run(lock: int, template: str, data: str, initdb: list[str], postgres: list[str]) -> None:
    code = _make_cluster(template, data, initdb)
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


def _make_cluster(template: str, data: str, initdb: list[str]) -> int:
    """Make the data directory; return initdb's exit code, 0 where it was not needed."""
    if template == "-":
        return _wait(_spawn(initdb))
    try:
        guard = os.open(f"{template}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return _wait(_spawn(initdb))
    try:
        # Whoever comes first builds it; the others wait for the 0.3 s that they would take themselves.
        fcntl.flock(guard, fcntl.LOCK_EX)
        if _is_copied(template, data):
            return 0
        _remove(data)
        code = _wait(_spawn(initdb))
        if code == 0:
            _save(data, template)
        return code
    finally:
        os.close(guard)


def _is_copied(template: str, data: str) -> bool:
    """Unpack the template, if it is there, complete, and nobody else's."""
    try:
        file = os.open(template, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        found = os.fstat(file)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            return False
        _unpack(file, found.st_size, data)
    except (OSError, ValueError):
        return False
    finally:
        os.close(file)
    return True


def _save(data: str, template: str) -> None:
    """Make a template of a new cluster; without one, the next server takes longer."""
    building = f"{template}.new"
    try:
        _remove(building)
        file = os.open(building, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            _pack(data, file)
        finally:
            os.close(file)
        os.rename(building, template)  # noqa: PTH104 - complete or absent
    except OSError:
        _remove(building)


# A template is one file: its length in 16 digits, the CRC-32 of what follows in 8, a line for each directory (/NAME), a
# line for each content (SIZE, and the NAMES of all files that have it), an empty line, and the contents. One file,
# because some file systems take a minute to create a thousand. Each content once, because a new cluster has three
# databases that are alike. The sum, because a server starts with many a page that a power loss has made zero.


def _pack(data: str, file: int) -> None:
    directories, contents = "", dict[tuple[int, int, str], tuple[bytes, list[str]]]()
    for name, size in _needed(sorted(_entries(data, ""))):
        if size is None:
            directories += f"{name}\n"
            continue
        content = _read(f"{data}{name}", size)
        key = size, zlib.crc32(content), ""  # 12 ms less than the hash of bytes
        if contents.get(key, (content,))[0] != content:
            key = *key[:2], name
        contents.setdefault(key, (content, []))[1].append(name)
    index = directories + "".join(f"{len(content)} {' '.join(names)}\n" for content, names in contents.values()) + "\n"
    pieces = [index.encode("ascii"), *(content for content, _ in contents.values())]
    found = 0
    for piece in pieces:
        found = zlib.crc32(piece, found)
    for piece in (b"%016d%08x" % (_HEAD + sum(map(len, pieces)), found), *pieces):
        _write_all(file, piece)


def _needed(entries: list[tuple[str, int | None]]) -> list[tuple[str, int | None]]:
    """Leave out what postgres makes again when it needs it: a quarter of the files, and of the bytes.

    Those are the free space maps and visibility maps, which may always be absent or behind (PostgreSQL manual, Database
    Physical Storage), and which no CREATE DATABASE has to copy then. And segments of WAL beyond the one in which the
    last checkpoint is: that is the first (it may end in the second), the others were renamed to be used next.
    """
    segments = [name for name, size in entries if name.startswith("/pg_wal/") and size is not None]
    left_out = set(segments[2:])
    return [(name, size) for name, size in entries if name not in left_out and not name.endswith(("_fsm", "_vm"))]


def _entries(root: str, inside: str) -> list[tuple[str, int | None]]:
    found: list[tuple[str, int | None]] = []
    with os.scandir(f"{root}{inside}") as entries:
        for entry in entries:
            name = f"{inside}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                found += [(name, None), *_entries(root, name)]
            else:
                found.append((name, entry.stat(follow_symlinks=False).st_size))
    return found


def _read(path: str, size: int) -> bytes:
    reading = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        content = os.read(reading, size)
    finally:
        os.close(reading)
    if len(content) != size:
        raise OSError("shorter than expected")
    return content


def _unpack(file: int, length: int, data: str) -> None:
    """Make the data directory; whoever calls removes it where it turns out that the template is damaged."""
    head = os.pread(file, _LONGEST_INDEX, 0)
    index, separator, _ = head[_HEAD:].partition(b"\n\n")
    if not separator or head[:16] != b"%016d" % length or b"/.." in index:
        raise ValueError("incomplete, or not ours")
    at = _HEAD + len(index) + 2
    found = zlib.crc32(head[_HEAD:at])
    os.mkdir(data, 0o700)  # noqa: PTH102 - pathlib is another import
    for line in index.decode("ascii").split("\n"):
        if line.startswith("/"):
            os.mkdir(f"{data}{line}", 0o700)  # noqa: PTH102
            continue
        size, *names = line.split(" ")
        content = os.pread(file, min(int(size), length), at)
        at += int(size)
        found = zlib.crc32(content, found)
        for name in names:
            _write(f"{data}{name}", content)
    if at != length or head[16:_HEAD] != b"%08x" % found:
        raise ValueError("damaged")


def _write(path: str, content: bytes) -> None:
    writing = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _write_all(writing, content)
    finally:
        os.close(writing)


def _write_all(writing: int, content: bytes) -> None:
    if os.write(writing, content) != len(content):
        raise OSError("no room")


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
        if not os.path.isdir(path):  # noqa: PTH112
            os.unlink(path)  # noqa: PTH108
            return
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    _remove(entry.path)
                else:
                    os.unlink(entry.path)  # noqa: PTH108 - pathlib is another import
        os.rmdir(path)  # noqa: PTH106
    except OSError:
        pass  # the owner or the next sweep removes what is left


def run(arguments: list[str]) -> None:
    """Be this process."""
    main(arguments)
    os._exit(0)  # the other thread may still be waiting


if __name__ == "__main__":
    run(sys.argv[1:])
