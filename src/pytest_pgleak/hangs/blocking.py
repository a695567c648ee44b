"""The message about a statement that waits for a lock: what waits, for what, held by whom, what was done. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_pgleak.activity import Backend
from pytest_pgleak.events import Moment
from pytest_pgleak.frames import origin
from pytest_pgleak.hangs.holders import Holder, Phase, whose
from pytest_pgleak.hangs.lock_waits import Lock, LockWait, PreparedTransaction
from pytest_pgleak.rendering import place
from pytest_pgleak.sql import one_line

_LABEL: Final = 10
_MOST_BLOCKERS: Final = 5


@dataclass(frozen=True, slots=True)
class Blocker:
    """A backend that holds what another one waits for, or that stands before it in the queue.

    Attributes:
        pid: The backend.
        backend: Its row; None where it is gone, or may not be read.
        backend_type: As the server says it.
        waits: Whether it waits for a lock itself.
        holder: What the ledger knows of it; None where this process has not opened it.
        is_over: Whether whoever took it has ended.
        terminated: Whether it was terminated.
        trouble: Why it could not be.
    """

    pid: int
    backend: Backend | None = None
    backend_type: str = "client backend"
    waits: bool = False
    holder: Holder | None = None
    is_over: bool = False
    terminated: bool = False
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Blocked:
    """A statement that waits.

    Attributes:
        phase: What pytest is doing meanwhile.
        wait: Who waits for what.
        relation: Name of the relation.
        waiter: What the ledger knows of the connection that waits.
        blockers: Who is in the way.
        prepared: The prepared transactions that are.
    """

    phase: Phase
    wait: LockWait
    relation: str | None = None
    waiter: Holder | None = None
    blockers: tuple[Blocker, ...] = ()
    prepared: tuple[PreparedTransaction, ...] = ()


def message(blocked: Blocked, root: Path) -> str:
    """Compose the message.

    Args:
        blocked: The statement that waits.
        root: Paths below it are shown relative to it.
    """
    phase, wait = blocked.phase, blocked.wait
    lines = [f"pgleak: {phase.nodeid} ({phase.when}) has been waiting for a lock for {wait.seconds:.1f} s"]
    lines.append(_line("waiting", one_line(wait.query) if wait.query else "a statement that may not be seen"))
    lines.append(_line("", f"pid {wait.pid}, database {wait.datname}" + _opened_at(blocked.waiter, root)))
    lines.append(_line("lock", _lock(wait.lock, blocked.relation)))
    for blocker in blocked.blockers[:_MOST_BLOCKERS]:
        lines += _blocker(blocker, phase.nodeid, root)
    if len(blocked.blockers) > _MOST_BLOCKERS:
        lines.append(_line("", f"… and {len(blocked.blockers) - _MOST_BLOCKERS} more backends"))
    for prepared in blocked.prepared:
        lines += _prepared(prepared)
    if not blocked.prepared and 0 in wait.blocked_by:
        lines.append(_line("held by", "a prepared transaction that ended meanwhile, or that may not be seen"))
        lines.append(_line("by hand", "select gid, database from pg_prepared_xacts, then ROLLBACK PREPARED '<gid>'"))
    return "\n".join(lines)


def _lock(lock: Lock, relation: str | None) -> str:
    named = relation or (None if lock.relation is None else f"with oid {lock.relation}")
    if lock.locktype == "relation":
        return f"{lock.mode} on relation {named}"
    if lock.locktype == "tuple":
        return f"{lock.mode} on a row of relation {named}"
    if lock.locktype == "transactionid":
        return f"{lock.mode} on transaction {lock.transactionid}: on a row that it has written or locked"
    if lock.locktype == "advisory" and lock.key is not None:
        return f"{lock.mode} on the advisory key {lock.key}"
    return f"{lock.mode} (locktype {lock.locktype})" + (f" on relation {named}" if named else "")


def _blocker(blocker: Blocker, nodeid: str, root: Path) -> list[str]:
    lines = [_line("held by", _backend(blocker))]
    if blocker.backend is not None and blocker.backend.query:
        lines.append(_line("last sql", one_line(blocker.backend.query)))
    holder = blocker.holder
    if holder is not None:
        verb = "taken" if holder.checkout is not None else "opened"
        lines.append(_line(verb, _moment(holder.held, nodeid, root) + (", which is over" if blocker.is_over else "")))
        if holder.began is not None and holder.began.owner.serial != holder.held.owner.serial:
            lines.append(_line("began", _moment(holder.began, nodeid, root)))
    elif blocker.backend is not None and blocker.backend_type == "client backend":
        lines.append(_line("opened", f"not by psycopg in this process: {_identity(blocker.backend)}"))
    lines.append(_outcome(blocker))
    return lines


def _backend(blocker: Blocker) -> str:
    parts = [f"pid {blocker.pid}"]
    if blocker.backend_type != "client backend":
        parts.append(blocker.backend_type)
    backend = blocker.backend
    if backend is not None and backend.state is not None:
        seconds = backend.seconds_in_state
        parts.append(backend.state + (f" for {seconds:.1f} s" if seconds is not None and seconds >= 0.1 else ""))
    if backend is not None and backend.backend_xid is not None:
        parts.append(f"xid {backend.backend_xid}: an uncommitted write is held")
    if backend is not None and backend.locks:
        parts.append("locks " + " ".join(backend.locks))
    if blocker.waits:
        parts.append("which waits for a lock itself")
    return ", ".join(parts)


def _identity(backend: Backend) -> str:
    return f"application_name {backend.application_name!r}, role {backend.usename}, database {backend.datname}"


def _outcome(blocker: Blocker) -> str:
    if blocker.terminated:
        return _line("done", f"pid {blocker.pid} was terminated, the run goes on")
    by_hand = f"select pg_terminate_backend({blocker.pid})"
    if blocker.trouble is not None:
        return _line("by hand", f"{by_hand}; pgleak could not: {blocker.trouble}")
    if blocker.is_over:
        return _line("by hand", f"{by_hand}; in a database that is not its own, pgleak needs pgleak_terminate = true")
    return _line("by hand", by_hand)


def _prepared(prepared: PreparedTransaction) -> list[str]:
    quoted = prepared.gid.replace("'", "''")
    return [
        _line(
            "held by",
            f"prepared transaction '{quoted}', of role {prepared.owner}, prepared {prepared.seconds:.1f} s ago,"
            f" {prepared.mode}",
        ),
        _line("by hand", f"ROLLBACK PREPARED '{quoted}'  (in database {prepared.database})"),
    ]


def _opened_at(holder: Holder | None, root: Path) -> str:
    frame = origin(holder.held.stack) if holder is not None else None
    if holder is None or frame is None:
        return ""
    return f", {'taken' if holder.checkout is not None else 'opened'} {place(frame, root)}"


def _moment(moment: Moment, nodeid: str, root: Path) -> str:
    frame = origin(moment.stack)
    where = place(frame, root) if frame is not None else "outside of any code that pgleak could recognise as yours"
    during = f" in {moment.request.method} {moment.request.path}" if moment.request is not None else ""
    return f"{where}{during}, by {whose(moment.owner, nodeid)}"


def _line(label: str, text: str) -> str:
    return f"  {label:<{_LABEL}}{text}"
