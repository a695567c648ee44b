"""What a cluster of ours is made with: the arguments of initdb and of postgres.

It holds test data that nobody will miss, so everything that makes data durable is off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pgleak.servers.binaries import major

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


def initdb_command(bindir: Path, version: str) -> list[str]:
    """The command that creates the cluster, without the directory.

    ``trust`` is safe: the socket lies in a directory that only this user and root may enter.
    """
    options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--wal-segsize=1"]
    if major(version) >= _CHECKSUMS_SINCE:
        options.append("--no-data-checksums")
    return [str(bindir / "initdb"), *options]


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
    settings = _SETTINGS | dict(more or {})
    if major(version) >= _IO_METHOD_SINCE:
        settings["io_method"] = "sync"  # no I/O workers: the server is up 3 ms sooner and has three processes less
    command = [str(bindir / "postgres"), "-D", str(data), "-k", str(socket_dir)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    return command
