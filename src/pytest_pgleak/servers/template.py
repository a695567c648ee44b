"""A cluster that initdb has made once, to be copied: 20 ms instead of 300.

It lies in the cache of the user whom the server runs as, in a directory that nobody else can write. What is not as we
have left it, or does not start, is made again: see `pytest_pgleak.servers.supervisor_main`, which builds and copies it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_pgleak.servers import runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_pgleak.servers.privilege import OsUser

_FORMAT = 3
"""To be raised when what is in a template, or how it is told that it is complete, changes."""

_VARIABLE = "PGLEAK_CACHE_DIR"
_PRIVATE = 0o700


@dataclass(frozen=True)
class Template:
    """Where a template is, or is going to be.

    Attributes:
        path: Its file. Beside it lies one that is locked by whoever makes or unpacks it.
    """

    path: Path

    def discard(self) -> None:
        """Remove it: a server did not start with a copy of it."""
        self.path.unlink(missing_ok=True)


def locate(initdb: Sequence[str], user: OsUser | None) -> Template | None:
    """Return the template for a cluster.

    Args:
        initdb: The command that makes the cluster, without the options that say where.
        user: Whom the server runs as; None for the current user.

    Returns:
        The template, whether it exists or not; None where there is no place for one.
    """
    uid = os.geteuid() if user is None else user.uid
    with suppress(OSError, RuntimeError):  # the latter where nobody can tell the user's home
        directory = _directory(user, uid)
        return Template(directory / f"{_key(initdb, uid)}.cluster")
    return None


def _directory(user: OsUser | None, uid: int) -> Path:
    """Make the directory of the templates, or make sure that nobody else can write it.

    Raises:
        OSError: It cannot be made, or it is somebody else's.
    """
    if named := os.environ.get(_VARIABLE):
        parent = Path(named).absolute()
    elif user is None:
        parent = _user_cache()
    else:
        parent = runtime.PUBLIC
        runtime.made_public()
    parent.mkdir(parents=True, exist_ok=True)
    directory = parent / f"clusters-{uid}"
    if not os.path.lexists(directory):
        _make(directory, user)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or stat.S_IMODE(found.st_mode) != _PRIVATE:
        raise PermissionError(f"{directory} is not a private directory of user {uid}")
    return directory


def _user_cache() -> Path:
    if sys.platform == "linux":
        # What platformdirs says as well; its import takes 3 ms.
        return Path(os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache").expanduser() / "pytest-pgleak"
    import platformdirs

    return Path(platformdirs.user_cache_dir("pytest-pgleak"))


def _make(directory: Path, user: OsUser | None) -> None:
    """Make a private directory, seen by others only when it has its owner."""
    building = Path(tempfile.mkdtemp(prefix="new-", dir=directory.parent))
    try:
        if user is not None:
            os.chown(building, user.uid, user.gid)
        building.rename(directory)
    except OSError:
        building.rmdir()
        if not directory.exists():  # otherwise another process was faster
            raise


def _key(initdb: Sequence[str], uid: int) -> str:
    """Name what a template depends on: two builds of one version may differ, so the file itself counts."""
    postgres = Path(initdb[0]).with_name("postgres").resolve()
    found = postgres.stat()
    parts = (_FORMAT, str(postgres), found.st_size, found.st_mtime_ns, list(initdb), uid, os.uname().machine)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
