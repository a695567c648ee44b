"""Whether a container could be started: is testcontainers installed, does a Docker daemon answer?"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import json
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

_KNOCK_TIMEOUT = 3.0  # seconds; a local daemon answers within a few milliseconds, unless the machine is busy
_DEFAULT_SOCKET = "/var/run/docker.sock"


def client_installed() -> bool:
    """Whether testcontainers can be imported."""
    return importlib.util.find_spec("testcontainers") is not None


def answers() -> bool:
    """Whether the daemon answers a ping, at DOCKER_HOST, where docker's context is, or at one of the usual sockets."""
    if os.name != "posix":
        return True  # a named pipe, which is left to testcontainers
    return any(_trouble(address) is None for address in _addresses())


def obstacle() -> str:
    """Why no container can be started, as the middle of a sentence."""
    if not client_installed():
        return "testcontainers is not installed"
    troubles = [f"{address} ({_trouble(address) or 'it does now'})" for address in _addresses()]
    return f"no Docker daemon answers at {' or '.join(troubles)}"


def environment() -> dict[str, str]:
    """The environment in which Docker's own library finds the daemon that `answers`.

    It knows DOCKER_HOST, the context and one socket; what listens at one of the others has to be named.
    """
    found = dict(os.environ)
    if os.name == "posix" and not _configured() and _trouble(f"unix://{_DEFAULT_SOCKET}") is not None:
        for address in _addresses():
            if _trouble(address) is None:
                return {**found, "DOCKER_HOST": address}
    return found


def _addresses() -> list[str]:
    if configured := _configured():
        return [configured]
    sockets = [Path(_DEFAULT_SOCKET), Path.home() / ".docker/run/docker.sock"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        sockets.append(Path(runtime) / "docker.sock")  # rootless
    return [f"unix://{path}" for path in sockets]


def _configured() -> str | None:
    return os.environ.get("DOCKER_HOST") or _of_context()


def _of_context() -> str | None:
    """Where the context of ``docker context use`` leads, as for Colima and for rootless daemons."""
    directory = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        name = os.environ.get("DOCKER_CONTEXT") or config.get("currentContext") or "default"
        meta = directory / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
        return str(json.loads(meta.read_text(encoding="utf-8"))["Endpoints"]["docker"]["Host"]) or None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _trouble(address: str) -> str | None:
    """Why nobody answers at `address`, in a few words; None if somebody does."""
    try:
        parts = urlsplit(address)
        if parts.scheme == "ssh":
            return None  # only the client itself can find out
        if parts.scheme == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(_KNOCK_TIMEOUT)
            with sock:
                sock.connect(parts.path)
                return _ping(sock)
        # TLS is not spoken here: that a port accepts has to do.
        with socket.create_connection((parts.hostname or "", parts.port or 2375), _KNOCK_TIMEOUT):
            return None
    except OSError as error:
        return (error.strerror or str(error) or type(error).__name__).lower()
    except (ValueError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


def _ping(sock: socket.socket) -> str | None:
    sock.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
    # Closed explicitly: it holds the socket through a file of its own.
    with http.client.HTTPResponse(sock) as response:
        response.begin()
        return None if response.status == http.HTTPStatus.OK else f"it says {response.status} {response.reason}"
