"""asyncpg as far as no patch is concerned: what its objects say, and how one writes things with it."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.libraries.addresses import of_descriptor, of_name
from pytest_pgleak.libraries.library import Library, Words

if TYPE_CHECKING:
    from pytest_pgleak.frames import RawStack

# Its connections are no context managers, and they have no commit(): a transaction commits itself when its block ends.
_WORDS: Final = Words(
    open="",
    close="await conn.close()",
    commit="",
    rollback="await transaction.rollback()",
    transaction="async with conn.transaction():",
    savepoint="async with conn.transaction():",
    take="async with pool.acquire() as conn:",
    give_back="await pool.release(conn)",
    open_pool="async with asyncpg.create_pool(…) as pool:",
    writing="async with conn.transaction():",
)


class _Failed:
    """The connections whose transaction has failed. By identity: a class of the user's own may have no hash."""

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[Any]] = {}

    def __contains__(self, connection: Any) -> bool:
        reference = self._references.get(id(connection))
        return reference is not None and reference() is connection

    def add(self, connection: Any) -> None:
        identity = id(connection)
        self._references[identity] = weakref.ref(connection, lambda _: self._references.pop(identity, None))

    def discard(self, connection: Any) -> None:
        self._references.pop(id(connection), None)


class AsyncPg(Library):
    """asyncpg's connections."""

    name = "asyncpg"

    def __init__(self) -> None:
        # asyncpg tells whether a transaction is open, not whether it has failed.
        self._failed = _Failed()

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

    def begins(self, connection: Any) -> str:
        """Take note that a statement is about to be executed, and return the status."""
        status = self.transaction_status(connection)
        if status == "IDLE":
            self._failed.discard(connection)  # what had failed has been rolled back, by its pool for one
        return status

    def failed(self, connection: Any) -> str:
        """Take note that a statement has failed, and return the status."""
        if not connection.is_closed() and connection.is_in_transaction():
            self._failed.add(connection)
        return self.transaction_status(connection)

    def succeeded(self, connection: Any, query: str) -> str:
        """Take note that a statement has succeeded, and return the status.

        In a failed transaction only what ends it does, or ``ROLLBACK TO`` a savepoint.
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
        # A password may be a function, that makes a new one each time: then the observer has to do without.
        known = {"user": given.user, "password": given.password, "dbname": given.database}
        known["sslmode"] = _SSLMODES.get(getattr(getattr(given, "sslmode", None), "name", ""))
        return found | {name: value for name, value in known.items() if isinstance(value, str) and value}

    def local_address(self, connection: Any) -> tuple[str, int] | None:
        """Return the connection's own end."""
        transport = connection._transport  # noqa: SLF001 - nothing public says it
        if transport is None:
            return None
        own = transport.get_extra_info("socket")
        return of_name(transport.get_extra_info("sockname")) or (None if own is None else of_descriptor(own.fileno()))

    def prepared(self, connection: Any) -> dict[str, str]:
        """Return the statements in asyncpg's cache."""
        cached = connection._stmt_cache.iter_statements()  # noqa: SLF001 - nothing public says it
        return {statement.name: statement.query for statement in cached if statement.name}

    def roll_back(self, connection: Any) -> Awaitable[object]:
        """Roll back what a connection has open."""
        result: Awaitable[object] = connection.execute("rollback")
        return result

    def give_back(self, pool: Any, connection: Any) -> None:  # noqa: ARG002 - the connection knows its pool
        """End a connection: its pool has the slot back."""
        connection.terminate()


class AsyncPgPool(AsyncPg):
    """asyncpg's pools. What stands for a pool is its queue; see `pytest_pgleak.libraries.asyncpg_pools`."""

    def is_closed(self, thing: Any) -> bool:
        """Tell whether a pool is closed."""
        pool = self.itself(thing)
        return bool(pool._closed)  # noqa: SLF001 - ``is_closing()`` is False again when it is closed

    def itself(self, pool: Any) -> Any:
        """Return the pool that a queue stands for."""
        return getattr(pool, "pgleak_pool", pool)

    def close_pool(self, pool: Any, timeout: float) -> Awaitable[object]:  # noqa: ARG002 - it does not wait
        """End all connections of a pool: to close it would wait for those that are out."""

        async def terminate() -> None:
            self.itself(pool).terminate()

        return terminate()


# Who the server is has been verified by the application, with certificates that libpq need not have.
_SSLMODES: Final = {"disable": "disable", "require": "require", "verify_ca": "require", "verify_full": "require"}

ASYNCPG: Final = AsyncPg()
POOL: Final = AsyncPgPool()
