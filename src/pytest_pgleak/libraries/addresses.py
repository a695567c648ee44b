"""The own end of a connection."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
_MAPPED: Final = "::ffff:"
"""How a socket that speaks IPv6 shows an address of IPv4."""
_PROCESS: Final = "process "


def of_descriptor(descriptor: int) -> tuple[str, int] | None:
    """Return address and port of an open socket; None where it is none.

    A Unix socket has no address of its own: instead of it stands what `of_process` makes of this process.
    """
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None
    try:
        with socket.socket(fileno=copy) as own:
            return of_name(own.getsockname()) if own.family in _INTERNET else _of_unix(own)
    except OSError:
        return None


def of_process(pid: int) -> str:
    """Return what stands for the address of a process that connects over a Unix socket."""
    return f"{_PROCESS}{pid}"


def process_of(host: str) -> int | None:
    """Return the process whose `of_process` it is; None for an address."""
    return int(host.removeprefix(_PROCESS)) if host.startswith(_PROCESS) else None


def _of_unix(own: socket.socket) -> tuple[str, int] | None:
    """Read it where the other end sees this process by the same number: not if it runs in an outer namespace."""
    if not hasattr(socket, "SO_PEERCRED") or own.family != socket.AF_UNIX:
        return None
    pid, _, _ = struct.unpack("3i", own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    peer = own.getpeername()
    name = peer.decode(errors="replace") if isinstance(peer, bytes) else str(peer)
    port = name.rpartition(".s.PGSQL.")[2]
    return (of_process(os.getpid()), int(port)) if pid > 0 and port.isdecimal() else None


def of_name(name: object) -> tuple[str, int] | None:
    """Read what ``getsockname()`` has said; None for a Unix socket."""
    if not isinstance(name, tuple) or len(name) < 2:
        return None
    host = str(name[0])
    return host.removeprefix(_MAPPED) if "." in host else host.partition("%")[0], int(name[1])
