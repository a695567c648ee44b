"""What a cluster of ours is made with: the arguments of initdb and of postgres.

It holds test data that nobody will miss, so everything that makes data durable is off.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_pgleak.servers.binaries import major, program

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CHECKSUMS_SINCE = 18  # initdb turns them on by default
_IO_METHOD_SINCE = 18

_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "16MB",
    "max_connections": "200",
    "max_wal_size": "128MB",  # the cluster may lie in memory
    "jit": "off",
    # Its workers would come and go in pg_stat_activity.
    "autovacuum": "off",
    # Files in the data directory: not even a killed postmaster leaves anything in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
    # So that leaked prepared transactions and replication slots can be had in a test at all.
    "max_prepared_transactions": "20",
    "wal_level": "logical",
    "unix_socket_permissions": "0700",
}


def initdb_command(bindir: Path, version: str, password: Path | None = None) -> list[str]:
    """The command that creates the cluster, without the directory.

    Args:
        bindir: Where ``initdb`` is.
        version: Such as ``18.6``.
        password: A file with the superuser's, for which everybody is asked. None for ``trust``, which is safe where
            the socket lies in a directory that only this user and root may enter.
    """
    authentication = ["-A", "trust"] if password is None else ["-A", "scram-sha-256", f"--pwfile={password}"]
    options = ["-U", "postgres", *authentication, "-E", "UTF8", "--locale=C", "--no-sync", "--wal-segsize=1"]
    if major(version) >= _CHECKSUMS_SINCE:
        options.append("--no-data-checksums")
    return [str(program(bindir, "initdb")), *options]


def postgres_command(
    bindir: Path, data: Path, socket_dir: Path, version: str, more: Mapping[str, str] | None = None
) -> list[str]:
    """The command that runs the server, in the foreground.

    Args:
        bindir: Where ``postgres`` is.
        data: The cluster.
        socket_dir: Where the socket is to be.
        version: Such as ``18.6``.
        more: Settings that go before ours.
    """
    command = [str(program(bindir, "postgres")), "-D", str(data), "-k", str(socket_dir)]
    for name, value in settings(version, more or {}).items():
        command += ["-c", f"{name}={value}"]
    return command


def settings(version: str, more: Mapping[str, str]) -> dict[str, str]:
    """All settings of a server.

    Args:
        version: Such as ``18.6``.
        more: Settings that go before ours.
    """
    found = dict(_SETTINGS)
    if os.name != "posix":
        del found["dynamic_shared_memory_type"], found["unix_socket_permissions"]
    if major(version) >= _IO_METHOD_SINCE:
        found["io_method"] = "sync"  # no I/O workers: the server is up 3 ms sooner and has three processes less
    return found | dict(more)


def container_options() -> list[str]:
    """The options of a server in a container, whose version is not known beforehand; its own entry point runs it.

    It listens on all of the container's addresses: what is published of them, and where, is the daemon's matter.
    """
    found = _SETTINGS | {"listen_addresses": "*"}
    del found["unix_socket_permissions"]
    return [part for name, value in found.items() for part in ("-c", f"{name}={value}")]
