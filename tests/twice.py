"""Runs an inner suite twice, without the plugin and with it, and compares what was seen from the outside.

Import the fixture `twice` where it is needed.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

# A plugin of the inner suite. What a run looks like to whoever uses it: the report of each phase of each test with what
# was captured, the warnings, the counts of the last line, the exit status.
RECORDER = r"""
import json, os, re
import pytest

SEEN = {"reports": [], "warnings": [], "counts": {}, "status": None}

def plain(text):
    return re.sub(r"0x[0-9a-f]+|\bgw\d+|pid[= ]\d+|-\d{5,}|\d+\.\d+ ?s(econds)?\b", "…", text)

def of(report):
    # Of an error its last line: the frames that it went through are ours, too.
    error = report.longreprtext.strip().rpartition("\n")[2]
    # pytest-timeout prints where all threads are, and ours is one.
    sections = [(name, text) for name, text in report.sections if "~ Stack of <unknown> (" not in text]
    captured = [[name, plain(text)] for name, text in sections if not name.startswith("pgleak")]
    return [report.nodeid, report.when, report.outcome, plain(error), captured, getattr(report, "wasxfail", None)]

def pytest_runtest_logreport(report):
    SEEN["reports"].append(of(report))

def pytest_collectreport(report):
    if report.failed:
        SEEN["reports"].append([report.nodeid, "collect", report.outcome, "", [], None])

def pytest_warning_recorded(warning_message, nodeid):
    where = os.path.basename(warning_message.filename)
    SEEN["warnings"].append([warning_message.category.__name__, plain(str(warning_message.message)), nodeid, where])

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    SEEN["status"] = int(exitstatus)

@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure(config):
    terminal = config.pluginmanager.getplugin("terminalreporter")
    SEEN["counts"] = {name: len(stats) for name, stats in terminal.stats.items() if name} if terminal else {}
    if not hasattr(config, "workerinput"):
        with open("seen.json", "w") as file:
            json.dump(SEEN, file)
"""

CONFTEST = """
    import os, uuid
    import psycopg, pytest
    from psycopg.conninfo import make_conninfo

    SERVER = os.environ["SERVER_DSN"]

    @pytest.fixture(scope="session")
    def dsn():
        name = f"theirs_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(SERVER, autocommit=True) as conn:
            conn.execute(f"create database {name}")
        yield make_conninfo(SERVER, dbname=name)
        with psycopg.connect(SERVER, autocommit=True) as conn:
            conn.execute(f"drop database {name} with (force)")
"""
"""A suite with a database of its own, that has never heard of pgleak."""


class Seen(dict):
    """What one run looked like, and pytest's own result of it."""

    def __init__(self, result, seen):
        super().__init__(seen)
        self.result = result

    @property
    def text(self):
        return self.result.stdout.str() + self.result.stderr.str()

    def of(self, name):
        """The outcomes of the phases of the tests with a name."""
        return [(when, outcome) for nodeid, when, outcome, *_ in self["reports"] if f"::{name}" in nodeid]


class Twice:
    """Writes and runs inner suites."""

    OFF = ("-p", "no:pgleak")
    ON = ("--pgleak-mode=warn", "--pgleak-select=all", "-o", "pgleak_grace=0.1", "-o", "pgleak_blocked_after=60")

    def __init__(self, pytester):
        self.pytester = pytester
        pytester.makepyfile(recorder=RECORDER)

    def write(self, conftest=CONFTEST, ini="", **modules):
        """Write the suite; sources may be indented."""
        self.pytester.makeconftest(textwrap.dedent(conftest))
        self.pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n" + textwrap.dedent(ini))
        self.pytester.makepyfile(**{name: textwrap.dedent(source) for name, source in modules.items()})

    def once(self, *args, stdin=None):
        """Run it once."""
        command = ("-p", "recorder", *args)
        if stdin is None:
            result = self.pytester.runpytest_subprocess(*command, timeout=120)
        else:
            result = self.pytester.run(*self.pytester._getpytestargs(), *command, stdin=stdin, timeout=120)
        path = Path(self.pytester.path, "seen.json")
        seen = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        return Seen(result, seen)

    def compare(self, *args, on=(), ordered=True, **kwargs):
        """Run it without the plugin and with it; return both after all was found the same.

        Args:
            args: For both runs.
            on: For the one with the plugin.
            ordered: Whether the tests run in the same order.
            kwargs: As for `once`.
        """
        off = self.once(*self.OFF, *args, **kwargs)
        found = self.once(*self.ON, *on, *args, **kwargs)
        assert_same(off, found, ordered)
        return off, found


def assert_same(off, found, ordered=True):
    """Compare two runs."""
    assert "internal error" not in found.text
    assert off["reports"]
    for name in ("reports", "warnings"):
        if ordered:
            assert found[name] == off[name]
        else:
            assert sorted(map(str, found[name])) == sorted(map(str, off[name]))
    assert (found["counts"], found["status"], found.result.ret) == (off["counts"], off["status"], off.result.ret)


@pytest.fixture
def twice(pytester, server_dsn, monkeypatch):
    """Runs an inner suite without the plugin and with it. It finds a server in ``SERVER_DSN``."""
    monkeypatch.setenv("SERVER_DSN", server_dsn)
    return Twice(pytester)
