"""The values that pass between the plugin and its servers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOURCES = ("auto", "dsn", "embedded", "local", "docker")
"""What ``--pgleak-server`` accepts."""

DEFAULT_IMAGE = "postgres:18"
"""The container image when the user names none."""


class ServerError(Exception):
    """There is no server, or it did not do what was asked.

    The message is complete: what went wrong, which option it came from, what to do. It never contains a password.
    """


@dataclass(frozen=True)
class ServerRequest:
    """What the user configured.

    Attributes:
        server: One of `SOURCES`.
        dsn: A libpq connection string or URI, already resolved from the command line, the ini file or the environment.
        bindir: The directory that holds ``postgres`` and ``initdb``.
        docker_image: The image to run, `DEFAULT_IMAGE` if None.
        dsn_option: Where `dsn` came from, for messages.
        run_id: Shared by the processes that are to use one server together; None for a server of one's own.
        tcp: Whether a server of ours also listens on loopback; the DSN is then that of the port.
        plain: Whether a server of ours is started without a supervisor, sharing and a template. Always with a port.
    """

    server: str = "auto"
    # Not in the repr: it may hold a password, and pytest prints the repr of what an assertion compares.
    dsn: str | None = field(default=None, repr=False)
    bindir: str | None = None
    docker_image: str | None = None
    dsn_option: str = "--pgleak-dsn"
    run_id: str | None = None
    tcp: bool = False
    plain: bool = os.name != "posix"


@dataclass(frozen=True)
class Plan:
    """The server that was chosen; nothing has been started.

    Attributes:
        source: ``dsn``, ``embedded``, ``local`` or ``docker``.
        version: Such as ``18.6``, where it can be known without a running server.
        description: One line for people, without any password.
        request: What the choice was made from.
        bindir: Where the binaries are (``embedded`` and ``local``).
        origin: The second half of the description, after the version.
    """

    source: str
    version: str | None
    description: str
    request: ServerRequest = field(repr=False)
    bindir: Path | None = None
    origin: str = field(default="", repr=False)


@dataclass(frozen=True)
class RunningServer:
    """A server that accepts connections.

    Attributes:
        dsn: A URI or connection string to a maintenance database, as a superuser where the server is owned.
        version: What the server says of itself, such as ``18.6``.
        source: As in `Plan`.
        description: As in `Plan`, with the server's own version.
        owned: Whether the plugin started it: its backends may be terminated and its databases dropped.
    """

    dsn: str = field(repr=False)
    version: str
    source: str
    description: str
    owned: bool
    _stop: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def stop(self) -> None:
        """Stop an owned server and remove all that it left; do nothing for any other, or the second time.

        Raises:
            ServerError: If the server is still running after ten seconds.
        """
        if self._stop is not None:
            self._stop()
