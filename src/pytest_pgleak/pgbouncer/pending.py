"""Statements of a transaction that goes on: what a savepoint takes back was never done."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from pytest_pgleak.pgbouncer.shared import SharedHint
from pytest_pgleak.transaction_tracking import Operation

_NAMED: Final = re.compile(
    r"\s*(?:(?P<begin>savepoint)|(?P<end>release)(?:\s+savepoint)?|(?P<back>rollback)(?:\s+(?:work|transaction))?\s+to"
    r"(?:\s+savepoint)?)\s+(?P<name>\"[^\"]+\"|[\w$]+)",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Pending:
    """The hints of one transaction, in their order.

    Attributes:
        hints: The hints.
    """

    hints: list[SharedHint] = field(default_factory=list)
    _savepoints: list[tuple[str, int]] = field(default_factory=list)

    def take(self) -> list[SharedHint]:
        """Return the hints, and begin anew: the transaction has ended."""
        hints, self.hints, self._savepoints = self.hints, [], []
        return hints

    def follow(self, operation: Operation) -> None:
        """Note that a savepoint was set, released or rolled back to, if it was.

        One that nobody has seen being set was there before the first hint.

        Args:
            operation: What the connection has done, inside a transaction.
        """
        if operation.begins_block:
            self._savepoints.append(("", len(self.hints)))
        elif operation.is_block:
            self._end("", is_undone=operation.fails or operation.forced)
        elif operation.statement is not None and (match := _NAMED.match(operation.statement)) is not None:
            name = match["name"] if match["name"].startswith('"') else match["name"].lower()
            if match["begin"]:
                self._savepoints.append((name, len(self.hints)))
            else:
                self._end(name, is_undone=match["back"] is not None)

    def _end(self, name: str, *, is_undone: bool) -> None:
        at = next((n for n in reversed(range(len(self._savepoints))) if self._savepoints[n][0] == name), None)
        since = 0 if at is None else self._savepoints[at][1]
        del self._savepoints[0 if at is None else at :]
        if is_undone:
            self.hints[since:] = [hint for hint in self.hints[since:] if hint.outlives_rollback]
            if at is not None and name:
                self._savepoints.append((name, since))  # it can be rolled back to again
