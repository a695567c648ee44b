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
    """

    code: str
    headline: str
    level: Level


CONNECTION_NOT_CLOSED: Final = "connection-not-closed"
CONNECTION_DROPPED: Final = "connection-dropped"
CONNECTION_NOT_RETURNED: Final = "connection-not-returned"
POOL_NOT_CLOSED: Final = "pool-not-closed"
TRANSACTION_LEFT_OPEN: Final = "transaction-left-open"
WRITE_LOST: Final = "write-lost"
RETURNED_IN_TRANSACTION: Final = "returned-in-transaction"
PREPARED_TRANSACTION: Final = "prepared-transaction"
SESSION_STATE: Final = "session-state"
TOO_MANY_CONNECTIONS: Final = "too-many-connections"
UNTRACKED_BACKEND: Final = "untracked-backend"
NESTED_CHECKOUT: Final = "nested-checkout"
COMMIT_AFTER_RESPONSE: Final = "commit-after-response"

KINDS: Final[dict[str, Kind]] = {
    kind.code: kind
    for kind in (
        Kind(CONNECTION_NOT_CLOSED, "connection opened and still open", "fail"),
        Kind(CONNECTION_DROPPED, "connection opened and never closed", "fail"),
        Kind(CONNECTION_NOT_RETURNED, "connection checked out of a pool and never returned", "fail"),
        Kind(POOL_NOT_CLOSED, "pool opened and never closed", "fail"),
        Kind(TRANSACTION_LEFT_OPEN, "transaction left open on a connection that lives on", "fail"),
        Kind(WRITE_LOST, "a write was rolled back without a word", "fail"),
        Kind(RETURNED_IN_TRANSACTION, "connection returned to its pool in a transaction", "warn"),
        Kind(PREPARED_TRANSACTION, "prepared transaction left behind", "fail"),
        Kind(SESSION_STATE, "session state left on a pooled connection", "fail"),
        Kind(TOO_MANY_CONNECTIONS, "more connections open at once than allowed", "fail"),
        Kind(UNTRACKED_BACKEND, "a new backend that nothing in this process opened", "warn"),
        Kind(NESTED_CHECKOUT, "second connection taken from a pool while holding one", "warn"),
        Kind(COMMIT_AFTER_RESPONSE, "write committed after the response had started", "off"),
    )
}
