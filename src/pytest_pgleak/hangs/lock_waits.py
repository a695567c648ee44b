"""Statements that wait for a lock, as the server tells them. Values only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_MODES: Final = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
# For each mode of `_MODES`, which others conflict with it (PostgreSQL manual, section 13.3.1, table 13.2).
_CONFLICTS: Final = (
    {7},
    {6, 7},
    {4, 5, 6, 7},
    {3, 4, 5, 6, 7},
    {2, 3, 5, 6, 7},
    {2, 3, 4, 5, 6, 7},
    {1, 2, 3, 4, 5, 6, 7},
    {0, 1, 2, 3, 4, 5, 6, 7},
)


@dataclass(frozen=True, slots=True)
class Lock:
    """A row of ``pg_locks`` that was not granted (PostgreSQL manual, `pg_locks`); columns as named there.

    Attributes:
        locktype: What is to be locked: ``relation``, ``transactionid``, ``tuple``, ``advisory``, …
        mode: The mode that is waited for.
        relation: Oid of the relation.
        transactionid: The transaction whose end is waited for.
        key: The key of an advisory lock, as the functions take it.
    """

    locktype: str
    mode: str
    relation: int | None = None
    transactionid: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class LockWait:
    """A backend that waits for a lock.

    Attributes:
        pid: The backend.
        datname: Its database.
        query: The statement that waits.
        query_start: When it began, as the server's text: with the pid the identity of the statement.
        seconds: How long it has been waiting.
        lock: For what.
        blocked_by: ``pg_blocking_pids``: 0 stands for a prepared transaction.
    """

    pid: int
    datname: str | None
    query: str | None
    query_start: str | None
    seconds: float
    lock: Lock
    blocked_by: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PreparedTransaction:
    """A row of ``pg_prepared_xacts``, with a lock that it holds.

    Attributes:
        gid: Its name, as ``PREPARE TRANSACTION`` was given it.
        database: The database in which it must be ended.
        owner: The role that prepared it.
        seconds: How long ago that was.
        mode: Mode of the lock.
    """

    gid: str
    database: str
    owner: str
    seconds: float
    mode: str


def conflict(mode: str, other: str) -> bool:
    """Tell whether two lock modes exclude each other; True where one of them is not known."""
    if mode not in _MODES or other not in _MODES:
        return True
    return _MODES.index(other) in _CONFLICTS[_MODES.index(mode)]


def in_the_way(lock: Lock, held: Iterable[PreparedTransaction]) -> tuple[PreparedTransaction, ...]:
    """Keep the prepared transactions whose lock really excludes the one that is waited for."""
    return tuple(prepared for prepared in held if conflict(lock.mode, prepared.mode))
