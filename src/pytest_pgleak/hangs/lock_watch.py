"""Looks for statements that wait for a lock, ends the backends that were left behind, and says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pytest_pgleak.clock import Clock
from pytest_pgleak.hangs.blocking import Blocked, Blocker, message
from pytest_pgleak.hangs.holders import Holder, Phase, Present
from pytest_pgleak.hangs.lock_queries import (
    BlockerFacts,
    blocker_facts,
    lock_waits,
    prepared_transactions,
    relation_name,
)
from pytest_pgleak.hangs.lock_waits import LockWait, in_the_way
from pytest_pgleak.observer import Observer, ObserverError
from pytest_pgleak.observers import Server
from pytest_pgleak.views import Ending

if TYPE_CHECKING:
    from pytest_pgleak.state import State

_MOST_REMEMBERED: Final = 1000


@dataclass(frozen=True, slots=True)
class _Sight:
    """What one look at one server goes by: the connections of this process by pid, and what goes on."""

    server: Server
    observer: Observer
    own: dict[int, Holder]
    present: Present


class LockWatch:
    """Looks, and knows what it has told already.

    Args:
        state: The session's state.
        living: Returns the serials of the owners that are known to be alive.
        tell: Takes the messages.
    """

    def __init__(self, state: State, living: Callable[[], frozenset[int]], tell: Callable[[Phase, str], None]) -> None:
        self._state = state
        self._living = living
        self._tell = tell
        self._told: dict[object, None] = {}
        self._ended: dict[object, None] = {}

    def look(self, phase: Phase) -> None:
        """Look once.

        Args:
            phase: What pytest is doing; it has gone on for longer than ``pgleak_blocked_after``.
        """
        # In this order: whoever begins between the two has nothing among the holders that could be taken for left over.
        holders = [holder for holder in self._state.ledger.holders() if holder.ending is Ending.OPEN]
        present = Present(phase, self._living())
        for server, observer in self._state.observers.seeing(holder.facts for holder in holders).items():
            own = {holder.facts.backend_pid: holder for holder in holders if holder.facts.server == server}
            if observer.make_way():
                continue
            try:
                observer.connect()
            except ObserverError:
                continue  # it may be stopping, or be full; the checkpoints complain where there is reason to
            try:
                self._look_at(_Sight(server, observer, own, present))
            except ObserverError as error:
                self._state.note(f"could not look for statements that wait for a lock: {error}")

    def _look_at(self, sight: _Sight) -> None:
        databases = [name for server, name in tuple(self._state.watched_databases) if server == sight.server]
        for wait in lock_waits(sight.observer, sight.own, databases, self._state.settings.blocked_after):
            if not wait.blocked_by:
                continue  # released at this very moment
            blockers = self._blockers(sight, wait)
            leftovers = {blocker.pid for blocker in blockers if self._may_end(sight, blocker)}
            statement = (sight.server, wait.pid, wait.query_start, wait.lock)
            if statement in self._told and not leftovers:
                continue
            _remember(self._told, statement)
            # All that is asked is asked before anybody is ended: a DROP that goes on takes the name of its table along.
            blocked = self._describe(sight, wait)
            done = tuple(self._end(sight, blocker) if blocker.pid in leftovers else blocker for blocker in blockers)
            self._tell(sight.present.phase, message(replace(blocked, blockers=done), self._state.config.rootpath))

    def _blockers(self, sight: _Sight, wait: LockWait) -> list[Blocker]:
        pids = [pid for pid in wait.blocked_by if pid]
        rows = {row.pid: row for row in sight.observer.backends(pids)}
        facts = blocker_facts(sight.observer, pids)
        now = Clock.monotonic()
        blockers = []
        for pid in pids:
            known, holder, row = facts.get(pid, BlockerFacts()), sight.own.get(pid), rows.get(pid)
            if holder is not None and row is not None and row.datname != holder.facts.dbname:
                holder = None  # the connection was ended unnoticed, and its pid is somebody else's by now
            is_over = (
                holder is not None
                and row is not None
                and row.state is not None  # or nobody may know whether it is in a transaction
                and sight.present.is_leftover(holder, known.transaction_age, now)
            )
            blockers.append(Blocker(pid, row, known.backend_type, known.waits, holder, is_over))
        return blockers

    def _describe(self, sight: _Sight, wait: LockWait) -> Blocked:
        oid = wait.lock.relation
        return Blocked(
            sight.present.phase,
            wait,
            relation_name(sight.observer, wait.datname, oid) if oid is not None else None,
            sight.own.get(wait.pid),
            prepared=in_the_way(wait.lock, prepared_transactions(sight.observer, wait.pid))
            if 0 in wait.blocked_by
            else (),
        )

    def _may_end(self, sight: _Sight, blocker: Blocker) -> bool:
        return (
            blocker.is_over
            and blocker.holder is not None
            and blocker.backend is not None
            and (sight.server, blocker.backend.identity) not in self._ended
            and self._state.may_terminate(blocker.holder.facts)
        )

    def _end(self, sight: _Sight, blocker: Blocker) -> Blocker:
        assert blocker.backend is not None
        _remember(self._ended, (sight.server, blocker.backend.identity))
        try:
            sight.observer.terminate([blocker.pid])
        except ObserverError as error:
            return replace(blocker, trouble=str(error))
        return replace(blocker, terminated=True)


def _remember(memory: dict[object, None], key: object) -> None:
    while len(memory) >= _MOST_REMEMBERED:
        del memory[next(iter(memory))]
    memory[key] = None
