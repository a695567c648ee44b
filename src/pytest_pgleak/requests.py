"""The HTTP request that was being answered when something happened."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, Literal

Socket = Literal["over", "open", "left"]
"""How a websocket stands: over, or none; open at both ends; its client has gone, and its endpoint goes on."""


@dataclass(slots=True, eq=False)
class Request:
    """One ASGI request as it goes on; filled in by the ASGI wrapper, read when a finding is made.

    Attributes:
        ordinal: Which request of its test it is, counted from 1.
        method: HTTP method, or ``WEBSOCKET``.
        path: Path as the client asked for it, without the query string (it may hold secrets).
        route: Path template of the matched route.
        endpoint: Name of the path operation function.
        status: Status of the answer; None until the response starts.
        finished: Whether the ASGI call has returned, dependency exits and background tasks included.
        failed: Whether an exception left the application.
        answered: Whether the whole answer had been sent before that.
        rolled_back: Whether a transaction of it has ended without a commit.
        dependencies: Name of each FastAPI dependency of the route, by its code object.
        task: The asyncio task that answers it, weakly.
        overrides: Code objects of the functions in ``dependency_overrides``.
        owner: Serial of whoever has sent it.
        learn: Reads what the framework has found out since; set while the request goes on.
        is_connected: Tells of a websocket that goes on whether its client is there; None where nobody looks.
    """

    ordinal: int
    method: str
    path: str
    route: str | None = None
    endpoint: str | None = None
    status: int | None = None
    finished: bool = False
    failed: bool = False
    answered: bool = False
    rolled_back: bool = False
    dependencies: dict[CodeType, str] = field(default_factory=dict)
    task: weakref.ref[Any] | None = None
    overrides: frozenset[CodeType] = frozenset()
    owner: int = 0
    learn: Callable[[], None] | None = None
    is_connected: Callable[[], bool] | None = None

    @property
    def socket(self) -> Socket:
        """How a websocket stands that goes on."""
        if self.finished or self.is_connected is None:
            return "over"
        return "open" if self.is_connected() else "left"

    def refresh(self) -> None:
        """Take in what is known by now of a request that still goes on."""
        if self.learn is not None:
            self.learn()


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """A request as a finding shows it. Attributes as in `Request`."""

    ordinal: int
    method: str
    path: str
    route: str | None = None
    endpoint: str | None = None
    status: int | None = None
    failed: bool = False
    socket: Socket = "over"

    @classmethod
    def of(cls, request: Request) -> RequestInfo:
        """Freeze what is known of a request by now."""
        request.refresh()
        return cls(
            request.ordinal,
            request.method,
            request.path,
            request.route,
            request.endpoint,
            request.status,
            request.failed,
            request.socket,
        )
