"""The session of one pooled connection: what its pool has made of it, what its users may have left, what is there."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from pytest_pgleak.events import ConnectionFacts, Moment
from pytest_pgleak.session_state.hints import Hint, cause_of, mentions
from pytest_pgleak.session_state.queries import look, look_at_defaults
from pytest_pgleak.session_state.state import (
    Leftover,
    LeftState,
    SessionState,
    adopted,
    completed,
    left_since,
    unknown_before,
)

_MOST: Final = 20
"""Statements that are remembered of one connection."""


@dataclass(slots=True)
class PooledSession:
    """What is known of one session.

    Attributes:
        serial: Number of the connection.
        facts: Facts of the connection.
        configured: Its state as its pool has made it; None where nobody knows.
        judged: Its state as it was judged last; what is there since then is new.
        is_ready: Whether its pool has configured it.
        is_configured: Whether ``configure`` was seen to set something.
        now: Its state in the pool, if somebody has looked since it came back.
        found: What was left, as far as it was looked at and not judged.
        hints: Statements of its users that may have left something.
        handled: What its pool's own ``reset`` and ``check`` do: text, and names of settings.
        holder: Where it was checked out; None while it is not.
        returns: Which checkouts are over, and how often its pool had handed out something by then.
        pool: The pool that has handed it out last.
        pool_serial: The number of that.
        loop: The event loop in which that was.
    """

    serial: int
    facts: ConnectionFacts
    configured: SessionState | None
    judged: SessionState | None
    is_ready: bool = False
    is_configured: bool = False
    now: SessionState | None = None
    found: tuple[LeftState, ...] = ()
    hints: deque[Hint] = field(default_factory=lambda: deque(maxlen=_MOST))
    handled: deque[tuple[str, frozenset[str]]] = field(default_factory=lambda: deque(maxlen=_MOST))
    holder: Moment | None = None
    returns: deque[tuple[Moment, int]] = field(default_factory=lambda: deque(maxlen=_MOST))
    pool: weakref.ref[Any] | None = None
    pool_serial: int | None = None
    loop: weakref.ref[Any] | None = None

    @property
    def is_pending(self) -> bool:
        """Whether it is back, or on its way, and nobody has looked yet."""
        return bool(self.hints) and self.holder is None and self.now is None

    def living(self) -> tuple[Any, Any]:
        """Return the connection and its pool, None for what is gone."""
        return self.facts.reference(), self.pool() if self.pool is not None else None

    def inspect(self, names: Iterable[str], connection: Any) -> None:
        """Look what is there, and find what was left.

        Args:
            names: Names of the settings of the application's own that are known.
            connection: The connection, idle and out of everybody's reach.
        """
        state = look(connection, names)
        if state is None or self.configured is None or self.judged is None:
            self.give_up()
            return
        customs, is_role_unknown = unknown_before(self.configured, state)
        if customs or is_role_unknown:
            default = look_at_defaults(connection, customs) or state
            self.configured, self.judged = completed(self.configured, default), completed(self.judged, default)
        self.now = state
        self.found = self._left(state, self.configured, self.judged)
        if not self.found:
            self.judged = state
            self.hints.clear()

    def give_up(self) -> None:
        """Note that nobody could look: whatever is there, nobody can be accused of it."""
        self.configured = self.judged = None
        self.hints.clear()

    def settle(self, is_over: Callable[[LeftState], bool]) -> None:
        """Note that some of what was found is judged: it is not found again."""
        over = [each for each in self.found if is_over(each)]
        if over and self.now is not None and self.judged is not None:
            self.judged = adopted(self.judged, self.now, (thing for each in over for thing in each.left))
            self.found = tuple(each for each in self.found if each not in over)
            if not self.found:
                self.hints.clear()

    def _left(self, state: SessionState, configured: SessionState, judged: SessionState) -> tuple[LeftState, ...]:
        new = {(each.what, each.name) for each in left_since(judged, state, before_is_complete=True)}
        by_line: dict[tuple[object, ...], tuple[Moment, Moment, list[Leftover]]] = {}
        for each in left_since(configured, state, self.is_configured):
            if (each.what, each.name) not in new or any(mentions(*done, each) for done in self.handled):
                continue
            hint = cause_of(each, self.hints)
            holder = (hint or self.hints[-1]).holder
            moment = hint.moment if hint is not None else holder
            line = (moment.stack, id(moment.request), holder.owner.serial)
            by_line.setdefault(line, (moment, holder, []))[2].append(each)
        return tuple(
            LeftState(self.serial, self.facts, self.pool_serial, moment, holder, tuple(left))
            for moment, holder, left in by_line.values()
        )
