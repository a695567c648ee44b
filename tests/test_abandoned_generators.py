"""A generator that nobody goes on with: the connection that it holds goes back to its pool when the collector comes."""

from __future__ import annotations

import pytest

TESTS = """
import gc
import pytest
from psycopg_pool import ConnectionPool

pytestmark = pytest.mark.pgleak

@pytest.fixture(scope="module")
def pool(pgleak_dsn):
    with ConnectionPool(pgleak_dsn, min_size=1, max_size=1) as pool:
        yield pool

def rows(pool):
    with pool.connection() as conn:
        conn.execute("select 1")
        yield 1
        yield 2

def test_freed_at_once(pool):
    for row in rows(pool):
        break

def test_in_a_cycle(pool):
    cycle = [rows(pool)]
    cycle.append(cycle)
    next(cycle[0])
    del cycle
    gc.collect()
    assert pool.get_stats()["pool_available"] == 1

@pytest.mark.pgleak(allow=["connection-not-returned"])
def test_in_a_cycle_that_pgleak_collects(pool):
    cycle = [rows(pool)]
    cycle.append(cycle)
    next(cycle[0])

def test_it_is_watched_again(pool, pgleak):
    with pool.connection() as conn:
        assert [each.facts.backend_pid for each in pgleak.connections] == [conn.info.backend_pid]

kept = []

def test_left_out(pool):
    kept.append(pool.getconn())
"""


def test_who_lives_on_is_followed(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makepyfile(TESTS)
    arguments = ("-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}")
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*_ test_in_a_cycle _*",
            "[[]connection-not-returned]*",
            "  taken     test_who_lives_on_is_followed.py:13 in rows",
            "  ended     garbage-collected while checked out; the pool took the connection back only then",
            "  fix       close the generator when nobody goes on with it: *",
            "*_ test_left_out _*",
            "[[]connection-not-returned]*",
            "  ended     it did not: *",
        ]
    )
