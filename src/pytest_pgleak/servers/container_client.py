"""What we ask of a Docker daemon, through testcontainers' client.

testcontainers finds the daemon, signs in to a registry, and knows how a container is reached from here. Its own
container class is not used: that starts Ryuk, a privileged container with the daemon's socket in it, from an image of
its own, and marks the container as belonging to the process that made it. Ours belongs to all workers of a run, and
`container_reaper` removes it.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_pgleak.servers import container_route, daemon
from pytest_pgleak.servers.values import ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOG_LINES = 30
_LOG_TAIL = 3000  # characters


@dataclass(frozen=True)
class Glance:
    """A look at a container.

    Attributes:
        exit_code: How it ended; None while it runs.
        address: Host and port; None while it has none.
    """

    exit_code: int | None
    address: tuple[str, int] | None


class ContainerClient:
    """A connection to the daemon; the caller closes it.

    Attributes:
        api: Docker's own low-level client.
        environment: The variables with which another process finds the same daemon.
    """

    api: Any
    environment: dict[str, str]

    def __init__(self) -> None:
        """Connect.

        Raises:
            ServerError: testcontainers is not installed, or the daemon does not answer.
        """
        before = dict(os.environ)
        try:
            os.environ.update(daemon.environment())
            # What testcontainers and Docker's library deprecate is not the user's to repair.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._client = _new_client()
            self.environment = dict(os.environ)
        finally:
            # testcontainers, too, sets DOCKER_HOST where it has found the daemon. The tests are not to see that.
            _restore(before)
        self.api = self._client.client.api

    def close(self) -> None:
        """Close the connections."""
        self._client.client.close()

    def obtain(self, image: str) -> str:
        """Pull `image`, unless it is there; return its full name.

        Raises:
            ServerError: It is not to be had.
        """
        from docker.errors import DockerException, ImageNotFound
        from testcontainers.core.config import testcontainers_config

        name = testcontainers_config.hub_image_name_prefix + image
        try:
            try:
                self._client.client.images.get(name)
            except ImageNotFound:
                self._client.client.images.pull(name)
        except (DockerException, OSError) as error:
            raise ServerError(
                f"The image {name} is not there and cannot be pulled:\n{explanation(error)}\n"
                "Name another one in pgleak_docker_image, or see what `docker pull` says."
            ) from None
        return name

    def run(
        self,
        image: str,
        command: list[str],
        *,
        port: int,
        name: str,
        labels: Mapping[str, str],
        environment: Mapping[str, str],
        tmpfs: str,
    ) -> str:
        """Create and start a container whose `port` can be reached from here; return its id.

        Raises:
            docker.errors.DockerException, OSError: It is not started. It may have been created.
        """
        route = self._route
        ports = {port: (route.published_on, None)} if route.published_on else None
        made = self.api.create_container(
            image,
            command,
            name=name,
            labels=dict(labels),
            environment=dict(environment),
            ports=[port],
            host_config=self.api.create_host_config(port_bindings=ports, tmpfs={tmpfs: ""}, network_mode=route.network),
        )
        container = str(made["Id"])
        self.api.start(container)
        return container

    def look(self, container: str, port: int) -> Glance:
        """How the container is, and where `port` of it can be reached."""
        found = self.api.inspect_container(container)
        state = found["State"]
        if state["Status"] not in ("created", "running", "restarting"):
            return Glance(int(state["ExitCode"]), None)
        if self._route.host is None:
            return Glance(None, (str(self._client.bridge_ip(container)), port))
        published = (found["NetworkSettings"]["Ports"] or {}).get(f"{port}/tcp")
        return Glance(None, (self._route.host, int(published[0]["HostPort"])) if published else None)

    def log_tail(self, container: str) -> str:
        """The end of what it wrote."""
        from docker.errors import DockerException

        try:
            text = self.api.logs(container, tail=_LOG_LINES).decode(errors="replace")
        except (DockerException, OSError) as error:
            return f"(it cannot be read: {explanation(error)})"
        return str(text[-_LOG_TAIL:].strip())

    @functools.cached_property
    def _route(self) -> container_route.Route:
        return container_route.find(self._client)


def explanation(error: Exception) -> str:
    """What the daemon said, without the library's wrapping."""
    told = getattr(error, "explanation", None) or str(error) or type(error).__name__
    return re.sub(r"\s+", " ", told.decode(errors="replace") if isinstance(told, bytes) else str(told)).strip()


def _new_client() -> Any:
    try:
        from testcontainers.core.docker_client import DockerClient
    except ImportError as error:
        raise ServerError(
            f'testcontainers cannot be imported: {error}.\nInstall it with: pip install "pytest-pgleak[docker]"'
        ) from None
    try:
        return DockerClient()
    except Exception as error:  # noqa: BLE001 - it may stumble over anything in a configuration of Docker's
        raise ServerError(
            f"The Docker daemon does not answer: {explanation(error)}\n"
            "Is it running, and may this user talk to it (DOCKER_HOST says where it is, if not at the usual socket)?\n"
            "Otherwise use --pgleak-server=embedded or local, or --pgleak-dsn."
        ) from None


def _restore(before: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)
