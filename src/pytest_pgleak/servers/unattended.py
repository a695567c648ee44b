"""A connection whose statements run while nobody waits for them: making a database takes 10 ms, dropping one 5."""

from __future__ import annotations

import os
import selectors
from typing import TYPE_CHECKING

from pytest_pgleak.servers import libpq

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from psycopg.pq.abc import PGconn


class Unattended:
    """One statement at a time, its answer awaited when it is needed.

    Not in a thread: what is sent is the server's affair until then, and the connection is used by nobody meanwhile.

    Args:
        dsn: Where to connect to, when there is something to do.
        opening: What the connection is opened in.
        closed: Called when it has been closed.
    """

    def __init__(
        self, dsn: str, opening: Callable[[], AbstractContextManager[None]], closed: Callable[[], None]
    ) -> None:
        self._dsn = dsn
        self._opening = opening
        self._closed = closed
        self._connection: PGconn | None = None
        self._process = os.getpid()
        self._is_waited_for = False

    def connection(self) -> PGconn:
        """Return the connection for something that is waited for; `answer` has been asked for.

        Raises:
            ServerError: The server cannot be reached.
        """
        if self._connection is not None and self._connection.status != libpq.pq().ConnStatus.OK:
            self.close()
        if self._connection is None:
            with self._opening():
                self._connection = libpq.open_connection(self._dsn)
            self._process = os.getpid()
        return self._connection

    def send(self, statement: Callable[[PGconn], str]) -> bool:
        """Have a statement run; `answer` has been asked for.

        Args:
            statement: Writes it.

        Returns:
            Whether it was sent. If not, the connection is closed.
        """
        try:
            conn = self.connection()
            conn.send_query(statement(conn).encode())
        except Exception:  # noqa: BLE001 - whoever sends has another way
            self.close()
            return False
        self._is_waited_for = True
        return True

    def answer(self) -> str:
        """Wait for what was sent.

        Returns:
            Why the server has refused it, or has not answered; empty where it was done, or there was nothing.
        """
        if not self._is_waited_for or self._connection is None:
            return ""
        try:
            trouble = self._wait(self._connection)
        except Exception as error:  # noqa: BLE001 - psycopg's own: the connection is gone
            self.close()
            return str(error) or "the connection is gone"
        self._is_waited_for = False
        return trouble

    def close(self) -> None:
        """Close the connection; what is being done is not waited for. Nothing in a child of fork()."""
        connection, self._connection, self._is_waited_for = self._connection, None, False
        if connection is not None and self._process == os.getpid():
            connection.finish()
            self._closed()

    def _wait(self, connection: PGconn) -> str:
        done = libpq.pq().ExecStatus.COMMAND_OK
        trouble = ""
        # The selector, because get_result() alone would hold the interpreter's lock until there is an answer.
        with selectors.DefaultSelector() as selector:
            selector.register(connection.socket, selectors.EVENT_READ)
            while True:
                while connection.is_busy():
                    selector.select()
                    connection.consume_input()
                if (result := connection.get_result()) is None:
                    return trouble
                if result.status != done:
                    trouble = result.error_message.decode(errors="replace").strip()
