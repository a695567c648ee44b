"""One process after the other looks at PgBouncer's idle server connections.

Two at once would hide them from each other, and PgBouncer would open new ones for both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from typing import Final

from pytest_pgleak.clock import Clock

_PAUSE: Final = 0.002
_PAUSES: Final = 250
"""A look takes some milliseconds; whoever is stopped in the middle of one must not stop the others."""


@contextlib.contextmanager
def own_turn() -> Iterator[None]:
    """Wait until no other process of this user looks, but not for ever. On Linux only; elsewhere nobody waits."""
    if sys.platform != "linux":
        yield
        return
    # A name that only one can have: no file, and gone with its process.
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no descriptor is free
            name = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            for _ in range(_PAUSES):
                try:
                    name.bind(f"\0pytest-pgleak-{os.getuid()}-pgbouncer")
                    break
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        break
                Clock.sleep(_PAUSE)
        yield
