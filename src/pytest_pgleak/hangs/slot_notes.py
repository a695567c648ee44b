"""Writes a note on an error that says there is no connection left: who holds them.

At the moment of raising, for only then it is known: when pytest shows the error, everything has been given back. It is
put on the error only when pytest is about to show it: a test may catch the error and compare its text.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from pytest_pgleak.activity import Backend
from pytest_pgleak.clock import Clock
from pytest_pgleak.connecting import NO_ROOM
from pytest_pgleak.events import PoolFacts
from pytest_pgleak.frames import origin
from pytest_pgleak.hangs import lock_queries
from pytest_pgleak.hangs.holders import Holder, whose
from pytest_pgleak.hangs.slots import PREFIX, Crowd, PoolFigures, Slot, crowd_note, pool_note
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.observer import Observer, ObserverError
from pytest_pgleak.observers import Observers, Server
from pytest_pgleak.requests import RequestInfo
from pytest_pgleak.session_state.home_loop import running_loop
from pytest_pgleak.views import Ending

_POOL_ERRORS: Final = frozenset(("PoolTimeout", "TooManyRequests"))
_MOST_NOTES: Final = 3
_MOST_TROUBLES: Final = 100


@dataclass(frozen=True, slots=True)
class Target:
    """Where a connection was to go."""

    server: Server
    user: str
    dbname: str


@dataclass(frozen=True, slots=True)
class Noted:
    """An error and the note for it.

    Attributes:
        error: Returns the error as long as somebody else holds it.
        text: The error's own text.
        note: The note.
    """

    error: Callable[[], BaseException | None]
    text: str
    note: str


class SlotNotes:
    """Writes the notes, and keeps them until the test has been reported.

    Args:
        ledger: Knows who holds connections in this process.
        observers: Know the others.
        nodeid: Returns the running test.
        root: Paths below it are shown relative to it.
    """

    def __init__(self, ledger: Ledger, observers: Observers, nodeid: Callable[[], str], root: Path) -> None:
        self._ledger = ledger
        self._observers = observers
        self._nodeid = nodeid
        self._root = root
        self._troubles: dict[int, str] = {}
        self._written: list[Noted] = []

    def pool_starved(self, pool: Any, serial: int, error: BaseException) -> None:
        """A pool had nothing to give; or what it tried to open was refused.

        Args:
            pool: The pool.
            serial: Its number in the ledger.
            error: What it raises.
        """
        if type(error).__name__ not in _POOL_ERRORS:
            self.refused(error)
            return
        trouble = self._troubles.get(serial)
        figures = PoolFigures(pool.name, pool.max_size or None, _other_loop(self._ledger.pool_facts(serial)))
        text = pool_note(figures, self._pool_slots(serial), trouble, self._root)
        if trouble is not None and is_full(trouble):
            text += "\n" + self._crowd(None)
        self._put(error, text)

    def pool_has_tried(self, serial: int, error: BaseException | None) -> None:
        """A worker of a pool has tried to open a connection.

        Args:
            serial: The pool's number in the ledger.
            error: Why it could not; None where it could.
        """
        self._troubles.pop(serial, None)
        if error is not None:
            while len(self._troubles) >= _MOST_TROUBLES:
                del self._troubles[next(iter(self._troubles))]
            self._troubles[serial] = str(error)

    def refused(self, error: BaseException) -> None:
        """A server, or a pooler, has refused a connection; the note is for those that are full."""
        if is_full(str(error)):
            self._put(error, self._crowd(_target_of(error)))

    def take(self) -> list[Noted]:
        """Return, once, the errors that there is a note for since the last call."""
        written, self._written = self._written, []
        return written

    def _put(self, error: BaseException, text: str) -> None:
        if any(noted.error() is error for noted in self._written):
            return
        self._written = [*self._written[1 - _MOST_NOTES :], Noted(_weakly(error), str(error), text)]

    def _pool_slots(self, serial: int) -> list[Slot]:
        holders = [holder for holder in self._ledger.holders() if holder.pool == serial and holder.checkout is not None]
        rows: dict[Server, dict[int, Backend]] = {}
        for server in {holder.facts.server for holder in holders}:
            pids = [holder.facts.backend_pid for holder in holders if holder.facts.server == server]
            question = functools.partial(Observer.backends, pids=pids)
            rows[server] = {row.pid: row for row in self._ask(server, question)}
        return [self._slot(holder, rows[holder.facts.server].get(holder.facts.backend_pid)) for holder in holders]

    def _slot(self, holder: Holder, row: Backend | None) -> Slot:
        held = holder.held
        slot = Slot(
            holder.facts.backend_pid,
            Clock.monotonic() - held.at,
            origin(held.stack),
            self._whose(holder),
            RequestInfo.of(held.request) if held.request is not None else None,
            holder.ending,
        )
        if holder.ending is not Ending.OPEN:
            return slot
        if row is not None and row.state is not None:
            return replace(slot, doing=row.state, query=row.query or None)
        living = holder.facts.reference()
        return slot if living is None else replace(slot, doing=holder.facts.library.transaction_status(living))

    def _whose(self, holder: Holder) -> str:
        owner = whose(holder.held.owner, self._nodeid())
        if holder.pool_facts is None or holder.checkout is not None:
            return owner
        return f"{owner}, idle in pool {holder.pool_facts.name!r}"

    def _crowd(self, target: Target | None) -> str:
        holders = [holder for holder in self._ledger.holders() if holder.ending is Ending.OPEN]
        known = {holder.facts.server for holder in holders}
        if target is None or target.server not in known:
            # It failed before it knew where it was going: with one server there is no doubt.
            facts = holders[0].facts if len(known) == 1 else None
            target = Target(facts.server, facts.user, facts.dbname) if facts is not None else None
        if target is None:
            return crowd_note(Crowd([self._slot(holder, None) for holder in holders]), self._root)
        server, user, dbname = target.server, target.user, target.dbname
        own = [holder for holder in holders if holder.facts.server == server]
        pids = {holder.facts.backend_pid for holder in own}
        others = [client for client in self._ask(server, lock_queries.clients) if client.pid not in pids]
        limits = self._ask(server, lambda observer: [lock_queries.limits(observer, user, dbname)])
        slots = [self._slot(holder, None) for holder in own]
        return crowd_note(Crowd(slots, others, next(iter(limits), None)), self._root)

    def _ask(self, server: Server, question: Callable[[Observer], Iterable[Any]]) -> Iterable[Any]:
        """Ask the observer of a server; nothing where the server is full even for that one."""
        open_here = (holder.facts for holder in self._ledger.holders() if holder.ending is Ending.OPEN)
        observer = self._observers.seeing(open_here).get(server)
        try:
            return question(observer) if observer is not None else ()
        except ObserverError:
            return ()


def _other_loop(facts: PoolFacts | None) -> Literal["closed", "another"] | None:
    """Tell of a pool that was opened in an event loop which is not the running one: it waits for that in vain."""
    if facts is None or facts.loop is None:
        return None
    loop = facts.loop()
    if loop is None or loop.is_closed():
        return "closed"
    running = running_loop()
    return None if running is not None and running() is loop else "another"


def is_full(text: str) -> bool:
    """Tell whether an error says that there are too many connections."""
    return any(part in text for part in NO_ROOM)


def has_note(error: BaseException) -> bool:
    """Tell whether an error has a note of this module's."""
    return any(isinstance(note, str) and note.startswith(PREFIX) for note in getattr(error, "__notes__", ()))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Go through an error and all those behind it or in it."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            pending += current.exceptions


def _weakly(error: BaseException) -> Callable[[], BaseException | None]:
    try:
        return weakref.ref(error)
    except TypeError:  # of a class with neither a dictionary nor weak references
        return lambda: None


def _target_of(error: BaseException) -> Target | None:
    pgconn = getattr(error, "pgconn", None)
    try:
        host, port, user, dbname = (
            getattr(pgconn, name).decode(errors="replace") for name in ("host", "port", "user", "db")
        )
    except Exception:  # noqa: BLE001 - a connection that failed may not know where it was going
        return None
    return Target((host, port), user, dbname)
