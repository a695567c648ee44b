"""A server of our own, from binaries on this machine."""

from __future__ import annotations

import functools
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_pgleak.servers import (
    binaries,
    cluster,
    conninfo,
    failures,
    leftovers,
    libpq,
    privilege,
    rundir,
    runtime,
    sharing,
    template,
)
from pytest_pgleak.servers.supervisor import Supervisor
from pytest_pgleak.servers.values import Plan, RunningServer, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_pgleak.servers import tcp

_START_TIMEOUT = 60.0  # seconds; usually 0.3 on a tmpfs, 1.5 on a disk
_POLL = 0.001


def start_owned(plan: Plan) -> RunningServer:
    """Create a cluster, start it, wait until it accepts connections.

    Raises:
        ServerError: If it does not start; the message has the end of its log.
    """
    libpq.pq()
    user = privilege.server_user()
    assert plan.bindir is not None
    bindir = runtime.usable_bindir(plan.bindir, user)
    initdb = cluster.initdb_command(bindir, plan.version or binaries.version_of(bindir) or "")
    found = template.locate(initdb, user)
    parts = _Parts(plan, bindir, user, initdb, found)
    parent = rundir.choose_parent(user)
    if plan.request.run_id is None:
        return _with_template(parts, lambda: _start(parts, [_new_directory(parent, user)]))
    start_shared = functools.partial(_start, parts, shared=True)
    place = sharing.Place(parent, user, plan.request.run_id)
    return _with_template(parts, lambda: sharing.share(place, plan, start_shared))


@dataclass(frozen=True)
class _Parts:
    """What a server is made of."""

    plan: Plan
    bindir: Path
    user: privilege.OsUser | None
    initdb: list[str]
    template: template.Template | None


def _new_directory(parent: Path, user: privilege.OsUser | None) -> rundir.Lease:
    rundir.sweep(parent, user)
    return rundir.create(parent, user)


def _with_template(parts: _Parts, start: Callable[[], RunningServer]) -> RunningServer:
    try:
        return start()
    except failures.NoRoomError:
        raise  # the template is not to blame
    except ServerError:
        if parts.template is None or not parts.template.path.exists():
            raise
    # The copy may be what was wrong with it: once more, with a new one.
    parts.template.discard()
    return start()


def _start(parts: _Parts, leases: list[rundir.Lease], *, shared: bool = False) -> RunningServer:
    plan = parts.plan
    with _door(plan) as door:
        supervisor = _supervised(parts, leases, door, shared=shared)
        dsn = conninfo.socket_uri(str(leases[-1].path), *([door.port] if door else []))
        try:
            version = _await_ready(plan, supervisor, dsn)
            if door is not None:
                door.set_password(dsn)
                dsn = door.dsn
        except BaseException:
            supervisor.stop()
            raise
    description = f"PostgreSQL {version} {plan.origin}"
    return RunningServer(dsn, version, plan.source, description, owned=True, _stop=supervisor.stop)


@contextmanager
def _door(plan: Plan) -> Iterator[tcp.Door | None]:
    """A port, if one was asked for, held until the server has it."""
    if not plan.request.tcp:
        yield None
        return
    from pytest_pgleak.servers.tcp import choose_door

    door = choose_door()
    try:
        yield door
    finally:
        door.release_port()


def _supervised(parts: _Parts, leases: list[rundir.Lease], door: tcp.Door | None, *, shared: bool) -> Supervisor:
    """Start the supervisor, which starts the server; the leases are released where that fails."""
    plan, bindir, user = parts.plan, parts.bindir, parts.user
    try:
        if (socket := rundir.socket_lease(leases[0].path, user)) is not None:
            leases.append(socket)
        data = leases[0].path / leftovers.DATA
        version = plan.version or binaries.version_of(bindir) or ""
        more = door.let_in(leases[0].path, user, version) if door else {}
        postgres = cluster.postgres_command(bindir, data, leases[-1].path, version, more)
        initdb = [*parts.initdb, "-D", str(data)]
        return Supervisor(leases, user, parts.template, initdb, postgres, shared=shared)
    except BaseException as error:
        for lease in leases:
            lease.release()
            rundir.sweep(lease.path.parent, user)
        if isinstance(error, OSError):
            raise failures.not_started(plan, str(error), "") from error
        raise


def _await_ready(plan: Plan, supervisor: Supervisor, dsn: str) -> str:
    """The server's version, as soon as it accepts a connection."""
    ok = libpq.pq().ConnStatus.OK
    deadline = time.monotonic() + _START_TIMEOUT
    answer = "it has not finished initdb, or is still starting"
    while (left := deadline - time.monotonic()) > 0:
        reports = supervisor.reports(_POLL if supervisor.started else left)
        if reports and reports[-1] != "started":
            raise failures.not_started(plan, ", ".join(reports), supervisor.log_tail())
        if not supervisor.started or not supervisor.is_ready:
            continue
        conn = libpq.connect(dsn)
        try:
            if conn.status == ok:
                return libpq.version(conn)
            answer = libpq.reason(conn, dsn)
        finally:
            conn.finish()
    raise failures.not_started(plan, f"not ready after {_START_TIMEOUT:.0f} s: {answer}", supervisor.log_tail())
