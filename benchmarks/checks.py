"""What a check costs its test."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import runs
from benchmarks.samples import Row, Samples, alternating, differences, duration, more_by_pairs

_TESTS = 1000
_ROUNDS = 5

_BLOCK = 100
_IN_BLOCKS = f"""
    def pytest_collection_modifyitems(items):
        # Whatever else the machine does meets all of them. In blocks, for a test that is not checked makes the next
        # one look twice.
        items.sort(key=lambda item: (item.callspec.params["number"] // {_BLOCK}, item.originalname))
"""
_SUITE = """
    import time
    import psycopg, pytest

    NUMBERS = range({tests})

    @pytest.fixture(scope="session")
    def conn(pgleak_dsn):
        with psycopg.connect(pgleak_dsn, autocommit=True) as conn:
            conn.pgconn.prepare(b"one", b"select 1")
            yield conn

    {tests_of_each}
"""
_TEST = """
    @pytest.mark.parametrize("number", NUMBERS){marker}
    def {name}({fixture}, number):
        {body}
"""
_ROUND_TRIP = """
    @pytest.mark.parametrize("number", [0])
    def test_zz_round_trips(conn, number):
        pgconn = conn.pgconn
        taken = []
        for _ in range(2000):
            started_at = time.perf_counter()
            pgconn.exec_prepared(b"one", [])
            pgconn.exec_prepared(b"one", [])
            taken.append(time.perf_counter() - started_at)
        import conftest
        conftest.TAKEN["two_round_trips"] = taken
"""
_BODIES = {
    "connection": ("pgleak_dsn", "with psycopg.connect(pgleak_dsn) as conn: conn.execute('select 1')"),
    "query": ("conn", "conn.execute('select 1')"),
    "nothing": ("conn", "pass"),
    "trips": ("conn", "conn.pgconn.exec_prepared(b'one', []), conn.pgconn.exec_prepared(b'one', [])"),
}


def _suite() -> str:
    tests = []
    for name, (fixture, body) in _BODIES.items():
        for marker in ("",) if name == "trips" else ("", "@pytest.mark.pgleak"):
            kind = "checked" if marker else "unchecked"
            text = _TEST.format(
                marker=f"\n    {marker}" if marker else "", name=f"test_{name}_{kind}", fixture=fixture, body=body
            )
            tests.append(text)
    return _SUITE.format(tests=_TESTS, tests_of_each="".join([*tests, _ROUND_TRIP]).strip())


def checked_tests() -> Iterator[Row]:
    """Measure a clean test that is marked, against the same test unmarked."""
    taken: dict[str, list[float]] = {}
    conftest = runs.TIMED["conftest.py"] + _IN_BLOCKS
    with runs.suite({"conftest.py": conftest, "test_it.py": _suite()}) as directory:
        for _ in range(_ROUNDS):
            for name, seconds in runs.run_pytest(directory, *runs.PLUGIN).items():
                taken.setdefault(name, []).extend(seconds)
    trips = differences(taken["test_trips_unchecked"], taken["test_nothing_unchecked"])
    for name, what in (
        ("query", "one query on a connection that is open"),
        ("connection", "a connection opened and closed"),
        ("nothing", "nothing"),
    ):
        more = differences(taken[f"test_{name}_checked"], taken[f"test_{name}_unchecked"])
        factor = more.median / trips.median
        yield Row(
            f"a check, of a clean test that does {what}"
            if name == "nothing"
            else f"a check, of a clean test with {what}",
            more,
            ("two bare round trips, made by a test", trips),
            f"{factor:.1f} × the round trips",
            "≤ 3 ×",
            factor <= 3,
        )
    looped = Samples(tuple(taken["two_round_trips"]))
    yield Row("two bare round trips, again and again in a loop", "", ("the same, in a loop", looped), "", "", None)


def unchecked_tests() -> Iterator[Row]:
    """Measure a test that is not checked, with the plugin and without."""
    body = "import pytest\n\n@pytest.mark.parametrize('number', range(2000))\ndef test_it(number):\n    pass\n"
    with runs.suite({**runs.TIMED, "test_it.py": body}) as directory:

        def median(*args: str) -> float:
            return statistics.median(runs.run_pytest(directory, *args)["test_it"])

        measured = alternating(15, {"with": lambda: median(*runs.PLUGIN), "without": median})
    more = more_by_pairs(measured, "with", "without")
    yield Row(
        "a test that is not checked, plugin installed",
        measured["with"],
        ("plugin absent", measured["without"]),
        f"{duration(max(more, 0.0))} more",
        "≤ 20 µs",
        more <= 20e-6,
    )


def plugin_import() -> Iterator[Row]:
    """Measure how long pytest takes to start, with the plugin and with an empty one."""
    with runs.suite({"empty_plugin.py": "", "test_it.py": "def test_it():\n    pass\n"}) as directory:
        script = (
            "import sys, time, pytest; started_at = time.perf_counter(); __import__(sys.argv[1]);"
            "print(time.perf_counter() - started_at)"
        )

        def imported(name: str) -> float:
            return float(runs.run_python(directory, "-c", script, name))

        for name in ("pytest_pgleak.plugin", "empty_plugin"):
            imported(name)  # the files are in memory now
        measured = alternating(
            15, {"ours": lambda: imported("pytest_pgleak.plugin"), "empty": lambda: imported("empty_plugin")}
        )
    more = measured["ours"].median - measured["empty"].median
    yield Row(
        "import of the plugin",
        measured["ours"],
        ("an empty plugin", measured["empty"]),
        f"{duration(more)} more",
        "≤ 5 ms",
        more <= 5e-3,
    )
