"""Follows each transaction from its first statement to its end, and asks the server whether it wrote.

Whether a rollback loses something is known only to the server, and only while the transaction is open: afterwards the
row shows no transaction id, and neither does the row of a transaction that has failed. So the server is asked before
each further statement until the transaction has written, now and then after that, and before anything that may end it.
"""

from __future__ import annotations

import itertools
import re
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pytest_pgleak.activity import Backend
from pytest_pgleak.awaiters import awaiter
from pytest_pgleak.events import ConnectionFacts, Event, EventKind, Moment
from pytest_pgleak.prepared.gids import GidUse
from pytest_pgleak.transactions import How, Transaction

IDLE: Final = "IDLE"
_OPEN: Final = ("INTRANS", "INERROR")
_BY_KEYWORD: Final = {
    "commit": How.COMMIT,
    "end": How.COMMIT,
    "rollback": How.ROLLBACK,
    "abort": How.ROLLBACK,
    "prepare": How.PREPARED,
}
_BY_ANSWER: Final = {"COMMIT": How.COMMIT, "ROLLBACK": How.ROLLBACK, "PREPARE TRANSACTION": How.PREPARED}
_CHANGES: Final = re.compile(r"(INSERT 0|UPDATE|DELETE|MERGE|COPY) [1-9]")


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that a connection is asked to do.

    Attributes:
        how: The end of a transaction that it asks for; None for a statement, which may still bring one about.
        statement: Its SQL text, where it is a statement.
        is_block: Whether it is the end of a ``conn.transaction()`` block, that may be a savepoint's.
        begins_block: Whether it is the beginning of one.
        fails: Whether such a block is left by an exception.
        forced: Whether such a block rolls back whatever happens.
        gids: The prepared transactions that it prepares or finishes.
        parameters: The parameters of the statement. They are not kept.
        cursor: The cursor that executes it, weakly: it will know the server's answer.
        answered: The server's answer, where that is known without a cursor.
        prepared: Name and text of a statement that it has prepared, where `Library.prepared` does not know of it.
    """

    how: How | None = None
    statement: str | None = None
    is_block: bool = False
    begins_block: bool = False
    fails: bool = False
    forced: bool = False
    gids: tuple[GidUse, ...] = ()
    parameters: Any = field(default=None, repr=False)
    cursor: weakref.ref[Any] | None = field(default=None, repr=False)
    answered: str = ""
    prepared: tuple[str, str] | None = None

    @property
    def answer(self) -> str:
        """The server's answer to a statement that was executed, as ``INSERT 0 1``; empty where there is none."""
        cursor = self.cursor() if self.cursor is not None else None
        return str(cursor.statusmessage or "") if cursor is not None else self.answered


@dataclass(slots=True)
class _Open:
    """A transaction that goes on."""

    began: Moment
    last: Moment
    began_after_response: bool = False
    evidence: Backend | None = None
    wrote: Moment | None = None
    stale: bool = False
    failed_by: str | None = None
    savepoint: Moment | None = None
    queued: Operation | None = None
    since: int = 0
    handled: int = 0
    cause: str | None = None
    ending: Moment | None = None


class TransactionTracking:
    """Knows the open transactions of the connections that are followed.

    Args:
        record: Takes each event.
        moment: Says when, where and on whose account something happens now.
        look: Reads the server's row of a connection.
    """

    def __init__(
        self,
        record: Callable[[Event], None],
        moment: Callable[[], Moment],
        look: Callable[[ConnectionFacts, Any], Backend | None],
    ) -> None:
        self.record = record
        self._moment = moment
        self._look = look
        self._serials = itertools.count(1)
        self._open: dict[int, _Open] = {}

    def forget(self, serial: int) -> None:
        """Let go of a connection that is gone."""
        self._open.pop(serial, None)

    def is_open(self, serial: int) -> bool:
        """Tell whether a transaction of a connection is being followed."""
        return serial in self._open

    def before(self, serial: int, facts: ConnectionFacts, connection: Any, status: str, operation: Operation) -> None:
        """A connection is about to do something.

        Args:
            serial: Its number.
            facts: What is known of it.
            connection: The connection.
            status: Name of its ``TransactionStatus``.
            operation: What it does.
        """
        transaction = self._open.get(serial)
        if transaction is None or status in ("INERROR", "ACTIVE"):
            return  # what is running at this moment may still be refused
        if how_of(operation) is How.COMMIT and not operation.is_block:
            if transaction.wrote is None and transaction.began.request is not None:
                self._ask(transaction, facts, connection)
        elif (
            transaction.wrote is None or transaction.stale or how_of(operation) is How.ROLLBACK or _is_due(transaction)
        ):
            self._ask(transaction, facts, connection)

    def after(
        self,
        serial: int,
        facts: ConnectionFacts,
        statuses: tuple[str, str],
        operation: Operation,
        error: BaseException | None,
        is_autocommit: bool,
    ) -> None:
        """A connection has done something.

        Args:
            serial: Its number.
            facts: What is known of it.
            statuses: Names of its ``TransactionStatus`` before and after.
            operation: What it did.
            error: The exception that it ended with.
            is_autocommit: Whether statements of their own are committed at once.
        """
        before, now = statuses
        transaction = self._open.get(serial)
        if transaction is not None:
            operation = _in_its_turn(transaction, operation, now)
        if now == IDLE and (transaction is not None or how_of(operation) is not None):
            self.record(Event(EventKind.TRANSACTION_FINISHED, serial))
        if now in (IDLE, "UNKNOWN"):
            if transaction is not None:
                del self._open[serial]
                how = how_of(operation) or _BY_ANSWER.get(operation.answer, How.UNKNOWN)
                self._ended(serial, facts, transaction, how, before, operation=operation, error=error)
            elif is_autocommit and error is None and (before == "ACTIVE" or _CHANGES.match(operation.answer)):
                self._committed_by_itself(serial, facts)  # what a pipeline or a COPY did may have been a write
        elif transaction is not None and before != IDLE:
            self._goes_on(transaction, before, now, operation, error)
        elif (before in (IDLE, "ACTIVE") and now in _OPEN) or (before == IDLE and not is_autocommit):
            moment = self._moment()
            self._open[serial] = _Open(moment, moment, _has_started(moment))
            self._open[serial].failed_by = type(error).__name__ if error else None
            # What somebody further out is handling has nothing to do with how it will end.
            self._open[serial].handled = id(error.__context__ if error else sys.exc_info()[1])
            self.record(Event(EventKind.TRANSACTION_BEGAN, serial, moment))

    def ending(self, serial: int, facts: ConnectionFacts, connection: Any, status: str, how: How) -> None:
        """A connection is about to be closed or given back, whatever its transaction.

        Args:
            serial: Its number.
            facts: What is known of it.
            connection: The connection.
            status: Name of its ``TransactionStatus``.
            how: What ends it.
        """
        transaction = self._open.pop(serial, None)
        if status in (IDLE, "UNKNOWN"):
            return
        if transaction is None:
            if how is not How.POOL:
                return  # begun before anybody looked
            moment = self._moment()
            transaction = _Open(moment, moment)
        if status != "INERROR":
            self._ask(transaction, facts, connection)
        self._ended(serial, facts, transaction, how, status)

    def collected(self, serial: int, facts: ConnectionFacts, status: str, backend: Backend | None) -> None:
        """A connection is being freed by the garbage collector, its transaction open."""
        transaction = self._open.pop(serial, None)
        if transaction is None or status == IDLE:
            return
        if status != "INERROR" and backend is not None:
            _take(transaction, backend)
        self._ended(serial, facts, transaction, How.COLLECTED, status)

    def ending_because_of(self, serial: int, error: BaseException) -> None:
        """The transaction of a connection is about to be ended, because of an exception that a library handles.

        Args:
            serial: The connection's number.
            error: The exception.
        """
        transaction = self._open.get(serial)
        if transaction is not None and id(error) != transaction.handled:
            transaction.cause = type(error).__name__
            transaction.ending = self._moment()

    def _goes_on(
        self, transaction: _Open, before: str, now: str, operation: Operation, error: BaseException | None
    ) -> None:
        moment = self._moment()
        if operation.statement is not None:
            transaction.last = moment
        if error is not None and now == "INERROR":
            transaction.failed_by = type(error).__name__
        if now == "ACTIVE":
            return
        if operation.is_block and not operation.fails and not operation.forced:
            transaction.savepoint = moment
        if before == "INERROR" or operation.is_block:
            # Rolled back to a savepoint: what was written since may be gone, its transaction id stays.
            transaction.stale = True

    def _committed_by_itself(self, serial: int, facts: ConnectionFacts) -> None:
        """Note a write outside of a transaction, where it may make good for one that was rolled back."""
        moment = self._moment()
        if moment.request is not None and moment.request.rolled_back:
            transaction = _Open(moment, moment, _has_started(moment), wrote=moment)
            self._ended(serial, facts, transaction, How.COMMIT, IDLE)

    def _ask(self, transaction: _Open, facts: ConnectionFacts, connection: Any) -> None:
        backend = self._look(facts, connection)
        if backend is not None:
            _take(transaction, backend)

    def _ended(
        self,
        serial: int,
        facts: ConnectionFacts,
        transaction: _Open,
        how: How,
        status: str,
        operation: Operation | None = None,
        error: BaseException | None = None,
    ) -> None:
        if transaction.wrote is None and how is not How.POOL:
            return  # it only read: nothing is lost however it ends
        # What a library does to end it may come from a task of its own.
        moment = transaction.ending or self._moment()
        if how is not How.COMMIT and moment.request is not None:
            moment.request.rolled_back = True
        cause = _being_handled(transaction) if error is None else None
        self.record(
            Event(
                EventKind.TRANSACTION_ENDED,
                serial,
                transaction=Transaction(
                    next(self._serials),
                    serial,
                    facts,
                    transaction.began,
                    moment,
                    how,
                    status,
                    wrote=transaction.wrote,
                    evidence=transaction.evidence,
                    error=type(error).__name__ if error is not None else None,
                    cause=cause,
                    failed_by=transaction.failed_by,
                    forced=operation is not None and operation.forced,
                    savepoint=transaction.savepoint,
                    began_after_response=transaction.began_after_response,
                    after_response=None if moment.request is None else _has_started(moment),
                ),
            )
        )


def _being_handled(transaction: _Open) -> str | None:
    """Return the name of the exception that is being handled here, or by whoever awaits this, since it began."""
    if transaction.cause is not None:
        return transaction.cause
    cause = sys.exc_info()[1]
    if cause is None and (waiting := awaiter()) is not None:
        return waiting.cause if waiting.identity != transaction.handled else None
    return type(cause).__name__ if cause is not None and id(cause) != transaction.handled else None


def _has_started(moment: Moment) -> bool:
    return moment.request is not None and moment.request.status is not None


def _is_due(transaction: _Open) -> bool:
    """Tell whether to look again: what was written first may have been a sequence, or a temporary table."""
    transaction.since += 1
    return transaction.since & (transaction.since - 1) == 0


def _in_its_turn(transaction: _Open, operation: Operation, now: str) -> Operation:
    """Return what has really been done: in a pipeline, what was asked for is done later, by something else."""
    if now == "ACTIVE":
        transaction.queued = (
            replace(operation, parameters=None) if how_of(operation) is not None else transaction.queued
        )
        return operation
    queued, transaction.queued = transaction.queued, None
    return operation if queued is None or how_of(operation) is not None else queued


def _take(transaction: _Open, backend: Backend) -> None:
    transaction.stale = False
    if backend.has_written:
        if transaction.evidence is not None and _is_of_a_block(backend.query):
            backend = replace(backend, query=transaction.evidence.query)
        transaction.evidence = backend
        transaction.wrote = transaction.wrote or transaction.last
    else:
        transaction.evidence = transaction.wrote = None


def _is_of_a_block(query: str | None) -> bool:
    return query is not None and query.startswith(("RELEASE ", "SAVEPOINT "))


def how_of(operation: Operation) -> How | None:
    """Return the end of a transaction that an operation asks for, in whatever way; None for any other statement."""
    if operation.is_block:
        return How.ROLLBACK if operation.fails or operation.forced else How.COMMIT
    if operation.how is not None or operation.statement is None:
        return operation.how
    keyword = operation.statement.lstrip()[:9].lower()
    return next((how for word, how in _BY_KEYWORD.items() if keyword.startswith(word)), None)
