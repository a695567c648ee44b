"""The prepared transactions that this process has not finished: a page of the ledger."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pytest_pgleak.events import Event
from pytest_pgleak.owners import Owner
from pytest_pgleak.prepared.left import Prepared, Server

_MOST: Final = 1000
"""Kept for owners that have not ended: the server itself allows ``max_prepared_transactions``."""


class PreparedBook:
    """Keeps them until somebody finishes them here, they are judged, or their owner is over."""

    def __init__(self) -> None:
        self._open: dict[tuple[Server, str], Prepared] = {}

    @property
    def open(self) -> tuple[Prepared, ...]:
        """Those that this process has not finished, in the order in which they were prepared."""
        return tuple(self._open.values())

    def fold(self, event: Event) -> None:
        """Take note of one that was prepared, or that was finished."""
        assert event.connection is not None
        assert event.gid is not None
        key = (event.connection.server, event.gid.gid)
        self._open.pop(key, None)
        if not event.gid.finishes and event.moment is not None:
            self._open[key] = Prepared(event.gid.gid, event.connection, event.moment, event.gid.by_sql)
            if len(self._open) > _MOST:
                del self._open[next(iter(self._open))]

    def reassign(self, server: Server, gid: str, owner: Owner) -> None:
        """Charge one to another owner."""
        if (entry := self._open.get((server, gid))) is not None:
            self._open[server, gid] = replace(entry, moment=replace(entry.moment, owner=owner))

    def settle(self, server: Server, gid: str) -> None:
        """Note that one was judged."""
        self._open.pop((server, gid), None)

    def forget(self, owner: int) -> None:
        """Let go of what belongs to an owner."""
        for key in [key for key, entry in self._open.items() if entry.moment.owner.serial == owner]:
            del self._open[key]
