import pytest
import pytest_asyncio
from httpx import ASGITransport, AsyncClient
from notes.database import Base, Database, Note
from notes.main import app, get_session
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import NullPool


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def async_engine():
    database = Database(poolclass=NullPool)
    async with database.engine.begin() as conn:
        await conn.run_sync(Base.metadata.create_all)
    yield database.engine
    await database.close()


@pytest.fixture
async def session(async_engine):
    async with async_engine.connect() as conn:
        transaction = await conn.begin()
        async with AsyncSession(bind=conn, join_transaction_mode="create_savepoint", expire_on_commit=False) as session:
            yield session
        await transaction.rollback()


@pytest.fixture
async def client(session):
    app.dependency_overrides[get_session] = lambda: session
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        yield client
    app.dependency_overrides.clear()


@pytest.fixture
async def real_client(async_engine):
    async with app.router.lifespan_context(app):
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            yield client
    async with AsyncSession(async_engine) as session:
        await session.execute(delete(Note))
        await session.commit()


@pytest.fixture
async def undisposed(async_engine):
    return Database()
