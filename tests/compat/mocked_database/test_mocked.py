from unittest import mock

import app
import psycopg
import psycopg2
import psycopg_pool
import pytest
from fastapi.testclient import TestClient


def test_override(fake_client):
    assert fake_client.get("/names").json() == ["spoon"]


def test_mocked_pools(mocked_pools):
    with TestClient(app.app) as client:
        assert client.get("/total").json() == 3
    mocked_pools.close.assert_awaited_once()


@mock.patch("psycopg.connect")
def test_save(connect):
    app.save("spoon")
    cursor = connect.return_value.cursor.return_value.__enter__.return_value
    cursor.execute.assert_called_once_with("insert into item (name) values (%s)", ["spoon"])


@mock.patch("psycopg.connect", autospec=True)
def test_with_autospec(connect):
    app.save("spoon")
    connect.assert_called_once_with(app.DSN)


def test_forgetful(monkeypatch):
    monkeypatch.setattr(psycopg2, "connect", mock.MagicMock())
    monkeypatch.setattr(app, "ConnectionPool", mock.create_autospec(psycopg_pool.ConnectionPool))
    app.forgetful("spoon")


def test_patched_classes():
    with (
        mock.patch.object(psycopg_pool.AsyncConnectionPool, "open", mock.AsyncMock()) as opened,
        mock.patch.object(psycopg_pool.AsyncConnectionPool, "close", mock.AsyncMock()),
        mock.patch("asyncpg.create_pool", mock.AsyncMock()),
        TestClient(app.app),
    ):
        opened.assert_awaited_once()


def test_mocked_engine(monkeypatch):
    engine = mock.MagicMock()
    engine.connect.return_value.__enter__.return_value.execute.return_value.scalar.return_value = "18"
    monkeypatch.setattr(app, "engine", engine)
    assert app.version() == "18"


def test_spec():
    conn = mock.create_autospec(psycopg.Connection, instance=True)
    conn.execute("select 1")
    conn.close()
    assert isinstance(conn, psycopg.Connection)


async def test_async_spec():
    conn = mock.create_autospec(psycopg.AsyncConnection, instance=True)
    await conn.execute("select 1")
    conn.execute.assert_awaited_once()


def test_nothing_there():
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect("postgresql://shop@127.0.0.1:1/shop", connect_timeout=1)
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect("postgresql://shop@127.0.0.1:1/shop", connect_timeout=1)
