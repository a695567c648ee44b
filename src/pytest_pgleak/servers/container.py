"""A server in a container: one for each run, its data in memory, gone with the last of its users."""

from __future__ import annotations

import functools
import secrets
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

from pytest_pgleak.servers import cluster, container_labels, libpq
from pytest_pgleak.servers.container_client import ContainerClient, explanation
from pytest_pgleak.servers.container_reaper import Reaper
from pytest_pgleak.servers.values import DEFAULT_IMAGE, Plan, RunningServer, ServerError

if TYPE_CHECKING:
    from pytest_pgleak.servers.rundir import Lease

_DATA = "/pgleak"  # no image declares a volume there, unlike /var/lib/postgresql (18) or .../data (before)
_INITDB = "--encoding=UTF8 --locale=C --no-sync --wal-segsize=1"  # as in `cluster`, as far as 14 to 18 all have it
_PORT = 5432
_READY_TIMEOUT = 60.0  # seconds; usually one
_POLL = 0.02


def start_container(plan: Plan) -> RunningServer:
    """Run the image and wait until it accepts connections, or join what another process of this run has started.

    Raises:
        ServerError: There is no daemon, no such image, or the server does not come up; the message has the end of its
            log.
    """
    libpq.pq()
    start = functools.partial(_start, plan)
    if plan.request.plain:
        return start([])  # no locks: a container for each process, which its reaper removes when that has ended
    from pytest_pgleak.servers import rundir, sharing

    parent = rundir.choose_parent(None)
    if plan.request.run_id is not None:
        return sharing.share(sharing.Place(parent, None, plan.request.run_id), plan, start)
    rundir.sweep(parent, None)
    return start([rundir.create(parent, None)])


def _start(plan: Plan, leases: list[Lease]) -> RunningServer:
    token, password = secrets.token_hex(8), secrets.token_urlsafe(16)
    lease = leases[0] if leases else None
    reaper = None
    try:
        with closing(ContainerClient()) as client:
            image = client.obtain(plan.request.docker_image or DEFAULT_IMAGE)
            # Before there is a container, so that none is ever without it.
            label = f"{container_labels.TOKEN}={token}"
            shared = lease is not None and plan.request.run_id is not None
            reaper = Reaper(lease, label, client.environment, shared=shared)
            container = _run(plan, client, image, token, password, lease)
            dsn, version = _await_ready(plan, client, container, password)
            reaper.check()
    except BaseException:
        if reaper is not None:
            with suppress(ServerError):
                _stop(reaper, token)
        elif lease is not None:
            _give_up(lease)
        raise
    description = f"PostgreSQL {version} {plan.origin}"
    stop = functools.partial(_stop, reaper, token)
    return RunningServer(dsn, version, plan.source, description, owned=True, _stop=stop)


def _give_up(lease: Lease) -> None:
    from pytest_pgleak.servers import rundir

    lease.release()
    rundir.sweep(lease.path.parent, None)


def _run(plan: Plan, client: ContainerClient, image: str, token: str, password: str, lease: Lease | None) -> str:
    from docker.errors import DockerException

    # The entry point of the official image understands these, and so do those of the images that are made from it.
    environment = {
        "POSTGRES_USER": "postgres",
        "POSTGRES_PASSWORD": password,
        "POSTGRES_DB": "postgres",
        "POSTGRES_INITDB_ARGS": _INITDB,
        "PGDATA": f"{_DATA}/data",
    }
    try:
        container_labels.sweep(client.api)
        return client.run(
            image,
            ["postgres", *cluster.container_options()],
            port=_PORT,
            name=f"pytest-pgleak-{token}",
            labels=container_labels.labels(token, lease.path if lease else None),
            environment=environment,
            tmpfs=_DATA,
        )
    except (DockerException, OSError) as error:
        raise ServerError(_failure(plan, explanation(error))) from None


def _await_ready(plan: Plan, client: ContainerClient, container: str, password: str) -> tuple[str, str]:
    """Where the server is, and its version, as soon as it accepts a connection."""
    from docker.errors import DockerException

    deadline = time.monotonic() + _READY_TIMEOUT
    answer = "its port was not published"
    try:
        while time.monotonic() < deadline:
            seen = client.look(container, _PORT)
            if seen.exit_code is not None:
                raise ServerError(_failure(plan, f"exited with {seen.exit_code}", client.log_tail(container)))
            if seen.address is not None:
                dsn = f"postgresql://postgres:{quote(password)}@{seen.address[0]}:{seen.address[1]}/postgres"
                try:
                    with libpq.connected(dsn) as conn:
                        return dsn, libpq.version(conn)
                except ServerError as error:
                    # Until it listens, the daemon's proxy accepts and hangs up.
                    answer = str(error)
            time.sleep(_POLL)
        raise ServerError(
            _failure(plan, f"not ready after {_READY_TIMEOUT:.0f} s: {answer}", client.log_tail(container))
        )
    except (DockerException, OSError) as error:
        raise ServerError(_failure(plan, explanation(error))) from None


def _stop(reaper: Reaper, token: str) -> None:
    if reaper.stop():
        return
    from docker.errors import DockerException

    try:
        with closing(ContainerClient()) as client:
            container_labels.remove(client.api, token)
    except (DockerException, OSError) as error:
        raise ServerError(f"The container of the test server was not removed: {explanation(error)}") from None


def _failure(plan: Plan, what: str, log: str | None = None) -> str:
    told = "." if log is None else f". The end of its log:\n{log or '(empty)'}"
    return (
        f"{plan.description} did not start: {what}{told}\n"
        "Is it an image of PostgreSQL with the official image's entry point (pgleak_docker_image)?\n"
        "Otherwise use --pgleak-server=embedded or local, or --pgleak-dsn."
    )
