from __future__ import annotations

import gc
from contextlib import suppress

import pytest

from pytest_pgleak.servers import Plan, ServerError, ServerRequest, daemon, plan, start

pytestmark = [
    pytest.mark.skipif(not daemon.client_installed(), reason="testcontainers is not installed"),
    pytest.mark.filterwarnings("ignore"),  # testcontainers' own
]


def test_without_a_daemon_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    request = ServerRequest(server="docker")
    with pytest.raises(ServerError, match="no Docker daemon answers"):
        plan(request)

    # It may also stop between the plan and the start.
    with pytest.raises(
        ServerError, match=r"(?s)PostgreSQL in a container did not start: .*Is the Docker daemon running"
    ):
        start(Plan("docker", None, "PostgreSQL in a container", request))

    # The Docker SDK leaves the socket of a failed attempt to the garbage collector: let that be here, where warnings
    # are ignored, and not in somebody else's test.
    gc.collect()


def test_a_container(query):
    chosen = None
    with suppress(ServerError):
        chosen = plan(ServerRequest(server="docker"))
    if chosen is None:
        pytest.skip("no Docker daemon answers")
    server = start(chosen)

    assert server.owned
    assert query(server.dsn, "select current_setting('server_version')").split()[0] == server.version
    server.stop()
    server.stop()


def test_options_are_built_without_a_daemon(monkeypatch):
    from pytest_pgleak.servers import container

    made = []
    monkeypatch.setattr("testcontainers.core.container.DockerClient", lambda **_: None)
    monkeypatch.setattr(
        container._container_class(), "__enter__", lambda self: made.append(self) or self, raising=False
    )

    container._run(Plan("docker", None, "", ServerRequest(docker_image="postgres:17")), "secret")

    [one] = made
    assert one.image == "postgres:17"
    assert one.tmpfs == {"/pgleak": ""}
    assert one.env["PGDATA"] == "/pgleak/data"
    assert one._command.startswith("postgres -c fsync=off")
