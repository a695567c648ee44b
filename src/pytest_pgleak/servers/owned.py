"""A server of our own, from binaries on this machine."""

from __future__ import annotations

import functools
import time
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
    tcp,
    template,
)
from pytest_pgleak.servers.supervisor import Supervisor
from pytest_pgleak.servers.values import Plan, RunningServer, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
    plan, bindir, user = parts.plan, parts.bindir, parts.user
    door = tcp.choose_door() if plan.request.tcp else None
    try:
        if (socket := rundir.socket_lease(leases[0].path, user)) is not None:
            leases.append(socket)
        data = leases[0].path / leftovers.DATA
        version = plan.version or binaries.version_of(bindir) or ""
        more = _with_door(door, leases[0].path, user, version)
        postgres = cluster.postgres_command(bindir, data, leases[-1].path, version, more)
        initdb = [*parts.initdb, "-D", str(data)]
        supervisor = Supervisor(leases, user, parts.template, initdb, postgres, shared=shared)
    except BaseException as error:
        if door is not None:
            door.release_port()
        for lease in leases:
            lease.release()
            rundir.sweep(lease.path.parent, user)
        if isinstance(error, OSError):
            raise failures.not_started(plan, str(error), "") from error
        raise
    dsn = conninfo.socket_uri(str(leases[-1].path), *([door.port] if door else []))
    try:
        version = _await_ready(plan, supervisor, dsn)
        if door is not None:
            door.set_password(dsn)
            dsn = door.dsn
    except BaseException:
        supervisor.stop()
        raise
    finally:
        if door is not None:
            door.release_port()
    description = f"PostgreSQL {version} {plan.origin}"
    return RunningServer(dsn, version, plan.source, description, owned=True, _stop=supervisor.stop)


def _with_door(door: tcp.Door | None, run_dir: Path, user: privilege.OsUser | None, version: str) -> dict[str, str]:
    if door is None:
        return {}
    return {**door.settings(version), "hba_file": str(tcp.write_hba(run_dir, user))}


def _await_ready(plan: Plan, supervisor: Supervisor, dsn: str) -> str:
    """The server's version, as soon as it accepts a connection."""
    ok = libpq.pq().ConnStatus.OK
    deadline = time.monotonic() + _START_TIMEOUT
    answer = "initdb has not finished"
    while (left := deadline - time.monotonic()) > 0:
        reports = supervisor.reports(_POLL if supervisor.started else left)
        if reports and reports[-1] != "started":
            raise failures.not_started(plan, ", ".join(reports), supervisor.log_tail())
        if not supervisor.started:
            continue
        conn = libpq.connect(dsn)
        try:
            if conn.status == ok:
                return libpq.version(conn)
            answer = libpq.reason(conn, dsn)
        finally:
            conn.finish()
    raise failures.not_started(plan, f"not ready after {_START_TIMEOUT:.0f} s: {answer}", supervisor.log_tail())
