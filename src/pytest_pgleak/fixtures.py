"""The fixtures. Ordinary synchronous ones, so that they work alike under every async plugin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx
    from starlette.testclient import TestClient

    from pytest_pgleak.leak_tracker import LeakTracker
    from pytest_pgleak.live.server import LiveServer
    from pytest_pgleak.live.servers import LiveServers
    from pytest_pgleak.postgres import Postgres


@pytest.fixture(scope="session")
def pgleak_postgres(request: pytest.FixtureRequest) -> Postgres:
    """A PostgreSQL server, with ``.dsn``, ``.version`` and ``.source``; started when a test first needs it."""
    from pytest_pgleak.plugin import get_state
    from pytest_pgleak.postgres import obtain_server

    return obtain_server(get_state(request.config))


@pytest.fixture(scope="session")
def pgleak_dsn(pgleak_postgres: Postgres, request: pytest.FixtureRequest) -> str:
    """The DSN of a database of this worker's own."""
    from pytest_pgleak.plugin import get_state
    from pytest_pgleak.postgres import worker_database

    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return worker_database(get_state(request.config), pgleak_postgres, worker)


@pytest.fixture
def pgleak_fresh_dsn(pgleak_postgres: Postgres, pgleak_dsn: str, request: pytest.FixtureRequest) -> str:
    """The DSN of a database of this test's own, cloned from the worker's, dropped after the checks."""
    from pytest_pgleak.fresh_databases import fresh_database
    from pytest_pgleak.plugin import get_state

    return fresh_database(get_state(request.config), pgleak_postgres, pgleak_dsn)


@pytest.fixture
def pgleak_app() -> Any:
    """Your ASGI application: override this fixture."""
    from pytest_pgleak.clients import NO_APPLICATION

    pytest.fail(NO_APPLICATION, pytrace=False)


@pytest.fixture
def pgleak_client(pgleak_app: Any, request: pytest.FixtureRequest) -> Iterator[httpx.AsyncClient]:
    """An ``httpx.AsyncClient`` on ``pgleak_app``, in process, the lifespan run in the test's own event loop."""
    from pytest_pgleak.clients import async_client
    from pytest_pgleak.plugin import get_state

    state = get_state(request.config)
    with async_client(request, pgleak_app, state.asgi, state.late_apps.append) as client:
        yield client


@pytest.fixture
def pgleak_sync_client(pgleak_app: Any, request: pytest.FixtureRequest) -> Iterator[TestClient]:
    """Starlette's ``TestClient`` on ``pgleak_app``, the lifespan run."""
    from pytest_pgleak.clients import sync_client
    from pytest_pgleak.plugin import get_state

    with sync_client(pgleak_app, get_state(request.config).asgi) as client:
        yield client


@pytest.fixture(scope="session")
def pgleak_live(request: pytest.FixtureRequest) -> LiveServers:
    """What starts your application as a real server, in a block: call it, as ``pgleak_live("app.main:app")``."""
    from pytest_pgleak.live.servers import live_servers
    from pytest_pgleak.plugin import get_state

    return live_servers(get_state(request.config), request)


@pytest.fixture(scope="session")
def pgleak_live_server(pgleak_live: LiveServers) -> Iterator[LiveServer]:
    """The server that ``pgleak_live_command`` starts, with ``.client()`` and ``.async_client()``.

    Override it to start it yourself, in a scope of your own.
    """
    with pgleak_live() as server:
        yield server


@pytest.fixture
def pgleak(request: pytest.FixtureRequest) -> LeakTracker:
    """The ledger: ``pgleak.connections``, ``pgleak.findings()``, ``with pgleak.no_leaks():``."""
    from pytest_pgleak.leak_tracker import LeakTracker
    from pytest_pgleak.plugin import get_state

    return LeakTracker(get_state(request.config), request.node)
