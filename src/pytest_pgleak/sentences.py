"""What a finding's facts mean, in words: how it ended, what the server saw, what to change. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pytest_pgleak import lifetime_sentences, open_transaction_sentences, transaction_sentences
from pytest_pgleak.activity import Backend
from pytest_pgleak.budget import sentences as peak_sentences
from pytest_pgleak.findings import Finding
from pytest_pgleak.kinds import (
    CONNECTION_DROPPED,
    CONNECTION_NOT_CLOSED,
    CONNECTION_NOT_RETURNED,
    NESTED_CHECKOUT,
    POOL_NOT_CLOSED,
    TRANSACTION_LEFT_OPEN,
    UNTRACKED_BACKEND,
)
from pytest_pgleak.libraries.library import called, is_block
from pytest_pgleak.pgbouncer import sentences as pgbouncer_sentences
from pytest_pgleak.prepared import sentences as prepared_sentences
from pytest_pgleak.session_state import sentences as session_sentences
from pytest_pgleak.views import Ending


def verb(finding: Finding) -> str:
    """Return the label of the line that shows the origin."""
    if finding.subject == "transaction":
        return transaction_sentences.verb(finding)
    if finding.prepared is not None:
        return "prepared"
    if finding.left:
        return session_sentences.verb(finding)
    if finding.kind == TRANSACTION_LEFT_OPEN and finding.opened not in (None, finding.origin):
        return "began"
    if finding.taken not in (None, finding.origin):
        return "made"
    return "taken" if finding.subject in ("checkout", "nested checkout") else "opened"


def name(finding: Finding) -> str:
    """Name a finding that has no line of the user's own."""
    if finding.prepared is not None:
        return prepared_sentences.name(finding)
    if finding.over is not None:
        return peak_sentences.name(finding)
    return f"pid {finding.connection.backend_pid if finding.connection is not None else finding.serial}"


def ended(finding: Finding) -> str:
    """Say how it ended, or that it did not."""
    after = _after(finding)
    if finding.kind == UNTRACKED_BACKEND:
        return f"still there after {finding.owner.describe()}"
    if finding.prepared is not None:
        return prepared_sentences.ended(finding)
    if finding.left:
        shared = finding.shared
        return session_sentences.ended(finding) if shared is None else pgbouncer_sentences.ended(shared)
    if finding.subject == "pool":
        return _ended_pool(finding)
    if finding.subject == "checkout":
        return _ended_checkout(finding, after)
    if finding.kind == NESTED_CHECKOUT:
        return "when every holder of a connection waits for a second one, nobody goes on: a deadlock under load"
    if finding.kind == TRANSACTION_LEFT_OPEN:
        return open_transaction_sentences.ended(finding)
    if finding.ending is Ending.DROPPED:
        with_thread = ", when its thread ended" if finding.with_thread else ""
        return f"garbage-collected{after}{with_thread}; nothing called close()"
    return lifetime_sentences.open_still(finding, f"still open{_holder(finding)}")


def _ended_pool(finding: Finding) -> str:
    number = finding.pool.members if finding.pool else 0
    members = f", {number} connection{'s' if number != 1 else ''} in it" if number else ""
    if finding.ending is Ending.DROPPED:
        return f"garbage-collected; nothing called {_closing(finding)}"
    return lifetime_sentences.open_still(finding, f"still open{members}")


def _ended_checkout(finding: Finding, after: str) -> str:
    if finding.ending is Ending.DROPPED:
        then = finding.words.takes_back if finding.lives_on else finding.words.drops_slot
        return f"garbage-collected{after} while checked out; {then}"
    if finding.ending is Ending.CLOSED and not finding.library.ends_transactions:
        return f"closed, but not returned with {called(finding.words.give_back)}; the pool has lost this slot for ever"
    session = finding.words.session_of
    state = f"still out, in a {session} that is open" if session else "still out"
    return lifetime_sentences.open_still(finding, f"{state}{_holder(finding)}")


def _closing(finding: Finding) -> str:
    close = "close()" if is_block(finding.words.open_pool) else called(finding.words.open_pool)
    return f"{close} on the {'engine' if finding.library.pool_is_lazy else 'pool'}"


def _after(finding: Finding) -> str:
    if finding.after_response is None or finding.request is None:
        return ""
    return " after the response" if finding.after_response else " before the response"


def _holder(finding: Finding) -> str:
    if finding.task is None:
        return ""
    return f"; task {finding.task.name!r} ({finding.task.coroutine}) is still running"


def server(finding: Finding) -> str | None:
    """Say what the server saw; None where there is nothing to say."""
    if finding.subject == "transaction":
        return transaction_sentences.server(finding)
    if finding.prepared is not None:
        return prepared_sentences.server(finding)
    backend = finding.backend
    if backend is None:
        return _without_backend(finding)
    parts = [f"pid {backend.pid}"]
    if finding.kind == UNTRACKED_BACKEND:
        parts += _identity(backend)
    if backend.state is not None:
        parts.append(_state(backend))
    if backend.backend_xid is not None:
        what = "an uncommitted write was lost" if finding.ending is Ending.DROPPED else "an uncommitted write is held"
        parts.append(f"xid {backend.backend_xid}: {what}")
    elif backend.in_transaction:
        parts.append("nothing written")
    if backend.locks and finding.ending is Ending.OPEN:
        parts.append("locks " + " ".join(backend.locks))
    return ", ".join(parts)


def _state(backend: Backend) -> str:
    seconds = backend.seconds_in_state
    return f"{backend.state} for {seconds:.1f} s" if seconds is not None and seconds >= 0.1 else str(backend.state)


def _identity(backend: Backend) -> list[str]:
    client = "a Unix socket" if backend.client_port in (None, -1) else f"port {backend.client_port}"
    return [f"database {backend.datname}", f"application_name {backend.application_name!r}", f"from {client}"]


def _without_backend(finding: Finding) -> str | None:
    connection = finding.connection
    if connection is None or finding.kind == NESTED_CHECKOUT or not connection.backend_pid:
        return None
    # Through PgBouncer it is a number of PgBouncer's making.
    pid = f"pid {connection.backend_pid}, " if finding.through is None else ""
    if finding.ending is Ending.OPEN and finding.server_known:
        return f"pid {connection.backend_pid} is gone: the server or somebody else ended it; the client never knew"
    if finding.transaction_status in ("INTRANS", "INERROR"):
        return f"{pid}in a transaction ({finding.transaction_status}) by the client's account"
    if finding.transaction_status == "IDLE":
        return f"{pid}no transaction open" if pid else "no transaction open by the client's account"
    return None


def fix(finding: Finding) -> str:
    """Say what to change, in the words of the code that is already there."""
    if (others := _FIXES.get(finding.subject)) is not None:
        return others(finding)
    if finding.ending is Ending.OPEN and finding.request is not None and finding.request.socket != "over":
        return _FIXES_OF_SOCKETS[finding.request.socket]
    if (of_owner := lifetime_sentences.fix(finding) or _fix_of_xunit(finding)) is not None:
        return of_owner
    if finding.left:
        of_pgbouncer = pgbouncer_sentences.fix(finding) if finding.shared is not None else None
        return of_pgbouncer or session_sentences.fix(finding)
    if finding.kind in (CONNECTION_DROPPED, CONNECTION_NOT_CLOSED):
        return _fix_connection(finding)
    if finding.kind == CONNECTION_NOT_RETURNED:
        return _fix_checkout(finding)
    if finding.kind == POOL_NOT_CLOSED:
        return _fix_pool(finding)
    if finding.kind == NESTED_CHECKOUT:
        return "pass the connection that is held on to what takes the second one, or give it back first"
    if finding.kind == TRANSACTION_LEFT_OPEN:
        return open_transaction_sentences.fix(finding)
    return "end what the test has started, or close the other driver's connection; for one on purpose, allow it"


_FIXES: Final[dict[str, Callable[[Finding], str]]] = {
    "transaction": transaction_sentences.fix,
    "prepared transaction": prepared_sentences.fix,
    "connections": peak_sentences.fix,
}


SOCKETS: Final = {"open": "still open", "left": "its client has gone, and the endpoint goes on"}
"""How a websocket stands."""
_END_THE_ENDPOINT: Final = "end the endpoint when its client has gone: only who receives is told that"
_FIXES_OF_SOCKETS: Final = {
    "open": f"close the websocket when its test is over; {_END_THE_ENDPOINT}",
    "left": f"{_END_THE_ENDPOINT}, so receive in a task beside the one that waits",
}


def _fix_of_xunit(finding: Finding) -> str | None:
    """Say what to do in a teardown: what sets up there has no `yield`, and a block would end too early."""
    if finding.owner.teardown is None or finding.request is not None:
        return None
    if finding.kind in (CONNECTION_DROPPED, CONNECTION_NOT_CLOSED):
        return f"call `{finding.words.close}` in `{finding.owner.teardown}`"
    if finding.kind == CONNECTION_NOT_RETURNED:
        return f"call `{finding.words.give_back}` in `{finding.owner.teardown}`"
    return f"close it in `{finding.owner.teardown}`" if finding.kind == POOL_NOT_CLOSED else None


def _fix_connection(finding: Finding) -> str:
    fix = _open_in_a_block(finding) if finding.words.open else _close_by_hand(finding)
    return _with_caution(fix, finding)


def _with_caution(fix: str, finding: Finding) -> str:
    caution = finding.words.caution
    # One remark is enough; and whoever has closed it did not think that a block would.
    return f"{fix}; {caution}" if caution and ";" not in fix and finding.ending is not Ending.CLOSED else fix


def _close_by_hand(finding: Finding) -> str:
    close = finding.words.close
    if finding.task is not None:
        return f"end the task before its request or lifespan ends, and call `{close}` in a `finally:` of it"
    if finding.request is not None and finding.dependency is None and finding.ending is Ending.OPEN:
        return f"call `{close}` in a `finally:`; what is to outlive the request is opened and closed by the lifespan"
    if finding.dependency is not None or finding.owner.what == "fixture":
        generator = finding.origin is not None and finding.origin.is_generator
        put = "put the `yield` into a `try:`" if generator else "`yield` it in a `try:`"
        return f"{put}, and call `{close}` in the `finally:`"
    if finding.owner.what == "lifespan":
        return f"put the lifespan's `yield` into a `try:`, and call `{close}` in the `finally:`"
    return f"call `{close}` in a `finally:`"


def _open_in_a_block(finding: Finding) -> str:
    opening = finding.words.open
    if finding.task is not None:
        return f"end the task before its request or lifespan ends, and open inside it with `{opening}`"
    if finding.request is not None and finding.dependency is None and finding.ending is Ending.OPEN:
        return f"use `{opening}`; what is to outlive the request is opened and closed by the lifespan"
    if finding.dependency is not None or finding.owner.what == "fixture":
        generator = finding.origin is not None and finding.origin.is_generator
        return f"put the `yield` inside `{opening}`" if generator else f"yield it inside `{opening}`"
    if finding.owner.what == "lifespan":
        return f"put the lifespan's `yield` inside `{opening}`"
    return f"use `{opening}`, or close it in a `finally:`"


def _fix_checkout(finding: Finding) -> str:
    words = finding.words
    if not words.take:
        return _with_caution(_give_back_by_hand(finding), finding)
    if finding.ending is Ending.CLOSED:
        return f"give it back with `{words.give_back}` instead of closing it, or use `{words.take}`"
    if finding.lives_on and not finding.library.ends_transactions and finding.origin and finding.origin.is_generator:
        # It is in a block as it is: when the generator was closed, it was given back.
        return _CLOSE_THE_GENERATOR
    if finding.dependency is not None or finding.owner.what == "fixture":
        generator = finding.origin is not None and finding.origin.is_generator
        where = "put the `yield` inside" if generator else "`yield` inside"
        return f"{where} `{words.take}`, or call `{words.give_back}` in a `finally:`"
    return f"use `{words.take}`, or call `{words.give_back}` in a `finally:`"


_CLOSE_THE_GENERATOR: Final = (
    "close the generator when nobody goes on with it: `with contextlib.closing(…) as rows:`; for a streaming response"
    " use an async generator, which is cancelled when its client leaves"
)


def _give_back_by_hand(finding: Finding) -> str:
    give_back = finding.words.give_back
    if finding.ending is Ending.CLOSED:
        return f"give it back with `{give_back}` instead of closing it"
    if finding.dependency is not None or finding.owner.what == "fixture":
        return f"`yield` it in a `try:`, and call `{give_back}` in the `finally:`"
    return f"call `{give_back}` in a `finally:`"


def _fix_pool(finding: Finding) -> str:
    words = finding.words
    if not is_block(words.open_pool):
        if finding.request is not None:
            return f"{words.pool} for the whole application and call `{words.open_pool}` when the lifespan ends"
        return f"call `{words.open_pool}` in a `finally:`, or after the `yield` of a fixture or lifespan"
    if finding.request is not None:
        return f"{words.pool} in the lifespan with `{words.open_pool}`, not one in each request"
    if finding.owner.what == "lifespan":
        return f"put the lifespan's `yield` inside `{words.open_pool}`"
    if finding.owner.what == "fixture":
        return f"put the fixture's `yield` inside `{words.open_pool}`"
    return f"use `{words.open_pool}`, or close it in a `finally:`"
