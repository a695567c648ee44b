"""From what a connection is asked for, and its status before and after, to a transaction that has ended."""

from __future__ import annotations

import itertools
import weakref

import pytest
from builders import CALL, backend, connection_facts, moment

from pytest_pgleak.events import EventKind
from pytest_pgleak.requests import Request
from pytest_pgleak.transaction_tracking import Operation, TransactionTracking
from pytest_pgleak.transactions import How

FACTS = connection_facts()
WROTE = backend(backend_xid="739", written=(16389,), query="insert into visits values (now())")
READ = backend(query="select 1")
READ_WITH_XID = backend(backend_xid="739", query="select 1 for update")

INSERT = Operation(statement="insert into visits values (now())")
SELECT = Operation(statement="select 1")
COMMIT = Operation(How.COMMIT)
ROLLBACK = Operation(How.ROLLBACK)
BLOCK = Operation(is_block=True)
FAILED_BLOCK = Operation(is_block=True, fails=True)
FORCED_BLOCK = Operation(is_block=True, forced=True)


class Follower:
    """A connection that is followed: `do` is one operation, the row is what the server would show before it."""

    def __init__(self, request=None):
        self.events = []
        self.looks = 0
        self.row = READ
        self.status = "IDLE"
        self.clock = itertools.count(1)
        self.tracking = TransactionTracking(
            self.events.append, lambda: moment(CALL, float(next(self.clock)), request=request), self.look
        )

    def look(self, facts, connection):
        assert facts is FACTS
        self.looks += 1
        return self.row

    def do(self, operation, after, error=None, row=None, autocommit=False):
        before, self.status = self.status, after
        self.tracking.before(10, FACTS, object(), before, operation)
        self.tracking.after(10, FACTS, (before, after), operation, error, autocommit)
        self.row = row or self.row

    def ending(self, how):
        self.tracking.ending(10, FACTS, object(), self.status, how)

    @property
    def ended(self):
        return [event.transaction for event in self.events if event.kind is EventKind.TRANSACTION_ENDED]


@pytest.fixture
def follower():
    return Follower()


def test_a_statement_begins_it(follower):
    follower.do(SELECT, "INTRANS")
    assert [event.kind for event in follower.events] == [EventKind.TRANSACTION_BEGAN]
    assert follower.looks == 0


@pytest.mark.parametrize("how", [How.CLOSE, How.COLLECTED])
def test_what_only_read_is_nothing(follower, how):
    follower.do(SELECT, "INTRANS")
    follower.ending(how)
    assert follower.ended == []


def test_what_has_written_is_known_before_it_ends(follower):
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.ending(How.CLOSE)
    (transaction,) = follower.ended
    assert (transaction.how, transaction.status, transaction.evidence) == (How.CLOSE, "INTRANS", WROTE)
    assert transaction.wrote == transaction.began
    assert not transaction.committed


def test_the_statement_that_wrote_first_is_named(follower):
    follower.do(SELECT, "INTRANS")
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(SELECT, "INTRANS")
    follower.do(SELECT, "INTRANS")
    follower.ending(How.CLOSE)
    (transaction,) = follower.ended
    assert transaction.began.at < transaction.wrote.at < transaction.ended.at
    assert transaction.wrote.at == 2.0
    assert follower.looks == 4  # before each further statement, and before the end


def test_after_the_first_write_it_is_looked_at_less_and_less_often(follower):
    follower.do(INSERT, "INTRANS", row=WROTE)
    for _ in range(1000):
        follower.do(SELECT, "INTRANS")
    assert follower.looks == 11  # after 1, 2, 3, 5, 9, … statements


def test_what_runs_at_this_moment_is_not_looked_at(follower):
    follower.do(INSERT, "ACTIVE", row=WROTE)  # a pipeline, a COPY
    follower.do(INSERT, "INERROR", ValueError())
    follower.do(COMMIT, "IDLE")
    assert (follower.ended, follower.looks) == ([], 0)


def test_in_a_pipeline_a_block_ends_with_the_pipeline():
    follower = Follower(Request(1, "GET", "/"))
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(FAILED_BLOCK, "ACTIVE")
    follower.do(Operation(), "IDLE")
    (transaction,) = follower.ended
    assert (transaction.how, transaction.savepoint) == (How.ROLLBACK, None)


def test_in_a_pipeline_a_savepoint_ends_with_the_next_round_trip(follower):
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(BLOCK, "ACTIVE")
    follower.do(Operation(), "INTRANS")
    follower.ending(How.CLOSE)
    (transaction,) = follower.ended
    assert transaction.savepoint is not None


def test_a_transaction_of_a_pipeline_is_seen_when_it_has_been_sent(follower):
    follower.do(Operation(), "ACTIVE", autocommit=True)
    follower.do(INSERT, "INTRANS", row=WROTE, autocommit=True)
    follower.ending(How.CLOSE)
    assert [transaction.how for transaction in follower.ended] == [How.CLOSE]


def test_a_transaction_whose_end_nobody_saw_gives_way_to_the_next(follower):
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.status, follower.row = "IDLE", READ
    follower.do(SELECT, "INTRANS")
    follower.ending(How.CLOSE)
    assert follower.ended == []


def test_a_transaction_id_without_a_written_table_is_no_write(follower):
    follower.do(SELECT, "INTRANS", row=READ_WITH_XID)
    follower.ending(How.CLOSE)
    assert follower.ended == []


def test_a_failed_transaction_keeps_what_was_known_before_it_failed(follower):
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(SELECT, "INERROR", ZeroDivisionError(), row=READ)
    follower.do(COMMIT, "IDLE")
    (transaction,) = follower.ended
    assert (transaction.how, transaction.status, transaction.evidence) == (How.COMMIT, "INERROR", WROTE)
    assert transaction.failed_by == "ZeroDivisionError"
    assert not transaction.committed


def test_a_refused_first_statement_has_written_nothing(follower):
    follower.do(INSERT, "INERROR", ValueError())
    follower.do(ROLLBACK, "IDLE")
    assert follower.ended == []
    assert follower.looks == 0


def test_a_savepoint_rolled_back_takes_its_writes_with_it(follower):
    follower.do(SELECT, "INTRANS")
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(FAILED_BLOCK, "INTRANS", row=READ_WITH_XID)
    follower.ending(How.CLOSE)
    assert follower.ended == []


def test_a_savepoint_released_is_remembered(follower):
    follower.do(SELECT, "INTRANS")
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(BLOCK, "INTRANS", row=backend(backend_xid="739", written=(1,), query='RELEASE "_pg3_1"'))
    follower.ending(How.CLOSE)
    (transaction,) = follower.ended
    assert transaction.savepoint is not None
    assert transaction.evidence.query == WROTE.query


@pytest.mark.parametrize(
    ("operation", "how", "forced"),
    [
        (COMMIT, How.COMMIT, False),
        (ROLLBACK, How.ROLLBACK, False),
        (BLOCK, How.COMMIT, False),
        (FAILED_BLOCK, How.ROLLBACK, False),
        (FORCED_BLOCK, How.ROLLBACK, True),
        (Operation(statement="COMMIT"), How.COMMIT, False),
        (Operation(statement=" end transaction"), How.COMMIT, False),
        (Operation(statement="rollback"), How.ROLLBACK, False),
        (Operation(statement="ABORT"), How.ROLLBACK, False),
        (Operation(statement="prepare transaction 'x'"), How.PREPARED, False),
        (Operation(statement="call archive()"), How.UNKNOWN, False),
    ],
)
def test_what_ended_it(operation, how, forced):
    follower = Follower(Request(1, "GET", "/"))
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(operation, "IDLE")
    (transaction,) = follower.ended
    assert (transaction.how, transaction.forced) == (how, forced)
    assert transaction.committed is (how is How.COMMIT)


def test_a_commit_that_raises_has_not_committed():
    follower = Follower(Request(1, "GET", "/"))
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(COMMIT, "IDLE", ValueError())
    (transaction,) = follower.ended
    assert transaction.error == "ValueError"
    assert not transaction.committed


def test_a_commit_outside_of_a_request_is_not_looked_at(follower):
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(COMMIT, "IDLE")
    assert (follower.ended, follower.looks) == ([], 0)


@pytest.mark.parametrize(("status", "after"), [(None, False), (200, True)])
def test_whether_the_response_had_started(status, after):
    request = Request(1, "GET", "/")
    follower = Follower(request)
    follower.do(INSERT, "INTRANS", row=WROTE)
    request.status = status
    follower.do(COMMIT, "IDLE")
    (transaction,) = follower.ended
    assert (transaction.began_after_response, transaction.after_response) == (False, after)


def test_statements_that_commit_by_themselves_are_no_transactions(follower):
    follower.do(INSERT, "IDLE", autocommit=True)
    follower.do(INSERT, "ACTIVE", autocommit=True)  # a pipeline
    follower.ending(How.CLOSE)
    assert follower.events == []


def test_an_explicit_begin_on_such_a_connection_is_one(follower):
    follower.do(Operation(statement="begin"), "INTRANS", autocommit=True)
    follower.do(INSERT, "INTRANS", row=WROTE, autocommit=True)
    follower.ending(How.CLOSE)
    assert [transaction.how for transaction in follower.ended] == [How.CLOSE]


def test_what_was_begun_before_anybody_looked_is_not_followed(follower):
    follower.status = "INTRANS"
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(ROLLBACK, "IDLE")
    follower.ending(How.CLOSE)
    assert follower.ended == []


@pytest.mark.parametrize("status", ["INTRANS", "INERROR", "ACTIVE"])
def test_a_return_is_told_whether_it_wrote_or_not(follower, status):
    follower.do(SELECT, status)
    follower.ending(How.POOL)
    (transaction,) = follower.ended
    assert (transaction.how, transaction.status, transaction.wrote) == (How.POOL, status, None)


def test_a_return_of_an_idle_connection_is_not(follower):
    follower.ending(How.POOL)
    assert follower.events == []


def test_the_garbage_collector_brings_its_own_row(follower):
    follower.do(INSERT, "INTRANS")
    follower.tracking.collected(10, FACTS, "INTRANS", WROTE)
    (transaction,) = follower.ended
    assert (transaction.how, transaction.evidence) == (How.COLLECTED, WROTE)
    assert follower.looks == 0


def test_a_connection_that_is_gone_is_forgotten(follower):
    follower.do(INSERT, "INTRANS", row=WROTE)
    assert follower.tracking.is_open(10)
    follower.tracking.forget(10)
    assert not follower.tracking.is_open(10)


def test_the_exception_around_a_rollback_is_its_cause(follower):
    follower.do(INSERT, "INTRANS", row=WROTE)
    try:
        raise LookupError
    except LookupError:
        follower.do(ROLLBACK, "IDLE")
    (transaction,) = follower.ended
    assert transaction.cause == "LookupError"


class Cursor:
    """Knows the server's answer, as psycopg's cursors do."""

    def __init__(self, statusmessage):
        self.statusmessage = statusmessage

    def operation(self, statement):
        return Operation(statement=statement, cursor=weakref.ref(self))


@pytest.mark.parametrize(
    ("answer", "how"),
    [("COMMIT", How.COMMIT), ("ROLLBACK", How.ROLLBACK), ("PREPARE TRANSACTION", How.PREPARED), ("CALL", How.UNKNOWN)],
)
def test_the_server_says_what_ended_it_where_the_text_does_not(follower, answer, how):
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(SELECT, "INTRANS")
    cursor = Cursor(answer)
    follower.do(cursor.operation("/* who knows */"), "IDLE")
    assert [transaction.how for transaction in follower.ended] == [how]


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        ("INSERT 0 1", True),
        ("UPDATE 12", True),
        ("DELETE 1", True),
        ("MERGE 3", True),
        ("COPY 5", True),
        ("INSERT 0 0", False),
        ("UPDATE 0", False),
        ("SELECT 7", False),
        ("CREATE TABLE", False),
        (None, False),
    ],
)
def test_what_commits_by_itself_may_make_good_for_a_rollback(answer, counts):
    follower, cursor = Follower(Request(1, "POST", "/")), Cursor(answer)
    follower.do(cursor.operation("insert"), "IDLE", autocommit=True)
    assert follower.ended == []  # there was nothing to make good for
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(ROLLBACK, "IDLE")
    follower.do(cursor.operation("insert"), "IDLE", autocommit=True)
    assert [transaction.how for transaction in follower.ended] == [How.ROLLBACK, *([How.COMMIT] if counts else [])]
    assert all(transaction.wrote for transaction in follower.ended)


def test_a_copy_that_commits_by_itself_may_have_been_a_write():
    follower = Follower(Request(1, "POST", "/"))
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(ROLLBACK, "IDLE")
    follower.do(Operation(statement="copy"), "ACTIVE", autocommit=True)
    follower.do(Operation(), "IDLE", autocommit=True)
    assert [transaction.committed for transaction in follower.ended] == [False, True]


def test_outside_of_a_request_it_is_not_even_looked_at(follower):
    cursor = Cursor("INSERT 0 1")
    follower.do(INSERT, "INTRANS", row=WROTE)
    follower.do(ROLLBACK, "IDLE")
    follower.do(cursor.operation("insert"), "IDLE", autocommit=True)
    assert [transaction.how for transaction in follower.ended] == [How.ROLLBACK]


def test_an_exception_that_somebody_is_handling_all_the_time_is_not(follower):
    try:
        raise LookupError
    except LookupError:
        follower.do(INSERT, "INTRANS", row=WROTE)
        follower.do(ROLLBACK, "IDLE")
    (transaction,) = follower.ended
    assert transaction.cause is None


def test_the_exception_of_its_first_statement_is_a_cause():
    follower = Follower()
    try:
        raise LookupError
    except LookupError as error:
        error.__context__ = None
        follower.row = WROTE
        follower.do(INSERT, "INTRANS", error)
        follower.do(ROLLBACK, "IDLE")
    (transaction,) = follower.ended
    assert transaction.cause == "LookupError"
