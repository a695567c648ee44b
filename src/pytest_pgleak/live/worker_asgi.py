"""ASGI calls in a worker process: whether the application serves by now, and who sends its requests."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pytest_pgleak.asgi import SEEN, App, AsgiTracking, Receive, Scope, Send
from pytest_pgleak.live.peer import Peer
from pytest_pgleak.live.wire import HEADER, PROBE, read_header
from pytest_pgleak.owners import Owner
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.tasks import EventLoops

_NAME = HEADER.encode()


class WorkerAsgi(AsgiTracking):
    """Follows ASGI calls, and answers pytest's own.

    Args:
        ownership: Is told of requests and lifespans.
        loops: Is told in which event loops the application runs.
        lifespan_ended: Awaited in the application's own event loop when a shutdown has completed.
        starting: Called when a start-up begins.
        serving: Called when it has completed.
        answered: Called when a request is over.
    """

    def __init__(
        self,
        ownership: Ownership,
        loops: EventLoops,
        lifespan_ended: Callable[[Owner], Awaitable[None]],
        starting: Callable[[], None],
        serving: Callable[[], None],
        answered: Callable[[], None],
    ) -> None:
        ordinals = itertools.count(1)
        super().__init__(ownership, lambda: next(ordinals), loops, lifespan_ended, _sender)
        self._starting = starting
        self._serving = serving
        self._answered = answered

    async def call(
        self,
        app: App,
        scope: Scope,
        receive: Receive,
        send: Send,
        runner: Owner | None = None,
        starlette: Any = None,
    ) -> None:
        """As of `AsgiTracking`."""
        __tracebackhide__ = True
        is_inner = SEEN in scope
        if scope["type"] == "http" and _value(scope) == PROBE:
            await _answer(send)
            return
        if scope["type"] == "lifespan":
            if not is_inner:
                self._starting()
            send = functools.partial(self._started, send)
        try:
            await super().call(app, scope, receive, send, runner, starlette)
        finally:
            if scope["type"] != "lifespan" and not is_inner:
                self._answered()

    def _connected(self, scope: Scope) -> Callable[[], bool] | None:
        return Peer(scope.get("client")) if scope["type"] == "websocket" else None

    async def _started(self, send: Send, message: MutableMapping[str, Any]) -> None:
        await send(message)
        if message["type"] == "lifespan.startup.complete":
            self._serving()


async def _answer(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b""})


def _sender(scope: Scope) -> tuple[int, Owner] | None:
    """Take the header with which a client of ours says who sends a request."""
    value = _value(scope)
    if value is None:
        return None
    scope["headers"] = [header for header in scope["headers"] if header[0] != _NAME]
    return read_header(value)


def _value(scope: Scope) -> str | None:
    found = (value for name, value in scope.get("headers", ()) if name == _NAME)
    value = next(found, None)
    return None if value is None else value.decode("ascii", "replace")
