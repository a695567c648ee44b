"""Engines that are disposed of, for tests whose leak is another one."""

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from tables import ASYNC, SYNC, url_of

from pytest_pgleak.rendering import failure

pytest_plugins = ["corpus_recorder"]

WIDEST = 210
"""Characters of the longest line that a finding may have here, where paths are short."""


def pytest_pgleak_findings(item, findings):
    """Each finding names a line of these modules, in few words."""
    if item is None:
        return
    for finding in findings:
        where = finding.origin.filename if finding.origin is not None else "nowhere"
        if "test_" not in where:
            item.config.corpus[item.nodeid]["found"].append(f"{finding.kind} from {where}")
        wide = [line.text for line in failure([finding], item.config.rootpath) if len(line.text) > WIDEST]
        if wide:
            item.config.corpus[item.nodeid]["found"].append(f"wide: {wide}")


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
