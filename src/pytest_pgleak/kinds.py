"""The kinds of finding: one stable code each, its default level and its headline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Level = Literal["fail", "warn", "off"]

LEVELS: Final[tuple[Level, ...]] = ("fail", "warn", "off")


@dataclass(frozen=True, slots=True)
class Kind:
    """What one kind of finding is called and how serious it is by itself.

    Attributes:
        code: The stable name that users write in ``allow``, ``pgleak_levels`` and ``pgleak_ignore``.
        headline: The first line of a failure, after the code.
        level: The level that applies where no setting says otherwise.
        judged: Whether this version of the plugin looks for it. Kinds that are reserved can already be named in
            settings, so that a suite may be written for both.
    """

    code: str
    headline: str
    level: Level
    judged: bool = True


CONNECTION_NOT_CLOSED: Final = "connection-not-closed"
CONNECTION_DROPPED: Final = "connection-dropped"
CONNECTION_NOT_RETURNED: Final = "connection-not-returned"
POOL_NOT_CLOSED: Final = "pool-not-closed"
TRANSACTION_LEFT_OPEN: Final = "transaction-left-open"
UNTRACKED_BACKEND: Final = "untracked-backend"

KINDS: Final[dict[str, Kind]] = {
    kind.code: kind
    for kind in (
        Kind(CONNECTION_NOT_CLOSED, "connection opened and still open", "fail"),
        Kind(CONNECTION_DROPPED, "connection opened and never closed", "fail"),
        Kind(CONNECTION_NOT_RETURNED, "connection checked out of a pool and never returned", "fail"),
        Kind(POOL_NOT_CLOSED, "pool opened and never closed", "fail"),
        Kind(TRANSACTION_LEFT_OPEN, "transaction left open on a connection that lives on", "fail"),
        Kind("write-lost", "a write was rolled back without a word", "fail", judged=False),
        Kind("returned-in-transaction", "connection returned to its pool in a transaction", "warn", judged=False),
        Kind("prepared-transaction", "prepared transaction left behind", "fail", judged=False),
        Kind("session-state", "session state left on a pooled connection", "fail", judged=False),
        Kind("too-many-connections", "more connections open at once than allowed", "fail", judged=False),
        Kind(UNTRACKED_BACKEND, "a new backend that nothing in this process opened", "warn"),
        Kind("nested-checkout", "second connection taken from a pool while holding one", "warn", judged=False),
        Kind("commit-after-response", "write committed after the response had started", "off", judged=False),
    )
}
