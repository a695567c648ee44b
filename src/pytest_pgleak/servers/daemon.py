"""Whether a container could be started: is testcontainers installed, does a Docker daemon answer?"""

from __future__ import annotations

import http.client
import importlib.util
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

_KNOCK_TIMEOUT = 1.0  # seconds; a local daemon answers within a few milliseconds


def client_installed() -> bool:
    """Whether testcontainers can be imported."""
    return importlib.util.find_spec("testcontainers") is not None


def answers() -> bool:
    """Whether the daemon answers a ping, at DOCKER_HOST or at one of the usual sockets."""
    if os.name != "posix":
        return True  # a named pipe, which is left to testcontainers
    return any(_pings(address) for address in _addresses())


def obstacle() -> str:
    """Why no container can be started, as the middle of a sentence."""
    if not client_installed():
        return "testcontainers is not installed"
    return f"no Docker daemon answers at {' or '.join(_addresses())}"


def is_local() -> bool:
    """Whether the daemon publishes its ports on this machine's loopback interface."""
    local = os.environ.get("DOCKER_HOST", "unix://").startswith(("unix://", "npipe://"))
    # Within a container, loopback is that container's own.
    return local and not Path("/.dockerenv").exists()


def _addresses() -> list[str]:
    if host := os.environ.get("DOCKER_HOST"):
        return [host]
    sockets = [Path("/var/run/docker.sock"), Path.home() / ".docker/run/docker.sock"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        sockets.append(Path(runtime) / "docker.sock")  # rootless
    return [f"unix://{path}" for path in sockets]


def _pings(address: str) -> bool:
    parts = urlsplit(address)
    if parts.scheme == "ssh":
        return True  # only the client itself can find out
    try:
        if parts.scheme == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(_KNOCK_TIMEOUT)
            with sock:
                sock.connect(parts.path)
                return _ping(sock)
        # TLS is not spoken here: that a port accepts has to do.
        with socket.create_connection((parts.hostname or "", parts.port or 2375), _KNOCK_TIMEOUT):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _ping(sock: socket.socket) -> bool:
    sock.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
    # Closed explicitly: it holds the socket through a file of its own.
    with http.client.HTTPResponse(sock) as response:
        response.begin()
        return response.status == http.HTTPStatus.OK
