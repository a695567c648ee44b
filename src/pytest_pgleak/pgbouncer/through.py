"""A connection that leads through PgBouncer, as a finding shows it. A value only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Through:
    """What PgBouncer says of one of its clients.

    Attributes:
        client: Address and port of the client.
        pool_mode: ``session``, ``transaction`` or ``statement``; empty where it is not known.
        server_pid: The backend of the server connection that it has at this moment; None for none.
        is_waiting: Whether it waits for one.
    """

    client: str
    pool_mode: str = ""
    server_pid: int | None = None
    is_waiting: bool = False
