"""What a live server costs: ``python -m benchmarks.live``, and with ``--write`` into docs/production.md.

The same server with the ledger in it, and with the plugin off; each measurement in turn, so that whatever else the
machine does meets both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

from benchmarks import runs
from benchmarks.report import machine
from benchmarks.samples import Samples, duration

_PAGE: Final = Path(__file__).parent.parent / "docs" / "production.md"
_BEGIN, _END = "<!-- live benchmarks -->", "<!-- /live benchmarks -->"
_ROUNDS: Final = 5
_APP: Final = """
    import os
    from contextlib import asynccontextmanager
    import psycopg
    from fastapi import FastAPI
    from psycopg_pool import AsyncConnectionPool

    DSN = os.environ["DATABASE_URL"]

    @asynccontextmanager
    async def lifespan(app):
        async with AsyncConnectionPool(DSN, min_size=1, max_size=4, open=False) as app.state.pool:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/nothing")
    async def nothing():
        return None

    @app.get("/read")
    async def read():
        async with app.state.pool.connection() as conn:
            await conn.execute("select 1")

    @app.get("/write")
    async def write():
        async with app.state.pool.connection() as conn:
            await conn.execute("insert into t values (1)")

    @app.get("/connect")
    async def connect():
        async with await psycopg.AsyncConnection.connect(DSN) as conn:
            await conn.execute("select 1")
"""
_TEST: Final = """
    import json, statistics, time
    import psycopg, pytest

    TAKEN = {}

    @pytest.mark.pgleak
    def test_it(pgleak_live, pgleak_dsn):
        with psycopg.connect(pgleak_dsn) as conn:
            conn.execute("create table if not exists t (a int)")
        for workers in (1, 2, 4):
            before = time.perf_counter()
            with pgleak_live("shop:app", workers=workers, env={"DATABASE_URL": pgleak_dsn}) as server:
                TAKEN[f"start, {workers} worker{'s' * (workers > 1)}"] = time.perf_counter() - before
                with server.client() as client:
                    for path in ("nothing", "read", "write", "connect") if workers == 1 else ():
                        TAKEN[f"request: {path}"] = requests(client, path)
        with open("result.json", "w") as file:
            json.dump(TAKEN, file)

    def requests(client, path):
        taken = []
        for _ in range(220):
            before = time.perf_counter()
            assert client.get(f"/{path}").status_code == 200
            taken.append(time.perf_counter() - before)
        return statistics.median(taken[20:])
"""
_NAMES: Final = {
    "request: nothing": "a request that does nothing",
    "request: read": "a request that reads, on a pooled connection",
    "request: write": "a request that writes, on a pooled connection",
    "request: connect": "a request that opens a connection and closes it",
}


def measure() -> dict[str, dict[str, Samples]]:
    """Measure everything, in rounds.

    Returns:
        By the thing that was measured, the durations watched and not.
    """
    with runs.suite({"shop.py": _APP, "test_it.py": _TEST}) as directory:

        def run(mode: str) -> dict[str, float]:
            runs.run_python(
                directory,
                *("-m", "pytest", "-q", "-p", "no:cacheprovider", *runs.PLUGIN, f"--pgleak-mode={mode}"),
                environment={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            )
            taken: dict[str, float] = json.loads((directory / "result.json").read_text(encoding="utf-8"))
            return taken

        run("off")  # what is compiled and cached is so for both
        taken = [{mode: run(mode) for mode in ("fail", "off")} for _ in range(_ROUNDS)]
    return {
        name: {mode: Samples(tuple(each[mode][name] for each in taken)) for mode in ("fail", "off")}
        for name in taken[0]["fail"]
    }


def table(measured: dict[str, dict[str, Samples]]) -> str:
    """Write the table in Markdown."""
    lines = ["| what | watched | with the plugin off | more |", "|---|---|---|---|"]
    for name, samples in measured.items():
        watched, off = samples["fail"], samples["off"]
        what = _NAMES.get(name, name.replace("start, ", "start, until it answers: "))
        more = duration(watched.median - off.median)
        lines.append(f"| {what} | {watched.describe()} | {off.describe()} | {more} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write it down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/production.md")
    arguments = parser.parse_args()
    shown = table(measure())
    print(shown)
    if arguments.write:
        before, _, rest = _PAGE.read_text(encoding="utf-8").partition(_BEGIN)
        measured = f"Measured {machine()}. Medians of {_ROUNDS} runs, and the first and third quartiles."
        text = f"{before}{_BEGIN}\n\n{measured}\n\n{shown}\n\n{_END}{rest.partition(_END)[2]}"
        _PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
