"""Engines that are disposed of, for tests whose leak is another one."""

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from tables import ASYNC, SYNC, url_of

pytest_plugins = ["corpus_recorder"]


@pytest.fixture(scope="session", autouse=True)
def _entry(dsn):
    with psycopg.connect(dsn) as conn:
        conn.execute("create table entry (id int primary key generated always as identity, name text not null)")


@pytest.fixture(params=SYNC)
def url(dsn, request):
    return url_of(dsn, request.param)


@pytest.fixture
def engine(url):
    engine = create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture(params=ASYNC)
def async_url(dsn, request):
    return url_of(dsn, request.param)


@pytest_asyncio.fixture
async def async_engine(async_url):
    engine = create_async_engine(async_url)
    yield engine
    await engine.dispose()
