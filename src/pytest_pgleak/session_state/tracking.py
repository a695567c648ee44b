"""Follows what pooled connections may have left in their sessions, and looks when they are back in their pools.

A connection is looked at only if a statement was executed on it that may leave something: a clean test pays nothing.
It is looked at when nobody has it: in its pool after ``reset``, or on its way out of it; and in the hands of the pool
before anybody gets it, after ``configure`` has set something, or where nobody has followed what was done with it.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, Protocol

from pytest_pgleak.events import ConnectionFacts, Moment
from pytest_pgleak.session_state.hints import Hint
from pytest_pgleak.session_state.home_loop import at_home, running_loop
from pytest_pgleak.session_state.pooled_session import PooledSession
from pytest_pgleak.session_state.queries import look, undo
from pytest_pgleak.session_state.state import BORN, Leftover, LeftState, SessionState
from pytest_pgleak.session_state.statements import names_in, read

_MOST_NAMES: Final = 200
_MOST_GONE: Final = 200


class Pools(Protocol):
    """What is to be known of psycopg_pool; `psycopg_internals` knows it."""

    def keeps_connections(self, pool: Any) -> bool:
        """Tell whether a pool keeps what it gets back."""

    def is_in_a_pool(self, connection: Any) -> bool:
        """Tell whether a pool has a connection back."""

    def in_hand(self, connection: Any, action: Callable[[], object]) -> None:
        """Run something on a connection that nobody else can reach, if it is idle."""

    def while_idle(self, pool: Any, connection: Any, action: Callable[[], object]) -> None:
        """Run something on a connection that idles in its pool, and that nobody can take meanwhile."""


class SessionTracking:
    """Knows the sessions of pooled connections, as far as checked tests have used them.

    Args:
        is_enabled: Tells whether a test is being checked, for this kind of finding.
        pools: Knows psycopg_pool.
        fault: Takes note, inside an ``except`` block, of a fault of the plugin; the argument says where.
    """

    def __init__(self, is_enabled: Callable[[], bool], pools: Pools, fault: Callable[[str], None]) -> None:
        self._fault = fault
        self._is_enabled = is_enabled
        self._pools = pools
        self._sessions: dict[int, PooledSession] = {}
        self._names: set[str] = set()
        self._gone: deque[LeftState] = deque(maxlen=_MOST_GONE)
        self._turns: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def opened(self, serial: int, facts: ConnectionFacts) -> None:
        """A pool has opened a connection, and is about to configure it."""
        if self._is_enabled():
            self._sessions[serial] = PooledSession(serial, facts, BORN, BORN)

    def configured(self, serial: int, connection: Any) -> None:
        """A pool has configured a connection that it has opened."""
        if (session := self._sessions.get(serial)) is not None:
            session.is_ready = True
            if session.is_configured:
                session.configured = session.judged = self._look_in_hand(connection)

    def checked_out(
        self, serial: int, facts: ConnectionFacts, connection: Any, pool: Any, pool_serial: int, moment: Moment
    ) -> None:
        """A pool is about to hand out a connection.

        Args:
            serial: Its number.
            facts: What is known of it.
            connection: The connection.
            pool: The pool.
            pool_serial: Its number.
            moment: Where it is checked out.
        """
        if not self._is_enabled():
            self._sessions.pop(serial, None)  # nobody will know what was done with it
            return
        if (session := self._sessions.get(serial)) is None:
            session = self._sessions[serial] = PooledSession(serial, facts, None, None, is_ready=True)
        if session.configured is None:
            session.configured = session.judged = self._look_in_hand(connection)
        self._turns[pool] = self._turns.get(pool, 0) + 1
        session.holder, session.now, session.found = moment, None, ()
        session.pool, session.pool_serial = weakref.ref(pool), pool_serial
        session.loop = running_loop() if facts.is_async else None

    def returned(self, serial: int) -> None:
        """A connection is being given back."""
        session = self._sessions.get(serial)
        if session is None or session.pool is None:
            return
        pool = session.pool()
        if not self._is_enabled() or pool is None or pool.closed or not self._pools.keeps_connections(pool):
            del self._sessions[serial]  # it goes back to be closed, or nobody has seen all of it
            return
        if session.holder is not None and session.hints:
            session.returns.append((session.holder, self._turns.get(pool, 0)))
        session.holder = None

    def statement(self, serial: int, statement: str, parameters: Any, moment: Callable[[], Moment]) -> None:
        """A statement was executed on a connection, by whoever has checked it out or by its pool.

        Args:
            serial: Number of the connection.
            statement: Its text.
            parameters: Its parameters.
            moment: Says when, where and on whose account.
        """
        session = self._sessions.get(serial)
        if session is None:
            return
        reading = read(statement)
        names = names_in(statement, parameters) if reading.takes_names else reading.names
        if names and len(self._names) < _MOST_NAMES:
            self._names.update(name for name in names if "." in name)
        if not reading.may_leave:
            return
        if session.holder is not None:
            session.hints.append(Hint(reading.text, names, reading.hides, moment(), session.holder))
        elif session.is_ready:
            session.handled.append((reading.text, names))
        else:
            session.is_configured = True

    def closing(self, serial: int, connection: Any) -> None:
        """The pool itself is closing an idle connection, when it shuts down or shrinks: this is the last moment."""
        session = self._sessions.pop(serial, None)
        if session is not None and session.is_pending:
            self._pools.in_hand(connection, partial(session.inspect, self._names, connection))
        if session is not None:
            self._gone.extend(left for left in session.found if self._is_inherited(session, left.holder))

    def forget(self, serial: int) -> None:
        """Let go of a connection that is gone."""
        self._sessions.pop(serial, None)

    @property
    def is_returning(self) -> bool:
        """Whether a connection that must be looked at is on its way back, through the ``reset`` of its pool."""
        return any(
            session.is_pending
            and (connection := session.facts.reference()) is not None
            and not connection.closed
            and not self._pools.is_in_a_pool(connection)
            for session in list(self._sessions.values())
        )

    def left(self) -> tuple[LeftState, ...]:
        """Look at all connections that are back, and return what was left on them."""
        sessions = list(self._sessions.values())
        for session in sessions:
            if session.is_pending:
                self._on_idle(session, partial(session.inspect, self._names))
        return (*self._gone, *(left for session in sessions for left in session.found))

    def settle(self, serial: int, left: Iterable[Leftover]) -> None:
        """Note that something was judged: it is not found again.

        Args:
            serial: Number of the connection.
            left: What was left on it.
        """
        known = frozenset(left)
        self._settle(lambda each: each.connection == serial and known.issuperset(each.left))

    def forget_owner(self, owner: int) -> None:
        """Let go of what belongs to an owner that has ended and been judged, or that nobody judges."""
        for serial, session in list(self._sessions.items()):
            if session.now is None and any(hint.holder.owner.serial == owner for hint in session.hints):
                self._sessions.pop(serial, None)  # nobody came to look: that is for whoever takes it next
        self._settle(lambda each: each.holder.owner.serial == owner)

    def undo(self, serial: int, left: Iterable[Leftover]) -> None:
        """Take away what was left on a connection, if it still idles in its pool."""
        session = self._sessions.get(serial)
        if session is None or session.holder is not None:
            return
        before = session.configured or BORN

        def undo_now(connection: Any) -> None:
            undo(connection, left, before)
            session.judged = look(connection, self._names) or session.judged

        self._on_idle(session, undo_now)

    def _settle(self, is_over: Callable[[LeftState], bool]) -> None:
        if self._gone:
            self._gone = deque((each for each in self._gone if not is_over(each)), maxlen=_MOST_GONE)
        for session in list(self._sessions.values()):
            session.settle(is_over)

    def _is_inherited(self, session: PooledSession, holder: Moment) -> bool:
        """Tell whether what is left when a pool closes is a mistake all the same.

        What a fixture or a lifespan gives back when everything ends, nobody inherits: a listener's connection, say. The
        pool of a test ends with it; the application's will not.
        """
        if holder.request is not None or holder.owner.what in ("call", "block"):
            return True
        _, pool = session.living()
        by_then = next((turn for back, turn in session.returns if back is holder), None)
        return pool is not None and by_then is not None and self._turns.get(pool, 0) > by_then

    def _on_idle(self, session: PooledSession, action: Callable[[Any], None]) -> None:
        connection, pool = session.living()
        if connection is None or pool is None or connection.closed:
            return

        def look_at_it() -> None:
            try:
                self._pools.while_idle(pool, connection, partial(action, connection))
            except Exception:  # noqa: BLE001 - not knowing is no reason to fail the whole check, nor the user's loop
                session.give_up()
                self._fault("the look at a session")

        if not at_home(session.loop() if session.loop is not None else None, look_at_it):
            session.give_up()  # its loop is stuck, and would be so at the next look

    def _look_in_hand(self, connection: Any) -> SessionState | None:
        seen: list[SessionState | None] = []
        self._pools.in_hand(connection, lambda: seen.append(look(connection, self._names)))
        return seen[0] if seen else None
