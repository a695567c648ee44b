import os

import psycopg
import pytest
from app import app
from fastapi.testclient import TestClient


@pytest.fixture(scope="module", autouse=True)
def table():
    with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
        conn.execute("create table if not exists word (word text primary key)")


@pytest.fixture(autouse=True)
def empty():
    yield
    with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
        conn.execute("delete from word")


@pytest.fixture
def client():
    return TestClient(app)


@pytest.fixture
def forgiving_client():
    return TestClient(app, raise_server_exceptions=False)
