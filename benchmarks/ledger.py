"""What it costs the application that its connections are watched."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import runs
from benchmarks.samples import Row, Samples, duration
from pytest_pgleak.servers import ServerRequest, plan, start

_SUITE = """
    import os, time
    import psycopg, psycopg_pool, pytest
    import conftest

    DSN = os.environ["BENCHMARK_DSN"]

    def timed(times, action):
        taken = []
        for _ in range(times):
            started_at = time.perf_counter()
            action()
            taken.append(time.perf_counter() - started_at)
        return taken

    {marker}
    def test_operations():
        conftest.TAKEN["open and close"] = timed(300, lambda: psycopg.connect(DSN).close())
        with psycopg_pool.ConnectionPool(DSN, min_size=1, max_size=1, open=False) as pool:
            pool.wait()
            conftest.TAKEN["check out and return"] = timed(3000, lambda: pool.putconn(pool.getconn()))
"""


def operations() -> Iterator[Row]:
    """Measure opening and closing, and a pool's checkout and return, watched and not."""
    server = start(plan(ServerRequest(server="embedded")))
    environment = {"BENCHMARK_DSN": server.dsn}
    try:
        with (
            runs.suite({**runs.TIMED, "test_it.py": _SUITE.format(marker="@pytest.mark.pgleak")}) as watched,
            runs.suite({**runs.TIMED, "test_it.py": _SUITE.format(marker="")}) as alone,
        ):
            ours, peer = [], []
            for _ in range(9):
                ours.append(runs.run_pytest(watched, *runs.PLUGIN, environment=environment))
                peer.append(runs.run_pytest(alone, environment=environment))
    finally:
        server.stop()
    yield _opening(*(_medians(taken, "open and close") for taken in (ours, peer)))
    yield _checkout(*(_medians(taken, "check out and return") for taken in (ours, peer)))


def _medians(taken: list[dict[str, list[float]]], what: str) -> Samples:
    return Samples(tuple(statistics.median(each[what]) for each in taken))


def _opening(ours: Samples, peer: Samples) -> Row:
    more = ours.median / peer.median - 1
    return Row("open and close a connection", ours, ("not watched", peer), f"{more:+.1%}", "≤ 5 %", more <= 0.05)


def _checkout(ours: Samples, peer: Samples) -> Row:
    more = ours.median - peer.median
    what = "check a connection out of a pool, and return it"
    return Row(what, ours, ("not watched", peer), f"{duration(more)} more", "≤ 30 µs", more <= 30e-6)
