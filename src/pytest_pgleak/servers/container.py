"""A server in a container, through testcontainers."""

from __future__ import annotations

import importlib
import secrets
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pytest_pgleak.servers import daemon, libpq
from pytest_pgleak.servers.values import DEFAULT_IMAGE, Plan, RunningServer, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

# It moved in testcontainers 4.15; the old path warns.
_MODULES = ("testcontainers.community.postgres", "testcontainers.postgres")

_DATA = "/pgleak"  # no image declares a volume there, unlike /var/lib/postgresql (18) or .../data (before)
_COMMAND = (
    "postgres -c fsync=off -c full_page_writes=off -c synchronous_commit=off -c autovacuum=off -c jit=off"
    " -c max_connections=200 -c max_prepared_transactions=20 -c wal_level=logical -c max_wal_size=128MB"
)
_PORT = 5432
_READY_TIMEOUT = 30.0  # seconds, after testcontainers has already seen the server answer inside
_POLL = 0.02


def start_container(plan: Plan) -> RunningServer:
    """Run the image, data in memory, and wait until it accepts connections.

    Should this process be killed, testcontainers' own reaper (Ryuk) removes the container.

    Raises:
        ServerError: If testcontainers or the daemon fails.
    """
    libpq.pq()
    password = secrets.token_urlsafe(16)
    container = _run(plan, password)
    stop = _stopper(container)
    try:
        dsn = f"postgresql://postgres:{quote(password)}@{_host(container)}:{container.get_exposed_port(_PORT)}/postgres"
        version = _await_ready(dsn)
    except Exception as error:
        stop()
        if isinstance(error, ServerError):
            raise
        raise ServerError(_failure(plan, error)) from error
    except BaseException:
        stop()
        raise
    return RunningServer(dsn, version, "docker", f"PostgreSQL {version} {plan.origin}", owned=True, _stop=stop)


def _run(plan: Plan, password: str) -> Any:
    make = _container_class()
    image = plan.request.docker_image or DEFAULT_IMAGE
    try:
        container = make(image, username="postgres", password=password, dbname="postgres", driver=None)
        container.with_env("PGDATA", f"{_DATA}/data").with_command(_COMMAND)
        if hasattr(container, "with_tmpfs_mount"):
            container.with_tmpfs_mount(_DATA)
        # As a context manager it removes a container that did not come up.
        return container.__enter__()
    except Exception as error:
        raise ServerError(_failure(plan, error)) from error


def _container_class() -> Any:
    for name in _MODULES:
        try:
            return importlib.import_module(name).PostgresContainer
        except ImportError:
            continue
    raise ServerError('testcontainers cannot be imported.\nInstall it with: pip install "pytest-pgleak[docker]"')


def _host(container: Any) -> str:
    """Where the published port is.

    On a local daemon that is loopback, which testcontainers uses only if TESTCONTAINERS_HOST_OVERRIDE says so; setting
    that variable here would reach the containers that the user's own tests start.
    """
    return "127.0.0.1" if daemon.is_local() else str(container.get_container_host_ip())


def _await_ready(dsn: str) -> str:
    deadline = time.monotonic() + _READY_TIMEOUT
    while True:
        try:
            with libpq.connected(dsn) as conn:
                return libpq.version(conn)
        except ServerError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL)


def _stopper(container: Any) -> Callable[[], None]:
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if stopped:
            return
        stopped = True
        try:
            container.stop()
        except Exception as error:
            raise ServerError(f"The container of the test server could not be removed: {error}") from error

    return stop


def _failure(plan: Plan, error: Exception) -> str:
    return (
        f"{plan.description} did not start: {type(error).__name__}: {error}\n"
        "Is the Docker daemon running, may this user talk to it, and does the image (pgleak_docker_image) exist?\n"
        "Otherwise use --pgleak-server=embedded or local, or --pgleak-dsn."
    )
