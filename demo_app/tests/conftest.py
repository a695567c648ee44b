"""What a user of pytest-pgleak writes: `pgleak_app`, the application under test. The rest chooses one of the demo's."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from demo_app.schema import create_schema

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

    from pytest_pgleak.live.server import LiveServer
    from pytest_pgleak.live.servers import LiveServers


@pytest.fixture(scope="session")
def visits_dsn(pgleak_dsn: str) -> str:
    """The database of the tests, with the service's table in it."""
    create_schema(pgleak_dsn)
    return pgleak_dsn


@pytest.fixture
def module(request: pytest.FixtureRequest) -> str:
    """The application to test, as a module of `demo_app`; each test is parametrized with it."""
    return str(request.param)


@pytest.fixture
def pgleak_app(visits_dsn: str, module: str) -> FastAPI:
    """The application under test: the one fixture of the plugin that a user overrides."""
    app: FastAPI = importlib.import_module(f"demo_app.{module}").create_app(visits_dsn)
    return app


@pytest.fixture(scope="module")
def pgleak_live_server(pgleak_live: LiveServers, visits_dsn: str, half: str) -> Iterator[LiveServer]:
    """All applications of one half, in one server. DEMO_WORKERS says how many processes serve."""
    workers = int(os.environ.get("DEMO_WORKERS", "1"))
    with pgleak_live(f"demo_app.live:{half}", workers=workers, env={"VISITS_DSN": visits_dsn}) as server:
        yield server


@pytest.fixture
def live_client(pgleak_live_server: LiveServer, module: str) -> Iterator[httpx.Client]:
    """A client on one of them, as it is served there."""
    with pgleak_live_server.client(base_url=f"{pgleak_live_server.url}/{module}") as client:
        yield client
