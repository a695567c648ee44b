"""What a database of a test's own costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import runs, servers
from benchmarks.samples import Row, alternating

_TESTS = 50
_SCHEMA = "".join(f"create table t{n} (id serial primary key, a int, b text unique);\n" for n in range(40))
_OURS = """
    import psycopg, pytest

    @pytest.mark.parametrize("number", range({tests}))
    def test_it(pgleak_fresh_dsn, number):
        with psycopg.connect(pgleak_fresh_dsn) as conn:
            conn.execute("select 1 from t0")
"""
_THEIRS = """
    from pathlib import Path

    import pytest
    from pytest_postgresql import factories

    server = factories.postgresql_proc(load=[Path(__file__).with_name("schema.sql")])
    postgresql = factories.postgresql("server")

    @pytest.mark.parametrize("number", range({tests}))
    def test_it(postgresql, number):
        postgresql.execute("select 1 from t0")
"""


def fresh() -> Iterator[Row]:
    """Measure a test with a fresh database of 40 tables, beside the same with pytest-postgresql."""
    if runs.obstacle():
        return
    with (
        runs.suite({**runs.TIMED, "test_it.py": _OURS.format(tests=_TESTS), "schema.sql": _SCHEMA}) as our_suite,
        runs.suite({**runs.TIMED, "test_it.py": _THEIRS.format(tests=_TESTS), "schema.sql": _SCHEMA}) as their_suite,
    ):

        def ours() -> float:
            # The first has the server started, the last has it stopped.
            return statistics.median(
                runs.run_pytest(our_suite, *runs.PLUGIN, "-o", "pgleak_schema=schema.sql")["test_it"][1:-1]
            )

        def theirs() -> float:
            taken = runs.run_pytest(their_suite, *servers.peer_arguments(their_suite))
            return statistics.median(taken["test_it"][1:-1])

        measured = alternating(7, {"ours": ours, "theirs": theirs})
    part = measured["ours"].median / measured["theirs"].median
    yield Row(
        "a test with a database of its own, of 40 tables",
        measured["ours"],
        ("pytest-postgresql, same binaries", measured["theirs"]),
        f"{100 * part:.0f} % of it",
        "≤ 50 %",
        part <= 0.5,
    )
