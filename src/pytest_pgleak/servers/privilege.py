"""Which operating system user a server of ours runs as: PostgreSQL refuses to be root."""

from __future__ import annotations

import errno
import os
import pwd
import stat
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_pgleak.servers.binaries import environment
from pytest_pgleak.servers.values import ServerError

if TYPE_CHECKING:
    from pathlib import Path

_VARIABLE = "PGLEAK_OS_USER"

# Not "postgres": where a real cluster runs, the test server could signal it and read its files. nobody has the passwd
# entry that initdb asks for in Debian's, Alpine's and Fedora's images. Nobody is ever created with useradd.
_DEFAULT = "nobody"


@dataclass(frozen=True)
class OsUser:
    """A user to become.

    Attributes:
        name: In the passwd database.
        uid: Never 0.
        gid: Its primary group; it gets no other.
    """

    name: str
    uid: int
    gid: int


def server_user() -> OsUser | None:
    """The user to drop to, or None if this process is not root and has nothing to drop.

    Root drops to PGLEAK_OS_USER, else to nobody.

    Raises:
        ServerError: If that user does not exist or is root too.
    """
    if os.geteuid() != 0:
        return None
    name = os.environ.get(_VARIABLE) or _DEFAULT
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        problem = f"there is no user {name!r}"
    else:
        if entry.pw_uid != 0:
            return OsUser(name, entry.pw_uid, entry.pw_gid)
        problem = f"the user {name!r} is root too"
    raise ServerError(
        f"PostgreSQL refuses to run as root, and {problem} to run it as.\n"
        f"Name an unprivileged user in the environment variable {_VARIABLE}, run pytest as one, or use --pgleak-dsn."
    )


def can_run(program: Path, user: OsUser) -> bool:
    """Whether `user` can execute `program` and read its libraries: found out by running it with ``-V``.

    Running it is the only sure answer (ACLs, noexec mounts, libraries below a private directory), and takes 1 to 10 ms.

    Raises:
        ServerError: If this process may not become `user`.
    """
    try:
        done = subprocess.run(  # noqa: S603 - a program that was found by us
            [str(program), "-V"],
            capture_output=True,
            check=False,
            cwd="/",
            env=environment(),
            stdin=subprocess.DEVNULL,
            user=user.uid,
            group=user.gid,
            extra_groups=[],
        )
    except OSError as error:
        # EPERM comes from setuid and setgroups, EACCES from the program's path.
        if error.errno == errno.EPERM:
            raise ServerError(
                f"pytest runs as root but may not become the user {user.name!r} (CAP_SETUID or CAP_SETGID dropped?).\n"
                "PostgreSQL refuses to run as root: run pytest as an unprivileged user, or use --pgleak-dsn."
            ) from None
        return False
    return done.returncode == 0


def can_enter(directory: Path, user: OsUser) -> bool:
    """Whether `user` may traverse `directory` and all above it, by their mode bits."""
    return all(_may_enter(path, user) for path in (directory, *directory.parents))


def _may_enter(directory: Path, user: OsUser) -> bool:
    info = directory.stat()
    bit = stat.S_IXUSR if info.st_uid == user.uid else stat.S_IXGRP if info.st_gid == user.gid else stat.S_IXOTH
    return bool(info.st_mode & bit)
