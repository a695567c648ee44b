"""What the ledger keeps of one connection and of one pool, and how that is shown."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pytest_pgleak.activity import Backend
from pytest_pgleak.events import ConnectionFacts, Moment, PoolFacts
from pytest_pgleak.hangs.holders import Holder
from pytest_pgleak.tasks import held_by_task
from pytest_pgleak.views import ConnectionView, Ending, PoolView

_IN_TRANSACTION: Final = ("INTRANS", "INERROR")
"""Names of psycopg's ``TransactionStatus``."""


@dataclass(slots=True)
class ConnectionRecord:
    """A connection, as the events tell of it."""

    facts: ConnectionFacts
    opened: Moment
    pool: int | None
    ending: Ending = Ending.OPEN
    checkout: Moment | None = None
    taken: Moment | None = None
    began: Moment | None = None
    transaction_status: str | None = None
    backend: Backend | None = None
    after_response: bool | None = None
    with_thread: bool = False
    settled: bool = False
    checkout_settled: bool = False
    was_finished: bool = False
    is_undone: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing about it can become a finding any more."""
        if self.checkout is not None and not self.checkout_settled:
            return False
        if self.ending is Ending.OPEN:
            return False
        return self.ending is Ending.CLOSED or self.pool is not None or self.settled


@dataclass(slots=True)
class PoolRecord:
    """A pool, as the events tell of it."""

    facts: PoolFacts | None = None
    opened: Moment | None = None
    ending: Ending = Ending.OPEN
    settled: bool = False
    dropped: int = 0


def view_pools(pools: Mapping[int, PoolRecord], connections: Iterable[ConnectionRecord]) -> dict[int, PoolView]:
    """Show the pools that have not been judged, by their serials."""
    views = {}
    for serial, pool in pools.items():
        if pool.facts is None or pool.settled:
            continue
        members = [record for record in connections if record.pool == serial]
        views[serial] = PoolView(
            serial,
            pool.facts,
            pool.opened,
            _pool_ending(pool),
            sum(record.ending is Ending.OPEN and not is_closed(record.facts) for record in members),
            sum(record.checkout is not None for record in members),
            pool.dropped,
            _has_lost_loop(pool.facts) or _have_lost_loop(members),
        )
    return views


def is_in_transaction(record: ConnectionRecord) -> bool:
    """Tell whether a connection is open, and in a transaction in which nothing runs."""
    living = record.facts.reference()
    if record.settled or record.ending is not Ending.OPEN or living is None:
        return False
    return record.facts.library.transaction_status(living) in _IN_TRANSACTION


def is_suspect(record: ConnectionRecord, ended: Container[int]) -> bool:
    """Tell whether a connection may become a finding at a checkpoint; see `Ledger.may_have_left`."""
    if record.settled:
        return False
    if record.opened.owner.serial in ended or (record.checkout or record.opened).owner.serial in ended:
        return True
    if record.ending is not Ending.OPEN or record.facts.reference() is None:
        return True
    return is_in_transaction(record)


def is_suspect_pool(pool: PoolRecord, ended: Container[int], judged: Container[int]) -> bool:
    """Tell whether a pool may become a finding at a checkpoint; see `Ledger.may_have_left`."""
    if pool.settled or pool.facts is None or pool.opened is None or pool.ending is Ending.CLOSED:
        return False
    owner = pool.opened.owner.serial
    is_gone = pool.ending is Ending.DROPPED or pool.facts.reference() is None
    return owner in ended or (is_gone and owner in judged)


def holder_of(serial: int, record: ConnectionRecord, pools: Mapping[int, PoolRecord]) -> Holder:
    """Show who holds a connection."""
    pool = pools.get(record.pool) if record.pool is not None else None
    return Holder(
        serial,
        record.facts,
        record.opened,
        record.ending,
        record.pool,
        pool.facts if pool is not None else None,
        pool.opened if pool is not None else None,
        record.checkout,
        record.began,
    )


def is_closed(facts: ConnectionFacts) -> bool:
    """Tell whether a connection is closed, or is no more."""
    connection = facts.reference()
    return connection is None or facts.library.is_closed(connection)


def _has_lost_loop(facts: ConnectionFacts | PoolFacts) -> bool:
    if facts.loop is None:
        return False
    loop = facts.loop()
    return loop is None or bool(loop.is_closed())


def _have_lost_loop(members: list[ConnectionRecord]) -> bool:
    """Tell whether a pool that has no loop of its own, as SQLAlchemy's, has only connections of one that is closed."""
    held = [record for record in members if record.ending is Ending.OPEN and not is_closed(record.facts)]
    return bool(held) and all(_has_lost_loop(record.facts) for record in held)


def _pool_ending(pool: PoolRecord) -> Ending:
    if pool.ending is not Ending.OPEN or pool.facts is None:
        return pool.ending
    living = pool.facts.reference()
    if living is None:
        return Ending.DROPPED
    return Ending.CLOSED if pool.facts.library.is_closed(living) else Ending.OPEN


def view_connection(serial: int, record: ConnectionRecord) -> ConnectionView:
    """Show a connection as it is now."""
    ending, status = record.ending, record.transaction_status
    living = record.facts.reference()
    if ending is Ending.OPEN and living is None:
        ending = Ending.DROPPED
    elif ending is Ending.OPEN and living is not None:
        status = record.facts.library.transaction_status(living)
        if record.facts.library.is_closed(living):
            ending = Ending.CLOSED
    held_since = record.taken or record.checkout or record.opened
    return ConnectionView(
        serial,
        record.facts,
        record.opened,
        ending,
        record.pool,
        None if record.checkout_settled else record.checkout,
        status,
        record.backend,
        record.after_response,
        held_by_task(held_since.task) if ending is Ending.OPEN else None,
        record.began,
        _has_lost_loop(record.facts),
        record.was_finished,
        record.is_undone,
        record.taken,
        record.with_thread,
    )
