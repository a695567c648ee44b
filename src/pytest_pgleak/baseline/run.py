"""One run with a baseline: what can be said of its tests, and the file at its end."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Final

import pytest

from pytest_pgleak.baseline import sentences
from pytest_pgleak.baseline.compare import Evidence, compare, updated
from pytest_pgleak.baseline.extent import Extent, smallest
from pytest_pgleak.baseline.file import WORKERINPUT, for_worker, path_of, write
from pytest_pgleak.baseline.keys import Key, function_of
from pytest_pgleak.baseline.known import Baseline
from pytest_pgleak.reporting import Reported
from pytest_pgleak.settings import Settings

_LEAVES_OUT: Final = {
    "-k": "keyword",
    "-m": "markexpr",
    "--deselect": "deselect",
    "--ignore": "ignore",
    "--ignore-glob": "ignore_glob",
}
"""Options that leave out tests, and by what name pytest keeps them. A suite may have one of them in its ini file."""
_NEVER_COMPLETE: Final = {
    "--collect-only": "collectonly",
    "--setup-plan": "setupplan",
    "--setup-only": "setuponly",  # --setup-plan sets it, too
    "--lf": "lf",
    "--stepwise": "stepwise",
}


class BaselineRun:
    """What a run has to do about the baseline; the file is the business of xdist's controller, where there is one.

    Args:
        config: pytest's config.
        baseline: The baseline.
        settings: The settings.
    """

    def __init__(self, config: pytest.Config, baseline: Baseline, settings: Settings) -> None:
        self._config = config
        self._baseline = baseline
        self._settings = settings
        self._on_record = {test for tests in baseline.known.values() for test in tests}
        self._ran: set[str] = set()
        self._cut_short: set[str] = set()
        self._deselected = 0
        self._trouble = ""

    def pytest_report_header(self) -> str | None:
        """Say early that nothing will fail."""
        if self._baseline.use == "compare":
            return None
        return f"pgleak: {sentences.header(self._baseline.shown, self._baseline.use)}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note whether a test on record has run to its end."""
        name = function_of(report.nodeid)
        if name not in self._on_record:
            return
        is_expected = hasattr(report, "wasxfail")
        if report.outcome == "failed" or (report.outcome == "skipped" and not is_expected):
            self._cut_short.add(name)
        elif report.when == "call":
            self._ran.add(name)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note that there may be tests that nobody knows of."""
        if report.failed:
            self._trouble = f"{report.nodeid or 'the suite'} could not be collected"

    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        """Count; with xdist that happens in the workers only."""
        self._deselected += len(tuple(items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give the baseline to an xdist worker that is about to start."""
        node.workerinput[WORKERINPUT] = for_worker(self._config)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Hear how a worker has ended."""
        output = getattr(node, "workeroutput", None)
        if error or output is None:
            self._trouble = f"worker {node.gateway.id} crashed"
        else:
            self._deselected = max(self._deselected, output.get("pgleak", {}).get("deselected", 0))

    def of_worker(self) -> dict[str, int]:
        """Return what only an xdist worker knows."""
        return {"deselected": self._deselected}

    def finish(self, session: pytest.Session, entries: Iterable[dict[str, Any]], trouble: str) -> list[str]:
        """Compare, or write the file.

        Args:
            session: pytest's session.
            entries: What was found.
            trouble: Why the plugin may have missed something; empty where it has not.

        Returns:
            What to tell the user.
        """
        if self._baseline.made_from is not None:
            self._baseline = replace(self._baseline, made_from=self._still_there(self._baseline.made_from))
        reported = [Reported.from_dict(entry) for entry in entries]
        evidence = self._evidence(reported, self._why_incomplete(session) or trouble)
        shown, number = self._baseline.shown, sum(entry.known for entry in reported)
        comparison = compare(self._baseline.known, evidence)
        if self._baseline.use == "compare":
            return sentences.compared(shown, number, comparison)
        if self._baseline.made_from is None and (stopped := self._was_stopped(session)):
            return [sentences.not_created(shown, stopped)]
        try:
            path = path_of(self._config)
            assert path is not None
            write(path, *updated(self._baseline, evidence))
        except OSError as error:
            # Everything was accepted, and next time nothing would be known of it.
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
            return [sentences.not_written(shown, error.strerror or str(error))]
        if self._baseline.made_from is None:
            return [sentences.created(shown, number, len(comparison.new))]
        return sentences.updated(shown, comparison, evidence.incomplete)

    def _evidence(self, reported: Iterable[Reported], incomplete: str) -> Evidence:
        found: dict[Key, set[str]] = {}
        for entry in reported:
            tests = found.setdefault(Key(*entry.key), set())
            if entry.nodeid:
                tests.add(function_of(entry.nodeid))
        unknown = self._on_record - self._ran - self._cut_short
        return Evidence(
            found={key: frozenset(tests) for key, tests in found.items()},
            extent=self._extent(),
            incomplete=incomplete,
            finished=frozenset(self._ran - self._cut_short),
            gone=frozenset(test for test in unknown if _is_gone(test, self._config.rootpath)),
            off=frozenset(kind for kind, level in self._settings.levels.items() if level == "off"),
        )

    def _why_incomplete(self, session: pytest.Session) -> str:
        if why := self._was_stopped(session) or self._trouble:
            return why
        extent = self._extent()
        if self._baseline.made_from is not None and (why := extent.falls_short_of(self._baseline.made_from)):
            return why
        if self._deselected and not extent.options:
            return f"{self._deselected} tests were deselected"
        return ""

    def _was_stopped(self, session: pytest.Session) -> str:
        for name, destination in _NEVER_COMPLETE.items():
            if self._config.getoption(destination, False):
                return f"{name} was given"
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            return "no tests were run"
        ended = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        return "" if ended and not session.shouldstop and not session.shouldfail else "it was stopped"

    def _extent(self) -> Extent:
        options = {}
        for name, destination in _LEAVES_OUT.items():
            given = self._config.getoption(destination, None)
            values = (given,) if isinstance(given, str) else tuple(given or ())
            if name == "--ignore":
                values = tuple(self._relative(value) for value in values)
            if any(values):
                options[name] = tuple(sorted(values))
        args = smallest(self._relative(arg) for arg in self._config.args)
        return Extent(args, self._settings.select, options)

    def _still_there(self, extent: Extent) -> Extent:
        """Put the directory above in the place of a path that was removed or renamed: what it held may be there."""
        own, args = self._extent().args, []
        for arg in extent.args:
            path = PurePosixPath(arg.partition("::")[0])
            while arg not in own and not Path(self._config.rootpath, path).exists() and path != path.parent:
                path = path.parent
                arg = path.as_posix()
            args.append(arg)
        return replace(extent, args=smallest(args))

    def _relative(self, arg: str) -> str:
        path, separator, rest = str(arg).partition("::")
        full = self._config.invocation_params.dir / path
        if self._config.getoption("pyargs", False) and not full.exists():
            return str(arg)
        return PurePath(os.path.relpath(full, self._config.rootpath)).as_posix() + separator + rest


def _is_gone(test: str, root: Path) -> bool:
    """Tell whether a test was removed or renamed: its file is not there, or has its name nowhere."""
    file, _, name = test.partition("::")
    try:
        text = (root / file).read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(rf"\b{re.escape(name.rpartition('::')[2])}\b", text) is None
