"""A Docker engine for tests: what is there, and what one test has on it."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

import pytest

from pytest_pgleak.servers import ServerRequest, daemon, plan

IMAGE = os.environ.get("PGLEAK_TEST_IMAGE", "pgleak-test")
DEADLINE = 20.0  # seconds; what is expected takes less than one


@contextmanager
def connected():
    """Docker's own client; a skip with the reason where there is no engine or no image."""
    if not daemon.client_installed() or not daemon.answers():
        pytest.skip(daemon.obstacle())
    import docker

    client = docker.APIClient(**docker.utils.kwargs_from_env(environment=daemon.environment()))
    try:
        if not client.images(IMAGE):
            pytest.skip(f"the image {IMAGE} is not there: tests/docker_image/build {sys.executable} {IMAGE}")
        yield client
    finally:
        client.close()


class Engine:
    """What a test of this directory has on the Docker daemon."""

    def __init__(self, api, run_dir):
        self.api = api
        self.run_dir = run_dir

    def containers(self):
        """The containers whose lock lies in this test's own directory."""
        found = self.api.containers(all=True, filters={"label": "pytest-pgleak"})
        return [each for each in found if each["Labels"]["pytest-pgleak.directory"].startswith(str(self.run_dir.path))]

    def traces(self):
        return [each["Names"] for each in self.containers()] + self.run_dir.traces()

    def plan(self, run_id=None, image=IMAGE):
        return plan(ServerRequest(server="docker", docker_image=image, run_id=run_id))
