"""Brings the findings of a session together, from this process and from xdist's workers. Light, as the hooks are."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_pgleak.baseline.run import BaselineRun
    from pytest_pgleak.findings import Finding
    from pytest_pgleak.reports.targets import Target
    from pytest_pgleak.session import Session


class SessionEnd:
    """The hooks at the end of a session.

    Args:
        config: pytest's config; some of these hooks are not given it.
        active: Returns the session, if there is anything to do in it.
        reports: The files to write.
        baseline: What there is to do about the baseline, where there is one.
    """

    def __init__(
        self,
        config: pytest.Config,
        active: Callable[[pytest.Config], Session | None],
        reports: Sequence[Target],
        baseline: BaselineRun | None,
    ) -> None:
        self._config = config
        self._active = active
        self._reports = reports
        self._baseline = baseline
        self._missed = ""
        self._entries: list[dict[str, Any]] = []
        self._notes: list[str] = []
        self._written: list[str] = []
        self._discarded: set[str] = set()
        self._of_attempt: dict[str, list[dict[str, Any]]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a report brings with it."""
        if report.outcome == "rerun":  # type: ignore[comparison-overlap]  # pytest-rerunfailures' word
            self._discarded.add(report.nodeid)
        self._of_attempt.setdefault(report.nodeid, []).extend(getattr(report, "pgleak", ()))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """An attempt that is made again counts for nothing; each has a finish of its own."""
        found = self._of_attempt.pop(nodeid, [])
        if nodeid not in self._discarded:
            self._entries.extend(found)
        self._discarded.discard(nodeid)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, object, object]:
        """Inside of all other wrappers, one of which prints the summary; after everybody who may close something."""
        try:
            return (yield)
        finally:
            self._finish(session, exitstatus)

    def _finish(self, session: pytest.Session, exitstatus: int) -> None:
        found: dict[str, Any] = {}
        if (active := self._active(self._config)) is not None:
            entries, notes = active.finish()
            found = {"entries": entries, "notes": notes, "missed": active.state.missed}
        if (output := getattr(self._config, "workeroutput", None)) is not None:
            output["pgleak"] = found | (self._baseline.of_worker() if self._baseline is not None else {})
            return
        self._take(found)
        for of_crashed in self._of_attempt.values():  # their worker crashed before it could finish them
            self._entries.extend(of_crashed)
        self._of_attempt.clear()
        if self._baseline is not None:
            self._notes.extend(self._baseline.finish(session, self._entries, self._missed))
        if self._reports:
            from pytest_pgleak.reports.writing import write_reports

            self._written = write_reports(self._config, self._reports, self._entries, self._notes, exitstatus)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what one of xdist's workers has sent at its end."""
        self._take(getattr(node, "workeroutput", {}).get("pgleak", {}))

    @pytest.hookimpl(trylast=True)
    def pytest_pgleak_ignore(self, finding: Finding) -> bool | None:
        """Apply ``pgleak_ignore``."""
        active = self._active(self._config)
        return True if active is not None and active.state.verdict.matches_a_rule(finding) else None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Tell."""
        if self._entries or self._notes or self._written:
            from pytest_pgleak.reports.telling import tell

            tell(terminalreporter, self._entries, self._notes, self._written)

    def _take(self, found: dict[str, Any]) -> None:
        self._entries.extend(found.get("entries", ()))
        self._notes.extend(note for note in found.get("notes", ()) if note not in self._notes)
        self._missed = self._missed or found.get("missed", "")
