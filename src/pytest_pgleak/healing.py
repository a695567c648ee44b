"""After a leak was reported: undo it, so that the next test neither hangs on it nor inherits it.

Backends are terminated in databases that the plugin created, anywhere else only with ``pgleak_terminate = true``.
Leaked pools are closed there, and everywhere where the leak has failed its test. What is only a warning changes
nothing elsewhere: a later test may use what this one has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final

from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.findings import Finding
from pytest_pgleak.kinds import TRANSACTION_LEFT_OPEN
from pytest_pgleak.observers import Observers
from pytest_pgleak.verdicts import Verdicts
from pytest_pgleak.views import Ending, View

_PATIENCE: Final = 1.0
"""Seconds that a pool gets to stop its workers."""


class Healer:
    """Undoes leaks.

    Args:
        observers: Terminate backends.
        may_terminate: Whether the backend of a connection may be terminated.
        roll_back: Rolls back a prepared transaction, where that is allowed.
        undo: Takes away what was left in a session.
        undone: Told that the open transaction of a connection was rolled back, given its serial.
    """

    def __init__(
        self,
        observers: Observers,
        may_terminate: Callable[[ConnectionFacts], bool],
        roll_back: Callable[[Finding], None],
        undo: Callable[[Finding], None],
        undone: Callable[[int], None],
    ) -> None:
        self._undone = undone
        self._undo = undo
        self._roll_back = roll_back
        self._observers = observers
        self._may_terminate = may_terminate

    def heal(self, verdicts: Verdicts, view: View) -> list[Callable[[], Awaitable[object]]]:
        """Undo what can be undone at once.

        Args:
            verdicts: What was reported.
            view: The ledger as it was judged.

        Returns:
            What can only be done by awaiting it, in the event loop of the test if that still runs.
        """
        later: list[Callable[[], Awaitable[object]]] = []
        told = [(finding, True) for finding in verdicts.failing]
        told += [(finding, False) for finding in (*verdicts.warning, *verdicts.known)]
        for finding, fails in told:
            if finding.left and finding.connection is not None and self._may_terminate(finding.connection):
                self._undo(finding)
            if finding.ending is not Ending.OPEN:
                continue
            if finding.subject == "pool":
                self._heal_pool(finding, view, later, fails)
            elif finding.prepared is not None:
                self._roll_back(finding)
            elif finding.connection is not None:
                self._heal_connection(finding, finding.connection, view, later)
        return later

    def _heal_connection(
        self, finding: Finding, facts: ConnectionFacts, view: View, later: list[Callable[[], Awaitable[object]]]
    ) -> None:
        if not self._may_terminate(facts):
            return
        if finding.kind == TRANSACTION_LEFT_OPEN:
            # The connection itself is in its right: only the transaction must go, if another test is to use it.
            if _scope_of_opener(finding, view) != "function":
                _call(facts.library.roll_back, facts.is_async, later, facts.reference())
                if facts.is_async:
                    later.append(functools.partial(self._note_undone, finding.serial))
                else:
                    self._undone(finding.serial)
            return
        self._observers.terminate([facts])
        if finding.subject == "checkout" and finding.pool is not None:
            pool = finding.pool.facts
            _call(pool.library.give_back, facts.is_async, later, pool.reference(), facts.reference())

    async def _note_undone(self, serial: int) -> None:
        self._undone(serial)

    def _heal_pool(
        self, finding: Finding, view: View, later: list[Callable[[], Awaitable[object]]], fails: bool
    ) -> None:
        assert finding.pool is not None
        members = [connection.facts for connection in view.connections if connection.pool == finding.serial]
        if not fails and not (members and all(self._may_terminate(facts) for facts in members)):
            return
        close = functools.partial(finding.pool.facts.library.close_pool, timeout=_PATIENCE)
        _call(close, finding.pool.facts.is_async, later, finding.pool.facts.reference())
        if finding.pool.facts.is_async and not _in_event_loop():
            # Its event loop is gone and with it everybody who could close it.
            self._observers.terminate(facts for facts in members if self._may_terminate(facts))


def _call(
    method: Callable[..., Awaitable[object] | None],
    is_async: bool,
    later: list[Callable[[], Awaitable[object]]],
    *args: Any,
) -> None:
    if any(each is None for each in args):
        return
    if is_async:

        async def call() -> None:
            # Bounded, for the thing that is healed is broken by definition.
            with contextlib.suppress(Exception):
                pending = method(*args)
                if pending is not None:
                    await asyncio.wait_for(pending, 2 * _PATIENCE)

        later.append(call)
    else:
        with contextlib.suppress(Exception):
            method(*args)


def _scope_of_opener(finding: Finding, view: View) -> str | None:
    return next((c.opened.owner.scope for c in view.connections if c.serial == finding.serial), None)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
