"""Trackers of the user's own in the workers of live servers."""

from __future__ import annotations

import pytest

DRIVER = """
from psycopg import pq

class Connection:
    def __init__(self, dsn):
        self.pgconn = pq.PGconn.connect(dsn.encode())

    def close(self):
        self.pgconn.finish()
"""

TRACKERS = """
import functools

from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.libraries.library import Library, Words
from pytest_pgleak.patching import Patch, Patches


class Driver(Library):
    name = "driver"

    def words(self, class_name, is_async, stack=()):
        return Words(
            open="with contextlib.closing(driver.Connection(…)) as conn:",
            close="conn.close()",
            commit="conn.commit()",
            rollback="conn.rollback()",
            transaction="",
        )

    def is_closed(self, connection):
        return connection.pgconn.status != 0

    def transaction_status(self, connection):
        return "IDLE"

    def is_autocommit(self, connection):
        return True

    def parameters(self, connection):
        pgconn = connection.pgconn
        return {"host": pgconn.host.decode(), "port": pgconn.port.decode(), "user": pgconn.user.decode()}


DRIVER = Driver()


def facts(connection, reference):
    known, pgconn = DRIVER.parameters(connection), connection.pgconn
    server, database = (known["host"], known["port"]), pgconn.db.decode()
    return ConnectionFacts(reference, "Connection", False, pgconn.backend_pid, server, database, known["user"], DRIVER)


def watch(module, tracker):
    def watch_init(original):
        @functools.wraps(original)
        def __init__(self, dsn):
            original(self, dsn)
            tracker.connection_opened(self, functools.partial(facts, self), None)

        return __init__

    def watch_close(original):
        @functools.wraps(original)
        def close(self):
            original(self)
            tracker.connection_closed(self)

        return close

    return Patches(
        Patch(module.Connection, "__init__", watch_init), Patch(module.Connection, "close", watch_close)
    )
"""

HOOK = """
from pytest_pgleak.libraries.registry import LibraryTracker

def pytest_pgleak_trackers():
    return [LibraryTracker("driver", watch)]
"""

APP = """
import os
from fastapi import FastAPI

app = FastAPI()

@app.get("/clean")
def clean():
    import driver
    driver.Connection(os.environ["DATABASE_URL"]).close()

@app.get("/leaky")
def leaky():
    import driver
    driver.Connection(os.environ["DATABASE_URL"])

@app.get("/without")
def without():
    pass
"""

TESTS = """
import pytest

@pytest.fixture(scope="module", params=["uvicorn {app} --workers 2", "gunicorn {app} --preload"])
def server(request, pgleak_live, pgleak_dsn):
    with pgleak_live("shop:app", command=request.param, env={"DATABASE_URL": pgleak_dsn}) as server:
        yield server

@pytest.mark.pgleak
@pytest.mark.parametrize("path", PATHS)
def test_it(server, path):
    with server.client() as client:
        for _ in range(4):
            assert client.get(path).status_code == 200
"""


def run(pytester: pytest.Pytester, dsn: str, *paths: str) -> pytest.RunResult:
    pytester.makepyfile(shop=APP, driver=DRIVER, test_it=f"PATHS = {paths!r}\n{TESTS}")
    arguments = ("-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={dsn}")
    result = pytester.runpytest_subprocess(*arguments, timeout=60)
    assert "internal error" not in result.stdout.str()
    return result


def test_a_tracker_in_a_module_of_its_own_works_in_the_workers(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makepyfile(our_trackers=TRACKERS)
    pytester.makeconftest(f"from our_trackers import watch\n{HOOK}")
    result = run(pytester, server_dsn, "/clean", "/leaky")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "[[]connection-dropped]*(4 times)",
            "  opened    shop.py:* in leaky * in GET /leaky (leaky)",
            "  fix       use `with contextlib.closing(driver.Connection(…)) as conn:`, or close it in a `finally:`",
        ]
    )
    result.stdout.no_fnmatch_line("*not watched*")


def test_a_tracker_in_conftest_is_not_followed_and_a_note_says_so(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makeconftest(f"{TRACKERS}\n{HOOK}")
    result = run(pytester, server_dsn, "/clean", "/without")
    result.assert_outcomes(passed=4)
    (note,) = (line for line in result.stdout.lines if "not watched" in line)
    assert note == (
        "pgleak: a worker of a live server has imported driver, and no worker can import its tracker (conftest.watch):"
        " what they did with it was not watched. Put the tracker into a module of its own"
    )


def test_no_note_where_the_workers_do_not_use_the_library(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makeconftest(f"{TRACKERS}\n{HOOK}")
    result = run(pytester, server_dsn, "/without")
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*not watched*")
