"""Suites as their users have them, one folder each: the plugin changes none of them, and finds what is there.

Each runs three times, without the plugin and with it in both modes. Nothing is configured: not the server either, which
the suites find in their own ``DATABASE_URL``. What is in a folder's ``stack.toml`` is what must be found, and nothing
else. Run by ``make compat``, in an environment that has all their libraries.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from pytest_pgleak.kinds import KINDS
from pytest_pgleak.servers.databases import create_database, drop_database

pytestmark = pytest.mark.usefixtures("all_plugins")

HERE = Path(__file__).parent
NEEDED = ("asyncpg", "fastapi", "psycopg2", "pytest_asyncio", "pytest_postgresql", "sqlalchemy", "sqlmodel")
PATIENCE = 120.0
"""Seconds; the slowest run takes about 8."""

MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"not installed: {', '.join(MISSING)}; `make compat` has all of it", allow_module_level=True)


PLUGINS = ("asyncio", "pytest_postgresql", "xdist", "hypothesispytest")
"""pytest plugins of this environment by the names of their entry points."""

MODES = {
    "off": ("-p", "no:pgleak"),
    "warn": ("--pgleak-select=all", "--pgleak-mode=warn"),
    "fail": ("--pgleak-select=all", "--pgleak-mode=fail"),
}


@dataclass(frozen=True)
class Stack:
    """A suite, and what must be found in it.

    Attributes:
        folder: Where it is.
        name: What this test of it is called.
        uses: Which of `PLUGINS` it uses; the others are not there for it.
        arguments: Command line arguments of its own, with ``{host}``, ``{port}`` and ``{user}``.
        environment: Environment variables of its own.
        findings: By test, ``"KIND FILE::FUNCTION OWNER"``; under ``"session"`` what the end of the session tells.
        in_warn: What differs where nothing fails: there pgleak does not run the garbage collector, so what only a
            cycle holds is still open.
    """

    folder: Path
    name: str
    uses: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    findings: dict[str, list[str]] = field(default_factory=dict)
    in_warn: dict[str, list[str]] = field(default_factory=dict)


def stacks() -> Iterator[Stack]:
    for path in sorted(HERE.glob("*/stack.toml")):
        told: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        uses, arguments = tuple(told.get("uses", ())), tuple(told.get("arguments", ()))
        for variant, environment in told.get("variants", {"": {}}).items():
            name = f"{path.parent.name}-{variant}" if variant else path.parent.name
            findings, in_warn = told.get("findings", {}), told.get("in_warn", {})
            yield Stack(path.parent, name, uses, arguments, environment, findings, in_warn)


@dataclass(frozen=True)
class Run:
    """How a suite went."""

    exit_code: int
    outcomes: dict[str, dict[str, str]]
    found: dict[str, list[tuple[str, str, str]]]
    warnings: list[tuple[str, str]]
    output: str

    @property
    def findings(self) -> dict[str, list[str]]:
        return {nodeid or "session": sorted(text for *_, text in found) for nodeid, found in self.found.items()}

    @property
    def failing(self) -> dict[str, set[str]]:
        """The phases in which something was found that fails."""
        return {
            nodeid: {when for when, kind, _ in found if KINDS[kind].level == "fail"}
            for nodeid, found in self.found.items()
            if nodeid
        }


class Runner:
    """Runs a stack in a database of its own, each time a new one."""

    numbers = itertools.count(1)

    def __init__(self, stack: Stack, pytester: pytest.Pytester, server_dsn: str, monkeypatch: pytest.MonkeyPatch):
        self._stack, self._pytester, self._server, self._monkeypatch = stack, pytester, server_dsn, monkeypatch
        shutil.copytree(stack.folder, pytester.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(HERE / "recorder.py", pytester.path / "compat_recorder.py")
        for name, value in stack.environment.items():
            monkeypatch.setenv(name, value)

    def run(self, mode: str) -> Run:
        name = f"shop_{next(self.numbers)}"
        parameters = parameters_of(create_database(self._server, name))
        result_file = self._pytester.path / f"result-{mode}.json"
        self._monkeypatch.setenv("DATABASE_URL", url_of(parameters))
        self._monkeypatch.setenv("COMPAT_RESULT", str(result_file))
        arguments = [argument.format(**parameters) for argument in self._stack.arguments]
        plugins = (f"-pno:{name}" for name in PLUGINS if name not in self._stack.uses)
        own = ("-pcompat_recorder", "-pno:cacheprovider", *plugins)
        try:
            result = self._pytester.runpytest_subprocess(*own, *MODES[mode], *arguments, timeout=PATIENCE)
        finally:
            drop_database(self._server, name)
        assert result_file.exists(), result.stderr.str()
        told = json.loads(result_file.read_text(encoding="utf-8"))
        return Run(int(result.ret), **told, output=result.stdout.str() + result.stderr.str())


def parameters_of(dsn: str) -> dict[str, str]:
    from psycopg.conninfo import conninfo_to_dict

    given = {"host": "localhost", "port": "5432", "user": "postgres", "password": ""}
    return given | {key: str(value) for key, value in conninfo_to_dict(dsn).items()}


def url_of(parameters: dict[str, str]) -> str:
    """Write a URL as all libraries understand it; a socket's directory only goes into its query."""
    user, password = quote(parameters["user"], safe=""), quote(parameters["password"], safe="")
    login = f"{user}:{password}" if password else user
    query = urlencode({"host": parameters["host"], "port": parameters["port"]}, safe="/")
    return f"postgresql://{login}@/{parameters['dbname']}?{query}"


@pytest.mark.parametrize("stack", [pytest.param(stack, id=stack.name) for stack in stacks()])
def test_same_outcomes_and_exactly_the_expected_findings(
    stack: Stack, pytester: pytest.Pytester, server_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(stack, pytester, server_dsn, monkeypatch)
    off = runner.run("off")
    assert off.outcomes, off.output
    assert not off.found, "the plugin was not off"

    warn = runner.run("warn")
    expected = stack.findings | stack.in_warn
    assert in_order(warn.findings, is_collected=False) == in_order(expected, is_collected=False), warn.output
    assert (warn.outcomes, warn.exit_code, warn.warnings) == (off.outcomes, off.exit_code, off.warnings), warn.output

    fail = runner.run("fail")
    assert in_order(fail.findings) == in_order(stack.findings), fail.output
    assert fail.outcomes == with_failures(off.outcomes, fail.failing), fail.output
    assert fail.exit_code == (1 if any(fail.failing.values()) else off.exit_code), fail.output

    for run in (warn, fail):
        for complaint in ("internal error", "judged alone", "looks different"):
            assert complaint not in run.output, run.output


def in_order(findings: dict[str, list[str]], is_collected: bool = True) -> dict[str, list[str]]:
    """Return findings in a fixed order.

    Args:
        findings: By test.
        is_collected: Whether the garbage collector was run. Where it was not, a connection that nobody holds may still
            be open, by the version of Python.
    """
    if not is_collected:
        findings = {
            test: [each.replace("connection-dropped ", "connection-not-closed ") for each in found]
            for test, found in findings.items()
        }
    return {test: sorted(found) for test, found in findings.items() if found}


def with_failures(outcomes: dict[str, dict[str, str]], failing: dict[str, set[str]]) -> dict[str, dict[str, str]]:
    """Return the outcomes as they are when what was found fails: a phase that failed by itself stays as it is."""
    return {
        nodeid: {when: "failed" if when in failing.get(nodeid, ()) else outcome for when, outcome in phases.items()}
        for nodeid, phases in outcomes.items()
    }
