"""What becomes of a finding: it fails the test, it is a warning, it is known, it was allowed or ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_pgleak.baseline.keys import key_of
from pytest_pgleak.findings import Finding
from pytest_pgleak.ignore_rules import IgnoreRule
from pytest_pgleak.kinds import Level
from pytest_pgleak.settings import Settings

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The findings of one checkpoint, sorted.

    Attributes:
        failing: They fail the test.
        warning: They are only told.
        known: The baseline has them: they are only counted.
    """

    failing: tuple[Finding, ...] = ()
    warning: tuple[Finding, ...] = ()
    known: tuple[Finding, ...] = ()

    def __add__(self, other: Verdicts) -> Verdicts:
        """Join the verdicts of two checkpoints."""
        return Verdicts(self.failing + other.failing, self.warning + other.warning, self.known + other.known)

    def of_process(self, process: int | None) -> Verdicts:
        """Leave out what was found in other processes."""
        kinds = (self.failing, self.warning, self.known)
        return Verdicts(*(tuple(each for each in kind if each.process == process) for kind in kinds))

    @property
    def told(self) -> tuple[Finding, ...]:
        """What the user is told one by one."""
        return self.failing + self.warning

    @property
    def all(self) -> tuple[Finding, ...]:
        """Everything that was left, and that nobody has allowed."""
        return self.told + self.known


class Verdict:
    """Applies levels, ``allow``, the ignore hook and the baseline.

    Args:
        settings: Returns the session's settings.
        hook: pytest's hook relay.
        root: pytest's root directory.
    """

    def __init__(self, settings: Callable[[], Settings], hook: Any, root: Path) -> None:
        self._settings = settings
        self._hook = hook
        self._root = root
        self._used: set[IgnoreRule] = set()

    @property
    def unused_rules(self) -> tuple[IgnoreRule, ...]:
        """Rules of ``pgleak_ignore`` that no finding has matched so far."""
        return tuple(rule for rule in self._settings().ignore if rule not in self._used)

    def sort(
        self,
        findings: Iterable[Finding],
        item: pytest.Item | None,
        allow: frozenset[str] = frozenset(),
        most: Level = "fail",
        demanded: frozenset[str] = frozenset(),
    ) -> Verdicts:
        """Sort the findings of a checkpoint.

        Args:
            findings: What was found.
            item: The test; None at the end of the session.
            allow: Kinds that the marker allows.
            most: The most serious level that is possible here.
            demanded: Kinds that the marker asks for: they fail where no setting says that they are warnings.
        """
        failing: list[Finding] = []
        warning: list[Finding] = []
        known: list[Finding] = []
        baseline = self._settings().baseline
        for finding in findings:
            level = self._settings().level(finding.kind)
            if level == "off" and finding.kind in demanded:
                level = "fail"
            if level == "off" or finding.kind in allow or self._hook(finding=finding, item=item):
                continue
            if baseline is not None and baseline.accepts(key_of(finding, self._root)):
                known.append(finding)
                continue
            fails = level == "fail" and most == "fail" and self._settings().mode == "fail"
            (failing if fails else warning).append(finding)
        return Verdicts(tuple(failing), tuple(warning), tuple(known))

    def matches_a_rule(self, finding: Finding) -> bool:
        """Tell whether ``pgleak_ignore`` names a finding."""
        for rule in self._settings().ignore:
            if rule.matches(finding, self._root):
                self._used.add(rule)
                return True
        return False
