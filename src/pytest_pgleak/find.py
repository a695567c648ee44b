"""`find`: from what the client did and what the server sees to findings. Pure: values in, findings out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_pgleak.activity import Activity, Backend
from pytest_pgleak.events import ConnectionFacts, Moment
from pytest_pgleak.findings import Finding, PoolState, Subject, words_of
from pytest_pgleak.frames import is_user_code, origin, user_frames
from pytest_pgleak.kinds import (
    COMMIT_AFTER_RESPONSE,
    CONNECTION_DROPPED,
    CONNECTION_NOT_CLOSED,
    CONNECTION_NOT_RETURNED,
    NESTED_CHECKOUT,
    POOL_NOT_CLOSED,
    SESSION_STATE,
    TRANSACTION_LEFT_OPEN,
    UNTRACKED_BACKEND,
)
from pytest_pgleak.lost_writes import kind_of, request_of
from pytest_pgleak.nesting import is_for_a_test
from pytest_pgleak.owners import Owner
from pytest_pgleak.requests import RequestInfo
from pytest_pgleak.transactions import Transaction
from pytest_pgleak.views import ConnectionView, Ending, PoolView, View


@dataclass(frozen=True, slots=True)
class Question:
    """What one checkpoint asks about.

    Attributes:
        asker: The owner whose end is being judged; transactions and new backends are its doing.
        ended: Serials of the owners that have ended: they must not hold anything.
        judged: Serials of all owners that this checkpoint speaks about, living ones included: what they dropped is
            found whether they ended or not. The ended ones are always judged.
        transactions: Whether open transactions on connections that live on are this checkpoint's business.
        in_transaction_before: Serials of the connections that were not idle when the asker began.
        failed: Whether the asker has failed by itself.
        late_commits: Whether writes that were committed after the response are to be found.
        left_open: Connections that were in a transaction of a fixture's set-up when its teardown began.
    """

    asker: Owner
    ended: frozenset[int] = frozenset()
    judged: frozenset[int] = frozenset()
    transactions: bool = False
    in_transaction_before: frozenset[int] = field(default_factory=frozenset)
    failed: bool = False
    late_commits: bool = False
    left_open: tuple[ConnectionView, ...] = ()


def find(view: View, activity: Activity, question: Question) -> tuple[Finding, ...]:
    """Judge.

    Where two kinds describe one mistake, the more specific one stands: a pool's idle members are part of the pool, and
    a connection that is checked out is neither "not closed" nor "in transaction" but "not returned".

    Args:
        view: The ledger.
        activity: The server, as far as somebody looked.
        question: Whose end is being judged.

    Returns:
        The findings in the order in which the things were opened; new backends last.
    """
    found: list[tuple[float, Finding]] = [
        (pool.opened.at, _of_pool(pool, pool.opened))
        for pool in view.pools.values()
        if pool.opened is not None and _pool_left(pool, pool.opened, question)
    ]
    for connection in view.connections:
        kind = _kind(connection, view, question)
        if kind == TRANSACTION_LEFT_OPEN:
            owner = answers_for_transaction(connection, question.asker)
            found.append(_of_open_transaction(connection, owner, view, activity))
        elif kind is not None:
            found.append((connection.held.at, _of_connection(kind, connection, view, activity)))
    found.extend(_of_fixtures_transactions(found, view, activity, question))
    found.extend(_of_transactions(view, question))
    found.extend(_of_nested(view, question))
    found.extend(_of_sessions(view, question))
    found.sort(key=lambda entry: entry[0])
    return tuple(finding for _, finding in found) + _of_new_backends(activity, question)


def _kind(connection: ConnectionView, view: View, question: Question) -> str | None:
    if connection.checkout is not None:
        return _kind_of_checkout(connection, connection.checkout, view, question)
    if connection.pool is not None:
        return None  # an idle member of a pool: capacity, or part of `pool-not-closed`
    owner = connection.opened.owner.serial
    if connection.ending is Ending.DROPPED:
        return CONNECTION_DROPPED if owner in question.ended or owner in question.judged else None
    if connection.ending is Ending.OPEN and owner in question.ended:
        return CONNECTION_NOT_CLOSED
    return _kind_of_transaction(connection, question)


def _kind_of_checkout(connection: ConnectionView, checkout: Moment, view: View, question: Question) -> str | None:
    owner = checkout.owner.serial
    pool = view.pools.get(connection.pool) if connection.pool is not None else None
    pool_is_open = pool is not None and pool.ending is Ending.OPEN
    if connection.ending is Ending.CLOSED and not pool_is_open:
        return None  # closed by hand after its pool had gone: nothing is left of either
    if connection.ending is Ending.DROPPED and pool is not None and pool.ending is Ending.DROPPED:
        return None  # it went down with its pool: `pool-not-closed` is the mistake
    if owner in question.ended:
        return CONNECTION_NOT_RETURNED
    if connection.ending is Ending.DROPPED:
        return CONNECTION_NOT_RETURNED if owner in question.judged else None
    return _kind_of_transaction(connection, question)


def _kind_of_transaction(connection: ConnectionView, question: Question) -> str | None:
    if not question.transactions or connection.ending is not Ending.OPEN or not connection.in_transaction:
        return None
    if connection.serial in question.in_transaction_before:
        return None  # somebody opened it on purpose before: an outer transaction that isolates tests
    if connection.began is not None and connection.began.owner != question.asker:
        return None  # an application's own worker, a fixture's own thread: not the asker's doing
    return TRANSACTION_LEFT_OPEN


def _pool_left(pool: PoolView, opened: Moment, question: Question) -> bool:
    if pool.ending is Ending.CLOSED:
        return False
    library = pool.facts.library
    if library.pool_keeps_nothing or (library.pool_is_lazy and not pool.members and not pool.dropped):
        return False  # it holds nothing, and never did
    owner = opened.owner.serial
    return owner in question.ended or (pool.ending is Ending.DROPPED and owner in question.judged)


def _of_pool(pool: PoolView, opened: Moment) -> Finding:
    state = PoolState(pool.facts, pool.ending, pool.members, pool.checked_out)
    return finding_at(
        POOL_NOT_CLOSED,
        "pool",
        pool.serial,
        opened.owner,
        opened,
        pool.ending,
        pool=state,
        loop_is_closed=pool.loop_is_closed,
    )


def answers_for_transaction(connection: ConnectionView, asker: Owner) -> Owner:
    """Say who answers for a transaction that a test has left open on a connection which lives on.

    Where nobody has ever ended one on a connection of a wider fixture, or of the process, every test that uses it
    leaves one: what is to be changed is where it comes from.
    """
    holder, began = connection.held.owner, connection.began
    lives_on = holder.outlives_tests or (holder.what == "fixture" and holder.scope != "function")
    is_tests_own_work = began is not None and began.request is None
    return holder if lives_on and is_tests_own_work and not connection.was_finished else asker


def _of_connection(kind: str, connection: ConnectionView, view: View, activity: Activity) -> Finding:
    subject: Subject = "checkout" if kind == CONNECTION_NOT_RETURNED else "connection"
    held, facts = connection.held, _facts_of_connection(connection, view, activity)
    return finding_at(kind, subject, connection.serial, held.owner, held, connection.ending, **facts)


def _of_open_transaction(
    connection: ConnectionView, owner: Owner, view: View, activity: Activity
) -> tuple[float, Finding]:
    began, held = connection.began, connection.held
    facts = _facts_of_connection(connection, view, activity)
    facts["is_repeated"] = connection.is_undone and (began is None or began.request is None)
    if began is not None and owner == held.owner != began.owner:
        facts["began"] = origin(began.stack)
        moment = held
    else:
        facts["opened"] = origin(held.stack)
        moment = began if began is not None and began.owner == owner else held
    kind, ending = TRANSACTION_LEFT_OPEN, connection.ending
    return moment.at, finding_at(kind, "connection", connection.serial, owner, moment, ending, **facts)


def _of_fixtures_transactions(
    found: list[tuple[float, Finding]], view: View, activity: Activity, question: Question
) -> list[tuple[float, Finding]]:
    """Find the transactions that fixtures have left open for as long as they lived, if nothing else is found there."""
    named = {finding.serial for _, finding in found if finding.connection is not None}
    return [
        _of_open_transaction(each, each.began.owner, view, activity)
        for each in question.left_open
        if each.began is not None and each.began.owner.serial in question.ended and each.serial not in named
    ]


def _facts_of_connection(connection: ConnectionView, view: View, activity: Activity) -> dict[str, Any]:
    pool = view.pools.get(connection.pool) if connection.pool is not None else None
    return {
        "connection": connection.facts,
        "pool": None if pool is None else PoolState(pool.facts, pool.ending, pool.members, pool.checked_out),
        "transaction_status": connection.transaction_status,
        "backend": _backend(connection, activity),
        "server_known": activity.knows(connection.facts.backend_pid),
        "through": activity.through.get(connection.facts.backend_pid),
        "after_response": connection.after_response,
        "with_thread": connection.with_thread,
        "task": connection.task,
        "loop_is_closed": connection.loop_is_closed,
        "taken": origin(connection.taken.stack) if connection.taken is not None else None,
    }


def _backend(connection: ConnectionView, activity: Activity) -> Backend | None:
    now = activity.backends.get(connection.facts.backend_pid)
    # What was dropped was seen then; if its backend is still there, it serves somebody else now.
    return connection.backend or now if connection.ending is Ending.DROPPED else now or connection.backend


def _of_transactions(view: View, question: Question) -> list[tuple[float, Finding]]:
    """Find what became of writes; what happened in the same way, on the same lines, in one request is one finding."""
    groups: dict[tuple[object, ...], list[Transaction]] = {}
    for transaction in view.transactions:
        owner = transaction.work.owner.serial
        if owner not in question.ended and owner not in question.judged:
            continue
        kind = kind_of(transaction, view, question.failed)
        if kind is not None and (kind != COMMIT_AFTER_RESPONSE or question.late_commits):
            places = (origin(transaction.work.stack), origin(transaction.ended.stack))
            key = (kind, id(request_of(transaction)), transaction.how, *places)
            groups.setdefault(key, []).append(transaction)
    return [
        (transactions[0].ended.at, of_transactions(str(key[0]), transactions, view))
        for key, transactions in groups.items()
    ]


def of_transactions(kind: str, transactions: Sequence[Transaction], view: View) -> Finding:
    """Make the finding about transactions that have ended in the same way, on the same lines.

    Args:
        kind: Its kind.
        transactions: The transactions, at least one.
        view: The ledger, for their pools.
    """
    first = transactions[0]
    pool = view.pools.get(first.pool) if first.pool is not None else None
    if pool is None and first.pool_facts is not None:
        pool = PoolView(first.pool or 0, first.pool_facts, None, Ending.CLOSED)  # it has been closed since
    holder = first.holder or first.began
    moment = first.work
    if moment.request is None and first.ended.request is not None:
        moment = replace(moment, request=first.ended.request)
    return finding_at(
        kind,
        "transaction",
        first.serial,
        first.work.owner,
        moment,
        Ending.CLOSED,
        connection=first.facts,
        pool=None if pool is None else PoolState(pool.facts, pool.ending, pool.members, pool.checked_out),
        transaction_status=first.status,
        backend=first.evidence,
        server_known=True,
        after_response=first.after_response,
        opened=origin(holder.stack),
        transactions=tuple(transactions),
        ended_at=origin(first.ended.stack),
    )


def _of_nested(view: View, question: Question) -> list[tuple[float, Finding]]:
    found = []
    out = {connection.serial: connection.taken or connection.checkout for connection in view.connections}
    for nested in view.nested:
        if out.get(nested.held) is nested.first:
            continue  # it was never returned: that is the mistake
        pool, owner = view.pools.get(nested.pool), nested.second.owner.serial
        asked = owner in question.ended or owner in question.judged
        if asked and not is_for_a_test(nested.first):
            finding = finding_at(
                NESTED_CHECKOUT,
                "nested checkout",
                nested.serial,
                nested.second.owner,
                nested.second,
                Ending.CLOSED,
                connection=nested.facts,
                pool=None if pool is None else PoolState(pool.facts, pool.ending, pool.members, pool.checked_out),
                opened=origin(nested.first.stack),
            )
            found.append((nested.second.at, finding))
    return found


def _of_sessions(view: View, question: Question) -> list[tuple[float, Finding]]:
    found = []
    for each in view.sessions:
        pool, owner, moment = view.pools.get(each.pool or 0), each.holder.owner, each.moment
        if owner.serial not in question.ended and owner.serial not in question.judged:
            continue
        if moment.request is None and each.holder.request is not None:
            moment = replace(moment, request=each.holder.request)
        finding = finding_at(
            SESSION_STATE,
            "session",
            each.connection,
            owner,
            moment,
            # Waiting does not take it away: nobody has the connection.
            Ending.CLOSED,
            connection=each.facts,
            pool=None if pool is None else PoolState(pool.facts, pool.ending, pool.members, pool.checked_out),
            opened=origin(each.holder.stack),
            left=each.left,
            shared=each.shared,
        )
        found.append((moment.at, finding))
    return found


def _of_new_backends(activity: Activity, question: Question) -> tuple[Finding, ...]:
    ordered = sorted(activity.new, key=lambda backend: (backend.backend_start or "", backend.pid))
    return tuple(
        Finding(
            UNTRACKED_BACKEND,
            question.asker,
            None,
            Ending.OPEN,
            "backend",
            backend.pid,
            backend=backend,
            server_known=True,
        )
        for backend in ordered
    )


def finding_at(
    kind: str,
    subject: Subject,
    serial: int,
    owner: Owner,
    moment: Moment,
    ending: Ending,
    *,
    connection: ConnectionFacts | None = None,
    pool: PoolState | None = None,
    **facts: Any,
) -> Finding:
    """Make a finding of what happened at some moment."""
    request = moment.request
    return Finding(
        kind,
        owner,
        origin(moment.stack),
        ending,
        subject,
        serial,
        stack=user_frames(moment.stack),
        request=None if request is None else RequestInfo.of(request),
        dependency=_dependency(moment),
        thread=None if moment.thread == "MainThread" else moment.thread,
        connection=connection,
        pool=pool,
        written_with=words_of(connection, pool, moment.stack),
        **facts,
    )


def _dependency(moment: Moment) -> str | None:
    if moment.request is None:
        return None
    moment.request.refresh()
    function = None
    for code, _ in moment.stack:
        if (name := moment.request.dependencies.get(code)) is not None:
            return name
        if code.co_name == "solve_dependencies" and function is not None:
            return function  # FastAPI solves the dependencies of routers apart from the route's own
        if is_user_code(code.co_filename):
            function = code.co_name
    return None
