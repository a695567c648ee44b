"""When it hangs instead of failing: what a session does about locks that are waited for, and slots that are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from pytest_pgleak.hangs.holders import Phase, When
from pytest_pgleak.hangs.slot_notes import chain, has_note
from pytest_pgleak.hangs.watchdog import Watchdog

if TYPE_CHECKING:
    from pytest_pgleak.fixture_owners import FixtureOwners
    from pytest_pgleak.hangs.live_terminal import LiveTerminal
    from pytest_pgleak.state import State

WAITED: Final = "pgleak: waited on a lock"
HELD: Final = "pgleak: who held the connections"

_MESSAGES: Final = pytest.StashKey[list[str]]()


class Hangs:
    """Goes through a session beside the checks.

    Args:
        state: The session's state.
        fixtures: The owners of fixtures.
    """

    def __init__(self, state: State, fixtures: FixtureOwners) -> None:
        self._state = state
        self._fixtures = fixtures
        self._watchdog: Watchdog | None = None
        self._terminal: LiveTerminal | None = None
        self._messages: list[tuple[str, str]] = []

    def start(self) -> None:
        """A checked test begins: from the first one on, no test waits for a lock unnoticed."""
        if self._watchdog is not None or not self._state.settings.blocked_after:
            return
        from pytest_pgleak.hangs.live_terminal import LiveTerminal
        from pytest_pgleak.hangs.lock_watch import LockWatch

        self._terminal = LiveTerminal(self._state.config)
        watch = LockWatch(self._state, self._living, self._tell)
        self._watchdog = Watchdog(self._state.settings.blocked_after, watch.look, self._state.fault)

    def enter(self, nodeid: str, when: When) -> None:
        """A phase of a test begins, checked or not."""
        if self._watchdog is not None:
            self._watchdog.enter(nodeid, when)

    def leave(self) -> None:
        """A test is over."""
        if self._watchdog is not None:
            self._watchdog.leave()

    def before_report(self, call: pytest.CallInfo[None]) -> list[str]:
        """Put the notes on what pytest is about to show.

        psycopg raises another exception where a host name has several addresses and none of them would have it.

        Args:
            call: What has happened.

        Returns:
            The notes that no error carries: the application has caught it, and the test may fail of something else.
        """
        left = []
        for noted in self._state.slot_notes.take():
            errors = list(chain(call.excinfo.value)) if call.excinfo is not None else []
            raised = noted.error()
            successors = (error for error in errors if noted.text in str(error) and not has_note(error))
            target = raised if any(error is raised for error in errors) else next(successors, None)
            if target is not None:
                target.add_note(noted.note)
            elif errors:
                left.append(noted.note)
        return left

    def sections(self, item: pytest.Item, notes: list[str]) -> list[tuple[str, str]]:
        """Return what the report of a phase is to show beside.

        Args:
            item: The test.
            notes: As `before_report` returned them.
        """
        told = [text for nodeid, text in self._messages if nodeid == item.nodeid]
        if told:
            self._messages = [each for each in self._messages if each[0] != item.nodeid]
            item.stash[_MESSAGES] = item.stash.get(_MESSAGES, []) + told
        # What the set-up waited for may explain how the test itself fails, and pytest shows failed phases only.
        shown = item.stash.get(_MESSAGES, [])
        return [(WAITED, "\n".join(shown))] * bool(shown) + [(HELD, "\n".join(notes))] * bool(notes)

    def stop(self) -> None:
        """The session is over."""
        if self._watchdog is not None:
            self._watchdog.stop()
        if self._terminal is not None:
            self._terminal.close()

    def _tell(self, phase: Phase, text: str) -> None:
        self._messages.append((phase.nodeid, text))
        if self._terminal is not None:
            self._terminal.write(text)

    def _living(self) -> frozenset[int]:
        check = self._state.current_check
        return (
            self._state.ownership.living
            | self._fixtures.living
            | (check.belonging.living if check is not None else frozenset())
        )
