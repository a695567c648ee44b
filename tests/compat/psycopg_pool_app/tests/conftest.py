import os

import psycopg
import pytest
from fastapi.testclient import TestClient
from shop.db import SCHEMA
from shop.main import app


@pytest.fixture(scope="session")
def database():
    with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
        conn.execute(SCHEMA)


@pytest.fixture
def client(database):
    with TestClient(app) as client:
        yield client


@pytest.fixture(autouse=True)
def empty_tables(database):
    yield
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
        conn.execute("set lock_timeout = '5s'")
        conn.execute("truncate item, audit")


@pytest.fixture
def admin(database):
    return psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)


@pytest.fixture
def reader(database):
    conn = psycopg.connect(os.environ["DATABASE_URL"])
    yield conn
    conn.close()
