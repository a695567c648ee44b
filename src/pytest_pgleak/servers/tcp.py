"""A port on loopback, for those who cannot use the socket: a random password, and who may come in with it.

The password passes from here to the processes of the run and to nobody else. The server gets what it needs to check it
(a SCRAM verifier, RFC 5802), over its socket: nothing is in a command line, which everybody may read.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import socket
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_pgleak.servers import libpq
from pytest_pgleak.servers.binaries import major

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_pgleak.servers.privilege import OsUser

HOST = "127.0.0.1"

# Many rounds make a guessed password expensive to check. This one cannot be guessed (192 bits), and each connection
# would pay for them: 3.6 ms instead of 1.7.
_ROUNDS = 1
_SCRAM_ITERATIONS_SINCE = 16

_HBA = "pg_hba.conf"
_WHO_MAY_COME_IN = f"""\
local all all trust
local replication all trust
host all all {HOST}/32 scram-sha-256
host replication all {HOST}/32 scram-sha-256
"""


@dataclass(frozen=True)
class Door:
    """How a server is reached over TCP.

    Attributes:
        port: On loopback, free when it was chosen.
        password: The superuser's.
    """

    port: int
    password: str = field(repr=False)
    _held: socket.socket | None = field(default=None, repr=False)

    @property
    def dsn(self) -> str:
        """The superuser's URI."""
        return f"postgresql://postgres:{self.password}@{HOST}:{self.port}/postgres"

    def settings(self, version: str) -> dict[str, str]:
        """The server's settings that differ from those of a server without a port."""
        settings = {"listen_addresses": HOST, "port": str(self.port)}
        if major(version) >= _SCRAM_ITERATIONS_SINCE:
            settings["scram_iterations"] = str(_ROUNDS)  # for the roles that tests make
        return settings

    def let_in(self, run_dir: Path, user: OsUser | None, version: str) -> dict[str, str]:
        """Write who may come in, and how; the settings for that.

        Args:
            run_dir: The server's directory.
            user: Whom the server runs as; None for the current user.
            version: Such as ``18.6``.

        Raises:
            OSError: If it cannot be written.
        """
        path = run_dir / _HBA
        # Never through what the directory's new owner may have put in its place.
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(file, "w", encoding="ascii") as hba:
            hba.write(_WHO_MAY_COME_IN)
            if user is not None:
                os.fchown(file, user.uid, user.gid)
        return {**self.settings(version), "hba_file": str(path)}

    def set_password(self, socket_dsn: str) -> None:
        """Give the superuser its password, over the server's socket.

        Raises:
            ServerError: If the server refuses.
        """
        with libpq.connected(socket_dsn) as conn:
            libpq.execute(conn, f"ALTER ROLE postgres PASSWORD '{verifier(self.password)}'")

    def release_port(self) -> None:
        """Let go of the port: the server has it, or does not come."""
        if self._held is not None:
            self._held.close()


def choose_door() -> Door:
    """Choose a port that is free, and a password."""
    # Linux lets the server listen there while we hold it, as both have SO_REUSEADDR, and gives it to nobody else.
    # Elsewhere there is a moment in which somebody may take it; then the server does not start.
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if sys.platform == "linux":
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((HOST, 0))
    port = held.getsockname()[1]
    if sys.platform != "linux":
        held.close()
    return Door(port, secrets.token_urlsafe(24), held)


def verifier(password: str, salt: bytes | None = None, rounds: int = _ROUNDS) -> str:
    """What the server keeps of a password of ASCII characters.

    The format is that of ``pg_authid.rolpassword``
    (https://www.postgresql.org/docs/current/catalog-pg-authid.html).

    Args:
        password: The password.
        salt: Random if None.
        rounds: Of the key derivation.
    """
    salt = secrets.token_bytes(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, rounds)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${rounds}:{salt64}${stored64}:{server64}"
