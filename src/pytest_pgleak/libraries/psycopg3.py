"""psycopg 3 and psycopg_pool, as far as no patch is concerned."""

from __future__ import annotations

import functools
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.libraries.addresses import of_descriptor
from pytest_pgleak.libraries.library import Library, Words

if TYPE_CHECKING:
    from pytest_pgleak.frames import RawStack


class Psycopg(Library):
    """psycopg 3."""

    name = "psycopg"
    lends_sessions = True

    def words(self, class_name: str, is_async: bool, stack: RawStack = ()) -> Words:  # noqa: ARG002 - one way only
        """Return how one writes things with psycopg and psycopg_pool."""
        return _words(class_name, is_async)

    def parameters(self, connection: Any) -> dict[str, str]:
        """Return the options of libpq's ``PQconninfo``, the given ones and the defaults."""
        pgconn = connection.pgconn
        parameters = {option.keyword.decode(): option.val.decode() for option in pgconn.info if option.val}
        for name in ("service", "servicefile"):
            parameters.pop(name, None)  # what the file says of it is among the others, and it may be gone by then
        if pgconn.password:
            # It may come from a password file, and stand there for this one database.
            parameters["password"] = pgconn.password.decode()
        return parameters

    def local_address(self, connection: Any) -> tuple[str, int] | None:
        """Return the connection's own end."""
        return None if connection.closed else of_descriptor(connection.fileno())

    def give_back(self, pool: Any, connection: Any) -> Awaitable[object] | None:
        """Give a connection back closed: the pool discards it and opens another, and has its slot back."""
        connection.pgconn.finish()
        result: Awaitable[object] | None = pool.putconn(connection)
        return result


PSYCOPG: Final = Psycopg()


@functools.lru_cache(maxsize=64)
def _words(class_name: str, is_async: bool) -> Words:
    wait, with_ = ("await ", "async with") if is_async else ("", "with")
    # A subclass of the user's own is named; psycopg's own class by its full name.
    connection = class_name if class_name.startswith("Async") and class_name != "AsyncConnection" else ""
    if is_async:
        opening = f"async with await {connection or 'psycopg.AsyncConnection'}.connect(…) as conn:"
    else:
        opening = "with psycopg.connect(…) as conn:"
    pool = class_name if class_name.endswith("Pool") else ("AsyncConnectionPool" if is_async else "ConnectionPool")
    return Words(
        open=opening,
        close=f"{wait}conn.close()",
        commit=f"{wait}conn.commit()",
        rollback=f"{wait}conn.rollback()",
        transaction=f"{with_} conn.transaction():",
        savepoint=f"{with_} conn.transaction():",
        take=f"{with_} pool.connection() as conn:",
        give_back=f"{wait}pool.putconn(conn)",
        open_pool=f"{with_} {pool}(…) as pool:",
        undo_on_purpose=f"{with_} conn.transaction(force_rollback=True):",
    )
