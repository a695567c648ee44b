from unittest.mock import AsyncMock, MagicMock

import pytest
from app import app, get_conn
from fastapi.testclient import TestClient


class FakeCursor:
    def __init__(self, rows):
        self._rows = rows

    async def fetchall(self):
        return self._rows


class FakeConnection:
    """Looks as much like a connection as the application needs."""

    closed = False

    async def execute(self, query, parameters=None):
        return FakeCursor([("spoon",)])


@pytest.fixture
def fake_client():
    app.dependency_overrides[get_conn] = FakeConnection
    yield TestClient(app)
    app.dependency_overrides.clear()


@pytest.fixture
def mocked_pools(monkeypatch):
    asyncpg_pool = MagicMock()
    asyncpg_pool.close = AsyncMock()
    asyncpg_pool.acquire.return_value.__aenter__.return_value.fetchval = AsyncMock(return_value=3)
    monkeypatch.setattr("asyncpg.create_pool", AsyncMock(return_value=asyncpg_pool))
    monkeypatch.setattr("app.pool", AsyncMock())
    return asyncpg_pool
