import os

import asyncpg
import pytest
from app import SCHEMA, app
from httpx import ASGITransport, AsyncClient


@pytest.fixture
async def conn():
    conn = await asyncpg.connect(os.environ["DATABASE_URL"])
    await conn.execute(SCHEMA)
    transaction = conn.transaction()
    await transaction.start()
    yield conn
    await transaction.rollback()
    await conn.close()


@pytest.fixture
async def client():
    admin = await asyncpg.connect(os.environ["DATABASE_URL"])
    await admin.execute(SCHEMA)
    async with app.router.lifespan_context(app):
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            yield client
    await admin.execute("truncate account")
    await admin.close()


@pytest.fixture
async def pool():
    pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=2, max_size=3)
    yield pool
    await pool.close()
