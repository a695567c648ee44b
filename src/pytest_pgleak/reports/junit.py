"""Findings as properties of JUnit's testcase: ``pgleak.KIND`` with the line of code as value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pytest_pgleak.reports.bugs import bugs_of

if TYPE_CHECKING:
    import pytest

    from pytest_pgleak.reporting import Reported

Property = tuple[str, str]


def properties(entries: Iterable[Reported]) -> list[Property]:
    """Name the findings of one test, each line of code once."""
    return list(dict.fromkeys((f"pgleak.{bug.kind}", bug.place) for bug in bugs_of(entries)))


class Properties:
    """The properties of one test, put on its reports; the user's own stay as they are.

    pytest's junitxml reads them from a test's last report, so each report has those of the earlier ones, too, as with
    ``record_property``. Where the test and its teardown both fail, junitxml writes two testcases; then the second one
    has its own findings only.
    """

    def __init__(self) -> None:
        self._earlier: list[Property] = []
        self._call_failed = False

    def complete(self, report: pytest.TestReport, entries: Sequence[Reported]) -> None:
        """Put the findings of a phase, and those of earlier phases, on its report.

        Args:
            report: The report of the phase; xdist carries it to the controller.
            entries: What was found in that phase.
        """
        own = properties(entries) if entries else []
        if report.when == "teardown" and report.failed and self._call_failed:
            shown = own
        else:
            shown = self._earlier = list(dict.fromkeys([*self._earlier, *own])) if own else self._earlier
        report.user_properties.extend(shown)
        self._call_failed |= report.when == "call" and report.failed
