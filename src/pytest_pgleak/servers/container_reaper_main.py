"""The process that removes a container when nobody needs it any more. It runs as a script; nothing imports it.

    python -I -S container_reaper_main.py ARGUMENTS

ARGUMENTS is JSON: ``sys_path``, for Docker's library; ``label``, which the container has or is going to have; and
``directory``, whose ``alive.lock`` the users hold. It gets that lock when the last of them has let go of it or died.
Without a directory (Windows) it waits for a line or the end of its standard input instead. On its standard output it
reports ``watching``, and at the end ``removed`` or ``failed`` with a reason.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from typing import Any

_PATIENCE = 20.0  # seconds, for a daemon that does not answer or does not get done
_LATECOMER = 3.0  # seconds in which a container that its killed maker had asked for may still appear
_POLL = 0.05


def main(arguments: dict[str, Any]) -> None:
    """Wait, remove the container, then the directory."""
    # A Ctrl-C is for pytest; whoever ends everything ends pytest, too, and that is what is waited for.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.path[:] = arguments["sys_path"]
    import docker  # now, for the environment may be gone when it is needed

    client = docker.from_env(use_ssh_client=os.environ.get("DOCKER_HOST", "").startswith("ssh://"))
    _report("watching")
    lock = _await_owners(arguments["directory"])
    failure = _remove(client.api, arguments["label"])
    client.close()
    if failure is None and lock is not None:
        # Under the exclusive lock: nobody else takes it for a leftover meanwhile, and nobody joins.
        shutil.rmtree(arguments["directory"], ignore_errors=True)
    _report("removed" if failure is None else f"failed {failure}")


def _await_owners(directory: str) -> int | None:
    if not directory:
        sys.stdin.buffer.readline()
        return None
    import fcntl

    try:
        lock = os.open(os.path.join(directory, "alive.lock"), os.O_RDWR)  # noqa: PTH118 - pathlib is another import
    except FileNotFoundError:
        return None  # somebody else has found the owners dead already
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _remove(api: Any, label: str) -> str | None:
    """Remove what has the label, until there is nothing; return why that did not come about."""
    import docker.errors

    began = time.monotonic()
    seen = False
    failure = "it is still there"
    while (elapsed := time.monotonic() - began) < _PATIENCE:
        try:
            found = api.containers(all=True, quiet=True, filters={"label": label})
            if not found and (seen or elapsed > _LATECOMER):
                return None
            for each in found:
                seen = True
                _remove_one(api, each["Id"])
        except (docker.errors.DockerException, OSError) as error:
            failure = f"{type(error).__name__}: {error}"
        time.sleep(_POLL)
    return failure


def _remove_one(api: Any, container: str) -> None:
    import docker.errors

    try:
        api.remove_container(container, v=True, force=True)
    except docker.errors.APIError as error:
        if error.status_code not in (404, 409):  # gone, or on its way
            raise


def _report(line: str) -> None:
    try:  # noqa: SIM105 - contextlib is another import
        os.write(1, f"{' '.join(line.split())}\n".encode())
    except OSError:
        pass  # nobody is left to read it


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
