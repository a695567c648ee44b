"""Runs inside an inner pytest: records what the plugin finds, test by test, for the outer suite to compare."""

import json
import os
from pathlib import Path

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "expect(*kinds): what pgleak must find in this test, exactly")
    config.corpus = {}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    for item in items:
        item.config.corpus[item.nodeid] = {
            "expected": sorted(kind for mark in item.iter_markers("expect") for kind in mark.args),
            "found": [],
            "outcome": {},
            "notes": [],
        }


def pytest_pgleak_findings(item, findings):
    if item is not None:
        item.config.corpus[item.nodeid]["found"] += [finding.kind for finding in findings]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.config.corpus[item.nodeid]["outcome"][report.when] = report.outcome
    return report


def pytest_unconfigure(config):
    Path(os.environ["CORPUS_RESULT"]).write_text(json.dumps(config.corpus), encoding="utf-8")


@pytest.fixture(scope="session")
def dsn(request, pgleak_dsn):
    # Through the driver that is tested: psycopg stays the plugin's own affair.
    if "asyncpg" in request.session.items[0].path.name:
        import asyncio

        import asyncpg

        async def create():
            conn = await asyncpg.connect(pgleak_dsn)
            await conn.execute(TABLE)
            await conn.close()

        asyncio.run(create())
    else:
        import psycopg2

        conn = psycopg2.connect(pgleak_dsn)
        conn.autocommit = True
        conn.cursor().execute(TABLE)
        conn.close()
    return pgleak_dsn


TABLE = """create table if not exists item (
    id int primary key generated always as identity, name text check (name <> 'refused'))"""
