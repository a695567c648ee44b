"""What our containers are marked with, and which of them nobody needs any more."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_pgleak.servers import leftovers

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKEN = "pytest-pgleak"  # noqa: S105 - the name of a label; its value is another for each container
_DIRECTORY = "pytest-pgleak.directory"
_MACHINE = "pytest-pgleak.machine"
_LONG_ENDED = 60.0  # seconds; whoever started it has read its log by then


def labels(token: str, directory: Path | None) -> dict[str, str]:
    """The labels of a container.

    Args:
        token: What no other container has.
        directory: The directory whose lock its users hold, if there is one.
    """
    return {TOKEN: token, _DIRECTORY: str(directory or ""), _MACHINE: _machine() if directory else ""}


def sweep(api: Any) -> None:
    """Remove the containers of runs that died together with their reaper (a killed machine, a power loss).

    Only those that are provably dead: their users' lock is to be seen from here and nobody holds it, or they have
    ended by themselves. A daemon may serve other machines and other users.
    """
    from docker.errors import DockerException

    for each in api.containers(all=True, filters={"label": TOKEN}):
        with suppress(DockerException, OSError):
            if _is_abandoned(each["Labels"]) or _has_long_ended(api, each):
                api.remove_container(each["Id"], v=True, force=True)


def remove(api: Any, token: str) -> None:
    """Remove the container with this token.

    Raises:
        docker.errors.DockerException, OSError: It is not removed.
    """
    from docker.errors import APIError

    for each in api.containers(all=True, filters={"label": f"{TOKEN}={token}"}):
        try:
            api.remove_container(each["Id"], v=True, force=True)
        except APIError as error:
            if error.status_code not in (404, 409):  # gone, or on its way
                raise


def _is_abandoned(found: Mapping[str, str]) -> bool:
    directory = found.get(_DIRECTORY)
    if not directory or found.get(_MACHINE) != _machine():
        return False
    import fcntl

    try:
        lock = os.open(Path(directory) / leftovers.LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True  # nobody removes it as long as somebody holds it
    except OSError:
        return False  # somebody else's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _has_long_ended(api: Any, container: Mapping[str, Any]) -> bool:
    """Whether its server ended a while ago, as all do when the machine restarts: it can be of no use to anybody."""
    if container.get("State") not in ("exited", "dead"):
        return False
    ended = str(api.inspect_container(container["Id"])["State"]["FinishedAt"])
    # Nanoseconds, which fromisoformat does not read.
    return time.time() - datetime.fromisoformat(f"{ended[:19]}+00:00").timestamp() > _LONG_ENDED


def _machine() -> str:
    """What distinguishes the place where our paths mean something: this boot of this kernel, and this view of files.

    The number of a mount namespace is given again only when all that lived in the earlier one is dead.
    """
    if sys.platform != "linux":
        import platform

        return f"{platform.node()} {sys.platform}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    root = Path("/").stat()
    return f"{boot} {os.readlink('/proc/self/ns/mnt')} {root.st_dev}:{root.st_ino}"  # noqa: PTH115 - a name, not a path
