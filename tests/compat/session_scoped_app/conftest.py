import os

import psycopg
import pytest
from application import app
from fastapi.testclient import TestClient
from psycopg_pool import ConnectionPool


@pytest.fixture(scope="session")
def client():
    with TestClient(app) as client:
        yield client


@pytest.fixture(scope="session")
def pool():
    with ConnectionPool(os.environ["DATABASE_URL"], min_size=1, max_size=2, open=True) as pool:
        yield pool


@pytest.fixture(scope="session")
def admin():
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
        yield conn


@pytest.fixture(scope="session")
def watcher():
    """Begins a transaction, once, and never ends it: as long as the session it sees the same."""
    conn = psycopg.connect(os.environ["DATABASE_URL"])
    conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    conn.execute("select 1")
    return conn


@pytest.fixture
def conn(pool):
    with pool.connection() as conn, conn.transaction(force_rollback=True):
        yield conn


@pytest.fixture(autouse=True)
def empty(client, admin):
    yield
    admin.execute("delete from ticket")
