import asyncio
import contextlib
import os

import psycopg
import pytest
import pytest_asyncio
from jobs import work_forever
from psycopg_pool import AsyncConnectionPool


@pytest.fixture(scope="session")
def dsn():
    return os.environ["DATABASE_URL"]


@pytest_asyncio.fixture(scope="session")
async def pool(dsn):
    async with AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False, timeout=5) as pool:
        async with pool.connection() as conn:
            await conn.execute("create table job (id int primary key generated always as identity, name text)")
        yield pool


@pytest.fixture(scope="session")
async def conn(pool, dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        yield conn


@pytest.fixture
async def isolated(conn):
    async with conn.transaction(force_rollback=True):
        yield conn


@pytest.fixture(autouse=True)
async def no_jobs(pool):
    yield
    async with pool.connection() as conn:
        await conn.execute("delete from job")


@pytest.fixture(scope="module")
async def worker(pool):
    task = asyncio.create_task(work_forever(pool))
    yield task
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture(scope="module")
async def forgotten(dsn):
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True)
