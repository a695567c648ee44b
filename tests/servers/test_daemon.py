"""Where the Docker daemon is, what is said if it is nowhere, and how its containers are reached."""

from __future__ import annotations

import gc
import json
import os
import socket
import tempfile
from hashlib import sha256
from types import SimpleNamespace

import pytest

from pytest_pgleak.servers import Plan, ServerError, ServerRequest, daemon, plan, start

needs_client = pytest.mark.skipif(not daemon.client_installed(), reason="testcontainers is not installed")


@pytest.mark.parametrize("how", ["context", "socket of a rootless daemon"])
def test_a_daemon_that_is_elsewhere(how, engine, monkeypatch, tmp_path):
    from pytest_pgleak.servers.container_client import ContainerClient

    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not address.startswith("unix://"):
        pytest.skip("needs the daemon's socket")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    if how == "context":
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        (tmp_path / "config.json").write_text('{"currentContext": "mine"}')
        meta = tmp_path / "contexts" / "meta" / sha256(b"mine").hexdigest()
        meta.mkdir(parents=True)
        (meta / "meta.json").write_text(
            json.dumps({"Name": "mine", "Metadata": {}, "Endpoints": {"docker": {"Host": address}}})
        )
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        (tmp_path / "docker.sock").symlink_to(address.removeprefix("unix://"))
    before = dict(os.environ)
    engine.plan()
    client = ContainerClient()
    try:
        assert client.api.ping()
    finally:
        client.close()
    assert dict(os.environ) == before


@needs_client
@pytest.mark.filterwarnings("ignore")
def test_without_a_daemon_the_error_says_so(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/none.sock")
    request = ServerRequest(server="docker")
    with pytest.raises(ServerError, match=r"no Docker daemon answers at unix://.*/none.sock \(no such file"):
        plan(request)

    # It may also stop between the plan and the start.
    with pytest.raises(ServerError, match=r"(?s)The Docker daemon does not answer: .*DOCKER_HOST"):
        start(Plan("docker", None, "PostgreSQL in a container", request))
    # Docker's library leaves the socket of a failed attempt to the garbage collector: let that be here, where warnings
    # are ignored, and not in somebody else's test.
    gc.collect()


@needs_client
def test_a_daemon_that_says_nothing(monkeypatch):
    monkeypatch.setattr(daemon, "_KNOCK_TIMEOUT", 0.2)
    # A socket's path has about 100 characters, and pytest's own directory may have more.
    with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{short}/silent.sock")
        silent.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{short}/silent.sock")
        with pytest.raises(ServerError, match=r"silent.sock \(timed out\)"):
            plan(ServerRequest(server="docker"))


@needs_client
@pytest.mark.parametrize(
    ("host", "way"), [("localhost", ("127.0.0.1", "127.0.0.1")), ("192.0.2.1", ("0.0.0.0", "192.0.2.1"))]
)
def test_only_a_daemon_elsewhere_publishes_beyond_loopback(host, way):
    from testcontainers.core.config import ConnectionMode

    from pytest_pgleak.servers import container_route

    client = SimpleNamespace(get_connection_mode=lambda: ConnectionMode.docker_host, host=lambda: host)
    assert container_route.find(client) == container_route.Route(*way)
