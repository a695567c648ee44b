"""Directories that exist as long as somebody holds their lock.

Each is named ``pgleak-*`` and contains ``alive.lock``. Whoever uses it holds a shared flock on that file, whoever wants
to remove it needs the exclusive one. The kernel releases a lock when its holder dies, however it dies, so nothing can
be left locked, and what is not locked is nobody's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_pgleak.servers import leftovers, privilege
from pytest_pgleak.servers.values import ServerError

_VARIABLE = "PGLEAK_RUN_DIR"
_SHM = Path("/dev/shm")  # noqa: S108 - a private directory is made in it with mkdtemp
_MIN_FREE = 512 * 2**20  # bytes; a container's default of 64 MB would be filled by a cluster (28 MB) and its WAL
_MAX_SOCKET_PATH = 103  # bytes: sun_path has 104 on macOS and 108 on Linux, with the closing zero
_SOCKET = "/.s.PGSQL.65535"  # or less: the port of a server that listens on one
_STARTING = "start.lock"
_PUBLISHED = "published"
_BUILDING = f"new-{leftovers.PREFIX}"
_LONGEST_MAKING = 60.0  # seconds between the making of a directory and its lock, which take 0.1 ms

# Held by this process. At module level, because a handler for fork() can be registered but never removed.
_held: set[int] = set()


@dataclass(frozen=True)
class Lease:
    """A locked directory of ours.

    Attributes:
        path: The directory, mode 0700.
    """

    path: Path
    _fd: int
    _pid: int

    def release(self) -> bool:
        """Give the directory up; idempotent, and nothing in a child of fork().

        Returns:
            Whether nobody else had it.
        """
        if self._fd not in _held or self._pid != os.getpid():
            return False
        _held.discard(self._fd)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            was_last = True
        except BlockingIOError:
            was_last = False
        # Not just closed: an inherited copy in a child that does not know of us would keep the lock.
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
        return was_last


def choose_parent(user: privilege.OsUser | None) -> Path:
    """Where to put the directories: PGLEAK_RUN_DIR, else a tmpfs with room, else the directory for temporary files.

    A tmpfs, because on a disk the cluster's thousand files take up to twenty times as long to create.

    Raises:
        ServerError: If PGLEAK_RUN_DIR cannot be used.
    """
    if wanted := os.environ.get(_VARIABLE):
        parent = Path(wanted).absolute()
        if problem := _problem(parent, user):
            raise ServerError(
                f"{_VARIABLE}={wanted}: {problem}.\nName a directory for the test server's data, or none."
            )
        return parent
    temporary = Path(tempfile.gettempdir())
    candidates = [temporary, Path("/tmp"), Path("/var/tmp")]  # noqa: S108 - as above
    if _roomy_tmpfs(_SHM):
        candidates.insert(0, _SHM)
    return next((path for path in candidates if _problem(path, user) is None), temporary)


def create(parent: Path, user: privilege.OsUser | None) -> Lease:
    """Make a new directory in `parent`, locked from the first moment that it can be found.

    Args:
        parent: Where.
        user: Whom it belongs to; None for the current user.

    Raises:
        ServerError: If it cannot be made.
    """
    with _explained(parent):
        building = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=parent))
        fd = _locked(building / leftovers.LOCK, fcntl.LOCK_SH)
        # Renamed only now: a sweep that saw it unlocked would take it for a leftover.
        path = parent / building.name.removeprefix("new-")
        building.rename(path)
        _give_to(user, path, leftovers.LOCK)
    _held.add(fd)
    return Lease(path, fd, os.getpid())


def claim(parent: Path, user: privilege.OsUser | None, name: str) -> tuple[Lease, Lease] | None:
    """Make a directory of a given name, if nobody else has.

    Args:
        parent: Where.
        user: Whom it belongs to; None for the current user.
        name: Its name, without the prefix.

    Returns:
        The lease, and another one that holds whoever waits in `join` until it is released; None where the directory is
        there already.

    Raises:
        ServerError: If it cannot be made.
    """
    path = parent / f"{leftovers.PREFIX}{name}"
    with _explained(parent):
        building = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=parent))
        fd = _locked(building / leftovers.LOCK, fcntl.LOCK_SH)
        starting = _locked(building / _STARTING, fcntl.LOCK_EX)
        try:
            building.rename(path)  # not over a directory in which there is something
        except OSError as error:
            for each in (fd, starting):
                os.close(each)
            shutil.rmtree(building, ignore_errors=True)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return None
            raise
        _give_to(user, path, leftovers.LOCK, _STARTING)
    _held.update((fd, starting))
    return Lease(path, fd, os.getpid()), Lease(path / _STARTING, starting, os.getpid())


def join(path: Path, user: privilege.OsUser | None) -> tuple[Lease, str] | None:
    """Take part in a directory that another process has claimed, as soon as that one has published something.

    Args:
        path: The directory.
        user: Whom it belongs to; None for the current user.

    Returns:
        A lease, and what was published; None where the other one has failed or died, or the directory is going away.
    """
    ours = {os.geteuid()} | ({user.uid} if user else set())
    try:
        waiting = os.open(path / _STARTING, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if path.lstat().st_uid not in ours or os.fstat(waiting).st_uid not in ours:
            return None
        fcntl.flock(waiting, fcntl.LOCK_SH)  # the kernel releases it, however the other one ends
        published = (path / _PUBLISHED).read_text(encoding="utf-8")
        lease = hold(path)
    except OSError:
        return None
    finally:
        os.close(waiting)
    return None if lease is None else (lease, published)


def hold(path: Path) -> Lease | None:
    """Take part in a directory of ours that is there; None where it is going away."""
    try:
        fd = os.open(path / leftovers.LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == (path / leftovers.LOCK).lstat().st_ino:  # removed, and perhaps made anew, meanwhile
            _held.add(fd)
            return Lease(path, fd, os.getpid())
    except OSError:
        pass
    os.close(fd)
    return None


def publish(lease: Lease, text: str) -> None:
    """Tell those who wait in `join`; nobody else can read it.

    Raises:
        OSError: It cannot be written.
    """
    building = lease.path / f"{_PUBLISHED}.new"
    file = os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as writing:
        writing.write(text)
    building.rename(lease.path / _PUBLISHED)


def _locked(path: Path, operation: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(fd, operation)
    return fd


def _give_to(user: privilege.OsUser | None, directory: Path, *names: str) -> None:
    if user is not None:
        for path in (*(directory / name for name in names), directory):
            os.chown(path, user.uid, user.gid)


@contextmanager
def _explained(parent: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServerError(
            f"No directory for the test server can be made in {parent}: {error}.\nName another in {_VARIABLE}."
        ) from error


def socket_lease(run_dir: Path, user: privilege.OsUser | None) -> Lease | None:
    """A directory for the socket, if its path in `run_dir` would be longer than the system allows.

    Raises:
        ServerError: If it cannot be made.
    """
    if len(os.fsencode(f"{run_dir}{_SOCKET}")) <= _MAX_SOCKET_PATH:
        return None
    parent = Path("/tmp")  # noqa: S108 - mkdtemp; short is what counts here
    sweep(parent, user)
    return create(parent, user)


def sweep(parent: Path, user: privilege.OsUser | None) -> None:
    """Remove what owners that died together with their supervisor left in `parent` (power loss, a killed container)."""
    ours = {os.geteuid()} | ({user.uid} if user else set())
    finished = time.time() - _LONGEST_MAKING
    for pattern, before in ((f"{leftovers.PREFIX}*", None), (f"{_BUILDING}*", finished)):
        for path in parent.glob(pattern):
            with suppress(OSError):
                info = path.lstat()
                if stat.S_ISDIR(info.st_mode) and info.st_uid in ours and (before is None or info.st_mtime < before):
                    _sweep_one(path, user)


def _sweep_one(path: Path, user: privilege.OsUser | None) -> None:
    try:
        # Not followed: the directory may belong to a user who is less than we are.
        fd = os.open(path / leftovers.LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        # Emptied by its supervisor, who was not allowed to remove it from its parent. Who runs as nobody else may do
        # that, and then an empty directory proves nothing; nor does one that is not the server's user's.
        if path.name.startswith(_BUILDING) or (user is not None and path.lstat().st_uid == user.uid):
            path.rmdir()
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        leftovers.remove(path)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _problem(path: Path, user: privilege.OsUser | None) -> str | None:
    if not path.is_dir():
        return "it is not a directory"
    if not os.access(path, os.W_OK | os.X_OK):
        return "it is not writable"
    if user is not None and not privilege.can_enter(path, user):
        return f"PostgreSQL runs as the user {user.name!r}, who may not enter it"
    return None


def _roomy_tmpfs(path: Path) -> bool:
    try:
        mounts = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
        status = os.statvfs(path)
    except OSError:
        return False
    is_tmpfs = any(line.split()[1:3] == [str(path), "tmpfs"] for line in mounts)
    return is_tmpfs and status.f_bavail * status.f_frsize >= _MIN_FREE


def _forget_in_child() -> None:
    """Close the locks in a child of fork(): its life is not the session's, the server must not wait for its end."""
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
