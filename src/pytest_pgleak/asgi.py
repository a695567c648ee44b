"""Around every ASGI call: which request is being answered, and which lifespan is starting.

The wrapper sits on ``Starlette.__call__`` (FastAPI's goes through it), so that a test which brings its own client is
seen as well, and around the application of ``pgleak_client`` for frameworks that are not Starlette's. The request goes
into a ContextVar: it reaches dependencies, thread pools, background tasks and dependency exits (measured).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Awaitable, Callable, MutableMapping
from types import CodeType, ModuleType
from typing import Any, Final

from pytest_pgleak.owners import Owner
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.patching import Patch
from pytest_pgleak.requests import Request
from pytest_pgleak.tasks import EventLoops

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_SEEN: Final = "pytest_pgleak"
"""Key in the ASGI scope of a call that is being followed already: a mounted application is the same request."""


class AsgiTracking:
    """Follows ASGI calls.

    Args:
        ownership: Is told of requests and lifespans.
        next_request: Returns the ordinal of a new request within the running test.
        loops: Is told in which event loops the application runs.
    """

    def __init__(self, ownership: Ownership, next_request: Callable[[], int], loops: EventLoops) -> None:
        self._loops = loops
        self._ownership = ownership
        self._next_request = next_request
        self._dependencies: dict[int, tuple[weakref.ref[Any], dict[CodeType, str]]] = {}

    def starlette_patch(self, applications: ModuleType) -> Patch:
        """Make the patch for ``starlette.applications``."""
        return Patch(applications.Starlette, "__call__", self._wrap_call)

    def follow(self, app: App) -> App:
        """Wrap an application of any framework. Its lifespan will be charged to whoever is active now."""
        runner = self._ownership.active

        async def followed(scope: Scope, receive: Receive, send: Send) -> None:
            await self.call(app, scope, receive, send, runner)

        return followed

    async def call(self, app: App, scope: Scope, receive: Receive, send: Send, runner: Owner | None = None) -> None:
        """Call an application, following the call unless an outer wrapper does.

        Args:
            app: The application.
            scope: ASGI's.
            receive: ASGI's.
            send: ASGI's.
            runner: Who runs a lifespan; None for whoever is active.
        """
        if _SEEN in scope or scope["type"] not in ("http", "websocket", "lifespan"):
            await app(scope, receive, send)
            return
        scope[_SEEN] = True
        self._loops.seen()
        if scope["type"] == "lifespan":
            await self._lifespan(functools.partial(app, scope, receive, send), runner or self._ownership.active)
        else:
            await self._request(app, scope, receive, send)

    def _wrap_call(self, original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        tracking = self

        @functools.wraps(original)
        async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
            __tracebackhide__ = True
            if _SEEN in scope:
                await original(self, scope, receive, send)
            else:
                await tracking.call(functools.partial(original, self), scope, receive, send)

        return __call__

    async def _lifespan(self, run: Callable[[], Awaitable[None]], runner: Owner) -> None:
        owner = self._ownership.begin_lifespan(runner)
        try:
            with self._ownership.in_lifespan(owner):
                await run()
        finally:
            self._ownership.end(owner)

    async def _request(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(self._next_request(), scope.get("method", "WEBSOCKET"), scope["path"])
        request.learn = functools.partial(self._learn, scope, request)

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
            await send(message)

        with self._ownership.in_request(request):
            try:
                await app(scope, receive, sending)
            except BaseException:
                request.failed = True
                raise
            finally:
                self._learn(scope, request)
                request.learn = None
                request.finished = True

    def _learn(self, scope: Scope, request: Request) -> None:
        route = scope.get("route")
        if route is None:
            return
        request.route = getattr(route, "path", None)
        endpoint = scope.get("endpoint") or getattr(route, "endpoint", None)
        request.endpoint = getattr(endpoint, "__name__", None)
        request.dependencies = self._dependencies_of(route)

    def _dependencies_of(self, route: Any) -> dict[CodeType, str]:
        # By id(), for routes compare by value and cannot be hashed; the weak reference guards against a reused id.
        known = self._dependencies.get(id(route))
        if known is not None and known[0]() is route:
            return known[1]
        found: dict[CodeType, str] = {}
        _collect(getattr(route, "dependant", None), found)
        forget = functools.partial(_forget, self._dependencies, id(route))
        self._dependencies[id(route)] = (weakref.ref(route, forget), found)
        return found


def _forget(known: dict[int, Any], identity: int, _: object) -> None:
    known.pop(identity, None)


def _collect(dependant: Any, found: dict[CodeType, str]) -> None:
    for dependency in getattr(dependant, "dependencies", ()):
        call = dependency.call
        while isinstance(call, functools.partial) or hasattr(call, "__wrapped__"):
            call = call.func if isinstance(call, functools.partial) else call.__wrapped__
        code = getattr(call, "__code__", None) or getattr(getattr(type(call), "__call__", None), "__code__", None)
        if code is not None:
            found[code] = getattr(call, "__name__", type(call).__name__)
        _collect(dependency, found)
