"""What has to be known of a library beyond what happened: how to ask its objects, and how its users write things.

Pure as far as it goes: a `Library` imports nothing; it only asks the objects that it is given.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_pgleak.frames import RawStack


@dataclass(frozen=True, slots=True)
class Words:
    """How one writes with a library what a fix asks for. Each is code, as it would stand in the user's file.

    Attributes:
        open: Opens a connection and closes it, as ``with psycopg.connect(…) as conn:``; empty where no block does.
        close: Closes a connection.
        commit: Commits; empty where only the end of ``transaction`` does.
        rollback: Rolls back.
        transaction: A block that is one transaction; empty where there is none.
        savepoint: A block that may fail without taking the whole transaction with it; empty where there is none.
        take: Takes a connection from a pool and gives it back; empty where no block does.
        give_back: Gives a connection back to its pool; empty, as the next, where there are no pools.
        open_pool: Opens a pool and closes it, or else only closes it.
        pool: What to make once for the whole application instead of in each request, as "open one pool".
        undo_on_purpose: A transaction that is rolled back on purpose; empty where there is no such thing.
        drops_slot: What happens when a connection is dropped that was out of its pool.
        takes_back: What happens when its pool takes a connection back from the garbage collector.
        writing: ``open`` and ``take`` for who writes: they commit. Empty where ``open`` and ``take`` do.
        caution: What looks as if it did all that, and does not, as a sentence; empty where nothing does.
        session_of: What has the connection while it is out, in the library's word, as "Session"; empty for nothing.
    """

    open: str
    close: str
    commit: str
    rollback: str
    transaction: str
    savepoint: str = ""
    take: str = ""
    give_back: str = ""
    open_pool: str = ""
    pool: str = "open one pool"
    undo_on_purpose: str = ""
    drops_slot: str = "the pool has lost this slot for ever"
    takes_back: str = "the pool took the connection back only then"
    writing: str = ""
    caution: str = ""
    session_of: str = ""

    @property
    def open_to_write(self) -> str:
        """What opens a connection, commits and closes it."""
        return self.writing or self.open

    @property
    def take_to_write(self) -> str:
        """What commits on a connection of a pool, and gives it back where there is a block that does."""
        return self.writing or self.take if self.take else self.transaction

    @property
    def to_commit(self) -> str:
        """What to do so that it is committed, as a part of a sentence."""
        return f"call `{self.commit}`" if self.commit else f"write inside `{self.transaction}`"


def called(code: str) -> str:
    """Name the method that a piece of code calls: "putconn()" for "await pool.putconn(conn)"."""
    return code.partition("(")[0].rpartition(".")[2] + "()"


def is_block(code: str) -> bool:
    """Tell whether a piece of code is a ``with`` block, that does something at its end."""
    return code.startswith(("with ", "async with "))


class Library:
    """Asks a library's connections and pools. The defaults ask as psycopg's objects are asked.

    Attributes:
        name: Name of the distribution.
        pool_is_lazy: Whether a pool of it holds nothing before it is used, so that an unused one needs no close.
        pool_keeps_nothing: Whether it closes what comes back to it, so that it never needs a close.
        ends_transactions: Whether giving a connection back ends its transaction by design, without a word.
        limit: How its users say how many connections a pool may have at once; the number comes after it.
        lends_sessions: Whether pgleak may look into the sessions of pooled connections.
    """

    name: str = ""
    pool_is_lazy: bool = False
    pool_keeps_nothing: bool = False
    ends_transactions: bool = False
    limit: str = "max_size"
    lends_sessions: bool = False

    def words(self, class_name: str, is_async: bool, stack: RawStack = ()) -> Words:
        """Return how one writes things.

        Args:
            class_name: Name of the class of the connection or pool.
            is_async: Whether it is used with ``await``.
            stack: Where it was opened or taken: a library may have several ways.
        """
        raise NotImplementedError

    def itself(self, pool: Any) -> Any:
        """Return a pool, given what stands for it where it has no weak references."""
        return pool

    def is_of_session(self, stack: RawStack) -> bool:  # noqa: ARG002 - for those who have such a thing
        """Tell whether it was a session, made before, that took a connection. The defaults know of none."""
        return False

    def is_closed(self, thing: Any) -> bool:
        """Tell whether a connection or a pool is closed."""
        return bool(thing.closed)

    def transaction_status(self, connection: Any) -> str:
        """Return the name of psycopg's ``TransactionStatus`` that describes a connection."""
        return str(connection.info.transaction_status.name)

    def is_autocommit(self, connection: Any) -> bool:
        """Tell whether a statement of its own is committed at once."""
        return bool(connection.autocommit)

    def parameters(self, connection: Any) -> dict[str, str]:
        """Return with which libpq parameters a connection's server can be reached. There may be a password in it."""
        raise NotImplementedError

    def local_address(self, connection: Any) -> tuple[str, int] | None:  # noqa: ARG002 - for those who know
        """Return the connection's own end, address and port; None where it has none, or nobody knows.

        Of a Unix socket, what `addresses.of_descriptor` returns.
        """
        return None

    def prepared(self, connection: Any) -> dict[str, str]:  # noqa: ARG002 - for those who prepare by themselves
        """Return the statements that the driver has prepared by itself on a connection: texts by names."""
        return {}

    def roll_back(self, connection: Any) -> Awaitable[object] | None:
        """Roll back what a connection has open; return what is still to be awaited."""
        result: Awaitable[object] | None = connection.rollback()
        return result

    def close_pool(self, pool: Any, timeout: float) -> Awaitable[object] | None:
        """Close a pool; return what is still to be awaited.

        Args:
            pool: The pool.
            timeout: How long it may take, seconds.
        """
        result: Awaitable[object] | None = pool.close(timeout=timeout)
        return result

    def give_back(self, pool: Any, connection: Any) -> Awaitable[object] | None:  # noqa: ARG002 - for those who can
        """Give a connection, its backend just terminated, back to its pool; return what is still to be awaited."""
        return None
