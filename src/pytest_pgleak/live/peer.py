"""The client's end of a websocket, as the kernel knows it: whether it is still there.

An endpoint that does not receive is told nothing when its client goes; nor would it be right to receive in its place.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any, Final

from pytest_pgleak.clock import Clock

_TABLE: Final = Path("/proc/self/net/tcp")
_ESTABLISHED: Final = "01"
"""Of the states in ``/proc/net/tcp``: neither end has closed."""
_INTERVAL: Final = 0.02
"""Seconds between two looks."""


class Peer:
    """Tells whether a client is connected, as far as that can be known.

    Args:
        address: Its address, as ASGI has it.
    """

    def __init__(self, address: Any) -> None:
        self._entry = _entry(address)
        self._looked_at = 0.0
        # Behind a proxy it is somebody else's address. Elsewhere than on Linux there is no such table.
        self._is_known = self._entry is not None and self._is_there()
        self._has_gone = False

    def __call__(self) -> bool:
        """Tell whether it is connected; True where that is not known."""
        if self._is_known and not self._has_gone and Clock.monotonic() - self._looked_at > _INTERVAL:
            self._looked_at = Clock.monotonic()
            self._has_gone = not self._is_there()
        return not self._has_gone

    def _is_there(self) -> bool:
        try:
            rows = _TABLE.read_text().splitlines()[1:]
        except OSError:
            return False
        # local address, remote address, state
        return any(row.split()[2:4] == [self._entry, _ESTABLISHED] for row in rows)


def _entry(address: Any) -> str | None:
    """Write an IPv4 address as the kernel does, in the machine's own order of bytes; None for anything else."""
    try:
        host, port = address
        number = int.from_bytes(socket.inet_aton(host), sys.byteorder)
    except (OSError, TypeError, ValueError):
        return None
    return f"{number:08X}:{port:04X}"
