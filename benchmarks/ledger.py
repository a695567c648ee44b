"""What it costs the application that its connections are watched."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from benchmarks import runs
from benchmarks.samples import Row, Samples, duration, more_by_pairs
from pytest_pgleak.servers import ServerRequest, plan, start

_ROUNDS = 20
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
        conftest.TAKEN["open and close"] = timed(200, lambda: psycopg.connect(DSN).close())
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
            for _ in range(_ROUNDS):
                ours.append(runs.run_pytest(watched, *runs.PLUGIN, environment=environment))
                peer.append(runs.run_pytest(alone, environment=environment))
    finally:
        server.stop()
    opening, checkout = (
        {"ours": _medians(ours, what), "peer": _medians(peer, what)}
        for what in ("open and close", "check out and return")
    )
    yield _opening(opening)
    yield _checkout(checkout)


def _medians(taken: list[dict[str, list[float]]], what: str) -> Samples:
    return Samples(tuple(statistics.median(each[what]) for each in taken))


def _opening(measured: Mapping[str, Samples]) -> Row:
    more = more_by_pairs(measured, "ours", "peer") / measured["peer"].median
    peer = ("not watched", measured["peer"])
    return Row("open and close a connection", measured["ours"], peer, f"{more:+.1%}", "≤ 5 %", more <= 0.05)


def _checkout(measured: Mapping[str, Samples]) -> Row:
    more = more_by_pairs(measured, "ours", "peer")
    peer = ("not watched", measured["peer"])
    what = "check a connection out of a pool, and return it"
    return Row(what, measured["ours"], peer, f"{duration(more)} more", "≤ 30 µs", more <= 30e-6)
