"""What a user of pytest-pgleak writes: `pgleak_app`, the application under test. The rest chooses one of the demo's."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest

from demo_app.schema import create_schema

if TYPE_CHECKING:
    from fastapi import FastAPI


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
