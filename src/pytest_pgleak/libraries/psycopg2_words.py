"""psycopg2 as far as no patch is concerned: what its objects say, and how one writes things with it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.libraries.addresses import of_descriptor
from pytest_pgleak.libraries.library import Library, Words

if TYPE_CHECKING:
    from pytest_pgleak.frames import RawStack

_STATUSES: Final = ("IDLE", "ACTIVE", "INTRANS", "INERROR", "UNKNOWN")


# Its `with conn:` commits and does not close; its pools are no context managers, neither is what they lend.
_WORDS: Final = Words(
    open="with contextlib.closing(psycopg2.connect(…)) as conn, conn:",
    close="conn.close()",
    commit="conn.commit()",
    rollback="conn.rollback()",
    transaction="with conn:",
    savepoint="",
    take="",
    give_back="pool.putconn(conn)",
    open_pool="pool.closeall()",
    caution="`with conn:` by itself only commits",
)


class Psycopg2(Library):
    """psycopg2."""

    name = "psycopg2"

    def words(self, class_name: str, is_async: bool, stack: RawStack = ()) -> Words:  # noqa: ARG002 - one way only
        """Return how one writes things with psycopg2."""
        return _WORDS

    def transaction_status(self, connection: Any) -> str:
        """Return the name of the status; psycopg2 has the numbers of it."""
        return "UNKNOWN" if connection.closed else _STATUSES[connection.get_transaction_status()]

    def parameters(self, connection: Any) -> dict[str, str]:
        """Return where a connection leads, and its password."""
        given = {str(name): str(value) for name, value in connection.info.dsn_parameters.items() if value}
        password = connection.info.password
        return given | ({"password": password} if password else {})

    def local_address(self, connection: Any) -> tuple[str, int] | None:
        """Return the connection's own end."""
        return None if connection.closed else of_descriptor(connection.fileno())

    def close_pool(self, pool: Any, timeout: float) -> Awaitable[object] | None:  # noqa: ARG002 - it does not wait
        """Close all connections of a pool, those that are out included."""
        pool.closeall()
        return None

    def give_back(self, pool: Any, connection: Any) -> Awaitable[object] | None:
        """Give a connection back to be closed."""
        pool.putconn(connection, close=True)
        return None


PSYCOPG2: Final = Psycopg2()
