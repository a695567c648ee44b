"""A database for each test; whoever is still connected at its end is thrown out."""

import os
import uuid

import psycopg
import pytest
from service import Service

ADMIN = os.environ["DATABASE_URL"]


@pytest.fixture
def dsn():
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(ADMIN, autocommit=True) as admin:
        admin.execute(f"create database {name}")
    dsn = ADMIN.replace(ADMIN.partition("?")[0].rpartition("/")[2], name)
    with psycopg.connect(dsn) as conn:
        conn.execute("create table event (id int primary key generated always as identity, name text)")
    yield dsn
    with psycopg.connect(ADMIN, autocommit=True) as admin:
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])
        admin.execute(f"drop database {name} with (force)")


@pytest.fixture
def service(dsn):
    service = Service(dsn)
    service.start()
    yield service
    service.stop()


@pytest.fixture
def unstopped(dsn):
    service = Service(dsn)
    service.start()
    return service


@pytest.fixture
def conn(dsn):
    """Never closed: the database is dropped anyway."""
    return psycopg.connect(dsn)
