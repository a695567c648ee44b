"""Values for the unit tests: every argument has a default, a test names only what it is about."""

from __future__ import annotations

import inspect
import weakref
from types import SimpleNamespace

from pytest_pgleak.activity import Backend
from pytest_pgleak.events import ConnectionFacts, Event, EventKind, Moment, PoolFacts
from pytest_pgleak.findings import Finding, PoolState
from pytest_pgleak.frames import Frame
from pytest_pgleak.nesting import NestedCheckout
from pytest_pgleak.owners import Owner
from pytest_pgleak.transactions import How, Transaction
from pytest_pgleak.views import ConnectionView, Ending, PoolView

SERVER = ("db.example", "5432")

SESSION = Owner(0, "session")
CALL = Owner(1, "call", "test_visits.py::test_visit")
FIXTURE = Owner(2, "fixture", "test_visits.py::test_visit", "db", "module")
LIFESPAN = Owner(3, "lifespan", "test_visits.py::test_visit", "client", started_by=2)
OTHER = Owner(9, "call", "test_visits.py::test_other")


class Living:
    """Stands where a connection or a pool stands: it can be closed, and it can die."""

    def __init__(self, status="IDLE"):
        self.closed = False
        self.info = SimpleNamespace(transaction_status=SimpleNamespace(name=status))


FOREVER = Living()


def code(function="get_conn", filename="/project/app/db.py", generator=False):
    """A code object of that name, as a frame has it."""
    template = code.__code__
    flags = template.co_flags | (inspect.CO_GENERATOR if generator else 0)
    name = function.rpartition(".")[2]
    return template.replace(co_name=name, co_qualname=function, co_filename=filename, co_flags=flags)


def stack(*places):
    """A raw stack of `(function, filename, lineno)`, innermost first."""
    return tuple((code(function, filename), lineno) for function, filename, lineno in places)


HERE = stack(("get_conn", "/project/app/db.py", 14))


def moment(owner=CALL, at=1.0, where=HERE, **more):
    return Moment(at, owner, where, **more)


def connection_facts(pid=4711, is_async=True, living=FOREVER, server=SERVER, dbname="app"):
    name = "AsyncConnection" if is_async else "Connection"
    return ConnectionFacts(weakref.ref(living), name, is_async, pid, server, dbname, "app")


def pool_facts(is_async=True, living=FOREVER, name="pool-1", max_size=4):
    kind = "AsyncConnectionPool" if is_async else "ConnectionPool"
    return PoolFacts(weakref.ref(living), kind, is_async, name, max_size)


def connection(serial=10, ending=Ending.OPEN, opened=None, pid=4711, **more):
    return ConnectionView(serial, connection_facts(pid), opened or moment(), ending, **more)


def pool(serial=20, ending=Ending.OPEN, opened=None, members=0, checked_out=0):
    return PoolView(serial, pool_facts(), opened or moment(FIXTURE, at=0.5), ending, members, checked_out)


def pool_state(is_async=True, ending=Ending.OPEN, members=1, checked_out=1):
    return PoolState(pool_facts(is_async), ending, members, checked_out)


def backend(pid=4711, **more):
    return Backend(pid, **{"backend_start": "2026-10-18 12:00:00+00", "datname": "app", "usename": "app", **more})


def frame(lineno=14, function="get_conn", filename="/project/app/db.py", generator=False):
    return Frame(filename, lineno, function, generator)


def finding(kind="connection-dropped", subject="connection", ending=Ending.DROPPED, **more):
    facts = {"owner": CALL, "origin": frame(), "serial": 10, **more}
    if subject in ("connection", "checkout"):
        facts.setdefault("connection", connection_facts())
    return Finding(kind=kind, subject=subject, ending=ending, **facts)


def opened(serial=10, owner=CALL, pool=None, living=FOREVER, pid=4711, at=1.0, **more):
    facts = connection_facts(pid, living=living, **more)
    return Event(EventKind.CONNECTION_OPENED, serial, moment(owner, at), pool=pool, connection=facts)


def closed(serial=10):
    return Event(EventKind.CONNECTION_CLOSED, serial)


def finalized(serial=10, status="INTRANS", **more):
    return Event(EventKind.CONNECTION_FINALIZED, serial, transaction_status=status, **more)


def gone(serial=10, **more):
    return Event(EventKind.CONNECTION_GONE, serial, **more)


def checked_out(serial=10, owner=CALL, pool=20, at=2.0):
    return Event(EventKind.CHECKED_OUT, serial, moment(owner, at), pool=pool)


def returned(serial=10):
    return Event(EventKind.RETURNED, serial)


def began(serial=10, owner=CALL, at=3.0):
    return Event(EventKind.TRANSACTION_BEGAN, serial, moment(owner, at))


def pool_opened(serial=20, owner=FIXTURE, living=FOREVER, at=0.5):
    return Event(EventKind.POOL_OPENED, serial, moment(owner, at), opened_pool=pool_facts(living=living))


def pool_closed(serial=20):
    return Event(EventKind.POOL_CLOSED, serial)


def pool_gone(serial=20):
    return Event(EventKind.POOL_GONE, serial)


def transaction(
    how=How.CLOSE, *, serial=30, connection=10, status="INTRANS", began=None, wrote=True, ended=None, **more
):
    """A transaction that has ended; it wrote what it began with, unless `wrote` says something else."""
    began = began or moment(at=3.0)
    ended = ended or moment(at=5.0)
    if wrote is True:
        wrote = began
    evidence = backend(backend_xid="739", written=(16389,), query="insert into visits values (now())")
    facts = {"wrote": wrote or None, "evidence": evidence if wrote else None, "holder": began, **more}
    return Transaction(serial, connection, connection_facts(), began, ended, how, status, **facts)


def lost(*transactions, kind="write-lost", **more):
    """A finding about ended transactions."""
    transactions = transactions or (transaction(),)
    first = transactions[0]
    facts = {
        "connection": first.facts,
        "backend": first.evidence,
        "transaction_status": first.status,
        "transactions": transactions,
        "ended_at": frame(26, "get_conn"),
        "server_known": True,
        **more,
    }
    return finding(kind, "transaction", Ending.CLOSED, **facts)


def nested_checkout(serial=11, first=None, second=None, held=10, pool=20):
    return NestedCheckout(serial, connection_facts(), pool, held, first or moment(at=2.0), second or moment(at=3.0))
