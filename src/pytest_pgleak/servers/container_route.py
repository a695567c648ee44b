"""How a container is reached from here: over loopback wherever that is possible."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any

_LOOPBACK = "127.0.0.1"
_NAMES_OF_LOOPBACK = ("localhost", _LOOPBACK, "::1")


@dataclass(frozen=True)
class Route:
    """The way to a container.

    Attributes:
        published_on: The address of the daemon's machine on which the port is published; None if it is not.
        host: What to connect to; None for the container's own address.
        network: The daemon's network that the container joins; None for the usual one.
    """

    published_on: str | None
    host: str | None
    network: str | None = None


def find(client: Any) -> Route:
    """The way to the containers of testcontainers' `client`.

    Raises:
        docker.errors.DockerException, OSError: The daemon does not say.
    """
    from testcontainers.core.config import ConnectionMode

    mode = client.get_connection_mode()
    if mode == ConnectionMode.bridge_ip:
        return Route(None, None, client.find_host_network())
    host = str(client.host()) if mode == ConnectionMode.docker_host else _gateway(client.client.api)
    if host in _NAMES_OF_LOOPBACK or _is_own(host):
        return Route(_LOOPBACK, _LOOPBACK)
    # The daemon is on another machine, or outside of the container that we are in: its loopback is not ours. Who wants
    # to get in needs the password, which is a random one.
    return Route("0.0.0.0", host)  # noqa: S104 - see above


def _gateway(api: Any) -> str:
    """The daemon's machine as its containers, and so we, see it."""
    config = api.inspect_network("bridge")["IPAM"]["Config"][0]
    # Before its first container a daemon may say nothing of the gateway; it takes the first address for it.
    return str(config.get("Gateway") or ipaddress.ip_network(config["Subnet"])[1])


def _is_own(host: str) -> bool:
    """Whether `host` is an address of this machine: then the daemon's loopback is ours, even within a container."""
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True
