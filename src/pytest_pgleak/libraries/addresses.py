"""The own end of a network connection."""

from __future__ import annotations

import os
import socket
from typing import Final

_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
_MAPPED: Final = "::ffff:"
"""How a socket that speaks IPv6 shows an address of IPv4."""


def of_descriptor(descriptor: int) -> tuple[str, int] | None:
    """Return address and port of an open socket; None where it is none, or a Unix socket."""
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None
    try:
        with socket.socket(fileno=copy) as own:
            return of_name(own.getsockname()) if own.family in _INTERNET else None
    except OSError:
        return None


def of_name(name: object) -> tuple[str, int] | None:
    """Read what ``getsockname()`` has said; None for a Unix socket."""
    if not isinstance(name, tuple) or len(name) < 2:
        return None
    host = str(name[0])
    return host.removeprefix(_MAPPED) if "." in host else host.partition("%")[0], int(name[1])
