"""ASGI calls in a worker process: whether the application serves by now, and who sends its requests."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pytest_pgleak.asgi import App, AsgiTracking, Receive, Scope, Send
from pytest_pgleak.live.wire import HEADER, PROBE, read_header
from pytest_pgleak.owners import Owner
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.tasks import EventLoops

_NAME = HEADER.encode()


class WorkerAsgi(AsgiTracking):
    """Follows ASGI calls, and answers pytest's own.

    Args:
        serving: Called when a start-up has completed.
        ownership: As of `AsgiTracking`, and so are the next three.
        next_request: As above.
        loops: As above.
        lifespan_ended: As above.
    """

    def __init__(
        self,
        serving: Callable[[], None],
        ownership: Ownership,
        next_request: Callable[[], int],
        loops: EventLoops,
        lifespan_ended: Callable[[Owner], Awaitable[None]],
    ) -> None:
        super().__init__(ownership, next_request, loops, lifespan_ended, _sender)
        self._serving = serving

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
        if scope["type"] == "http" and _value(scope) == PROBE:
            await _answer(send)
            return
        if scope["type"] == "lifespan":
            send = functools.partial(self._started, send)
        await super().call(app, scope, receive, send, runner, starlette)

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
