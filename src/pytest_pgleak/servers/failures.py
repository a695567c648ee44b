"""What is said of a server of ours that does not start."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pytest_pgleak.servers.values import ServerError

if TYPE_CHECKING:
    from pytest_pgleak.servers.values import Plan

LOG_TAIL = 3000
"""Bytes of a log that are shown."""

_FULL = ("No space left on device", "Disk quota exceeded")
_ROOM = "a directory with 100 MB free in the environment variable PGLEAK_RUN_DIR"
_OTHERS = "Try another server: --pgleak-server=embedded, local or docker, or --pgleak-dsn=postgresql://..."


class NoRoomError(ServerError):
    """The disk is full."""


def not_started(plan: Plan, what: str, log: str) -> ServerError:
    """The error for a server that did not come up.

    Args:
        plan: What was to be started.
        what: What is known of the reason, without the log.
        log: The end of what initdb and postgres wrote.
    """
    told = f"{plan.description} did not start ({what}). The end of its log:\n{log or '(empty)'}\n"
    if any(words in log or words in what for words in _FULL):
        return NoRoomError(f"{told}Name {_ROOM}.")
    if not log:  # they always write something, where they can
        return ServerError(f"{told}If the disk is full, name {_ROOM}. Else:\n{_OTHERS}")
    return ServerError(f"{told}{_OTHERS}")


def python() -> str:
    """The interpreter for the process that watches over a server.

    Raises:
        ServerError: If this Python does not know its own.
    """
    if not sys.executable:
        raise ServerError(
            "This Python does not know its own executable (sys.executable is empty), which is needed to watch over\n"
            "a test server. Use --pgleak-dsn or --pgleak-server=docker."
        )
    return sys.executable
