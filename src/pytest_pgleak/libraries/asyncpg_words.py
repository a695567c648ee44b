"""asyncpg as far as no patch is concerned: what its objects say, and how one writes things with it."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.libraries.library import Library, Words

if TYPE_CHECKING:
    from pytest_pgleak.frames import RawStack

_WORDS: Final = Words(
    open="async with contextlib.aclosing(await asyncpg.connect(…)) as conn:",
    close="await conn.close()",
    commit="await transaction.commit()",
    rollback="await transaction.rollback()",
    transaction="async with conn.transaction():",
    savepoint="async with conn.transaction():",
    take="async with pool.acquire() as conn:",
    give_back="await pool.release(conn)",
    open_pool="async with asyncpg.create_pool(…) as pool:",
    writing="async with conn.transaction():",
)


class AsyncPg(Library):
    """asyncpg's connections."""

    name = "asyncpg"

    def __init__(self) -> None:
        # asyncpg tells whether a transaction is open, not whether it has failed.
        self._failed: weakref.WeakSet[Any] = weakref.WeakSet()

    def words(self, class_name: str, is_async: bool, stack: RawStack = ()) -> Words:  # noqa: ARG002 - one way only
        """Return how one writes things with asyncpg."""
        return _WORDS

    def is_closed(self, thing: Any) -> bool:
        """Tell whether a connection is closed."""
        return bool(thing.is_closed())

    def transaction_status(self, connection: Any) -> str:
        """Return the name of psycopg's ``TransactionStatus`` that describes a connection."""
        if connection.is_closed():
            return "UNKNOWN"
        if not connection.is_in_transaction():
            return "IDLE"
        return "INERROR" if connection in self._failed else "INTRANS"

    def failed(self, connection: Any) -> None:
        """Take note that a statement has failed."""
        if not connection.is_closed() and connection.is_in_transaction():
            self._failed.add(connection)

    def succeeded(self, connection: Any, query: str) -> str:
        """Take note that a statement has succeeded, and return the status.

        In a failed transaction only ``ROLLBACK`` and ``ROLLBACK TO`` do.
        """
        if connection in self._failed and query.lstrip()[:8].lower() == "rollback":
            self._failed.discard(connection)
        return self.transaction_status(connection)

    def is_autocommit(self, connection: Any) -> bool:  # noqa: ARG002 - all are
        """Always: a transaction has to be begun."""
        return True

    def parameters(self, connection: Any) -> dict[str, str]:
        """Return where a connection leads, by libpq's names."""
        address, given = connection._addr, connection._params  # noqa: SLF001 - nothing public says it
        if isinstance(address, str):  # /directory/.s.PGSQL.5432
            socket = PurePosixPath(address)
            host, port = str(socket.parent), socket.suffix[1:]
        else:
            host, port = str(address[0]), str(address[1])
        found = {"host": host, "port": port}
        known = {"user": given.user, "password": given.password, "dbname": given.database}
        return found | {name: value for name, value in known.items() if isinstance(value, str) and value}

    def roll_back(self, connection: Any) -> Awaitable[object]:
        """Roll back what a connection has open."""
        result: Awaitable[object] = connection.execute("rollback")
        return result


class AsyncPgPool(AsyncPg):
    """asyncpg's pools. What stands for a pool is its queue; see `pytest_pgleak.libraries.asyncpg`."""

    def is_closed(self, thing: Any) -> bool:
        """Tell whether a pool is closed."""
        pool = getattr(thing, "pgleak_pool", thing)
        return bool(pool._closed)  # noqa: SLF001 - ``is_closing()`` is False again when it is closed

    def close_pool(self, pool: Any, timeout: float) -> Awaitable[object]:  # noqa: ARG002 - it does not wait
        """End all connections of a pool: to close it would wait for those that are out."""

        async def terminate() -> None:
            pool.pgleak_pool.terminate()

        return terminate()


ASYNCPG: Final = AsyncPg()
POOL: Final = AsyncPgPool()
