"""Around every ASGI call: which request is being answered, and which lifespan is starting.

The wrapper sits on ``Starlette.__call__`` (FastAPI's goes through it), so that a test which brings its own client is
seen as well, and around the application of ``pgleak_client`` for frameworks that are not Starlette's. The request goes
into a ContextVar: it reaches dependencies, thread pools, background tasks and dependency exits (measured).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from types import CodeType, ModuleType
from typing import Any, Final

from pytest_pgleak.owners import Owner
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.patching import Patch
from pytest_pgleak.requests import Request
from pytest_pgleak.tasks import EventLoops, current_task

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LAST: Final = ("http.response.body", "http.response.pathsend")
SEEN: Final = "pytest_pgleak"
"""Key in the ASGI scope of a call that is being followed already: a mounted application is the same request."""


class AsgiTracking:
    """Follows ASGI calls.

    Args:
        ownership: Is told of requests and lifespans.
        next_request: Returns the ordinal of a new request within the running test.
        loops: Is told in which event loops the application runs.
        lifespan_ended: Awaited in the application's own event loop when a shutdown has completed.
        sender: Reads from the scope of a request which one of whose it is; None where that does not say so.
    """

    def __init__(
        self,
        ownership: Ownership,
        next_request: Callable[[], int],
        loops: EventLoops,
        lifespan_ended: Callable[[Owner], Awaitable[None]],
        sender: Callable[[Scope], tuple[int, Owner] | None] = lambda _scope: None,
    ) -> None:
        self._sender = sender
        self._lifespan_ended = lifespan_ended
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
        starlette = app if hasattr(app, "router") and hasattr(app, "state") else None

        async def followed(scope: Scope, receive: Receive, send: Send) -> None:
            await self.call(app, scope, receive, send, runner, starlette)

        return followed

    async def call(
        self,
        app: App,
        scope: Scope,
        receive: Receive,
        send: Send,
        runner: Owner | None = None,
        starlette: Any = None,
    ) -> None:
        """Call an application, following the call unless an outer wrapper does.

        Args:
            app: The application.
            scope: ASGI's.
            receive: ASGI's.
            send: ASGI's.
            runner: Who runs a lifespan; None for whoever is active.
            starlette: The application object, where it is one of Starlette's.
        """
        __tracebackhide__ = True  # of an error of the application's own, which comes through here
        if SEEN in scope or scope["type"] not in ("http", "websocket", "lifespan"):
            await app(scope, receive, send)
            return
        scope[SEEN] = True
        self._loops.seen()
        if scope["type"] == "lifespan":
            owner = self._ownership.begin_lifespan(runner or self._ownership.active, starlette)
            await self._lifespan(app, scope, receive, send, owner)
        else:
            await self._request(app, scope, receive, send)

    def _wrap_call(self, original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        tracking = self

        @functools.wraps(original)
        async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
            __tracebackhide__ = True
            if SEEN in scope:
                await original(self, scope, receive, send)
            else:
                await tracking.call(functools.partial(original, self), scope, receive, send, starlette=self)

        return __call__

    async def _lifespan(self, app: App, scope: Scope, receive: Receive, send: Send, owner: Owner) -> None:
        __tracebackhide__ = True

        async def sending(message: MutableMapping[str, Any]) -> None:
            __tracebackhide__ = True
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                # Everything of the application's own has been closed, and whoever runs it still waits.
                await self._lifespan_ended(owner)
            await send(message)

        try:
            with self._ownership.in_lifespan(owner):
                await app(scope, receive, sending)
        finally:
            self._ownership.end(owner)

    async def _request(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        __tracebackhide__ = True
        ordinal, owner = self._sender(scope) or (self._next_request(), None)
        request = Request(ordinal, scope.get("method", "WEBSOCKET"), scope["path"])
        request.owner = owner.serial if owner is not None else self._ownership.active.serial
        request.task = current_task()
        request.is_connected = self._connected(scope)
        request.learn = functools.partial(self._learn, scope, request)

        async def sending(message: MutableMapping[str, Any]) -> None:
            __tracebackhide__ = True
            if message["type"] == "http.response.start":
                request.status = message["status"]
            await send(message)
            if message["type"] in _LAST and not message.get("more_body"):
                request.answered = True

        self._loops.requests.add(request)
        with self._ownership.in_request(request, owner):
            try:
                await app(scope, receive, sending)
            except BaseException:
                request.failed = True
                raise
            finally:
                self._learn(scope, request)
                request.learn = request.is_connected = None
                request.finished = True
                self._loops.requests.discard(request)

    def _connected(self, scope: Scope) -> Callable[[], bool] | None:
        """Return what tells whether the client of a websocket is there; in process it is the test."""
        del scope
        return None

    def _learn(self, scope: Scope, request: Request) -> None:
        route = scope.get("route")
        if route is None:
            return
        request.route = _template(request.path, scope.get("path_params") or {}) or getattr(route, "path", None)
        endpoint = scope.get("endpoint") or getattr(route, "endpoint", None)
        request.endpoint = getattr(endpoint, "__name__", None)
        overrides = getattr(scope.get("app"), "dependency_overrides", None) or {}
        request.dependencies = self._dependencies_of(route)
        if overrides:
            replaced = {code: name for call in overrides.values() for code, name in _code_and_name(call)}
            request.dependencies = request.dependencies | replaced
            request.overrides = frozenset(replaced)

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
        found.update(_code_and_name(dependency.call))
        _collect(dependency, found)


def _code_and_name(call: Any) -> Iterator[tuple[CodeType, str]]:
    while isinstance(call, functools.partial) or hasattr(call, "__wrapped__"):
        call = call.func if isinstance(call, functools.partial) else call.__wrapped__
    # A function; a class, whose constructor runs; an object that can be called.
    method = "__init__" if isinstance(call, type) else "__call__"
    holder = call if isinstance(call, type) else type(call)
    code = getattr(call, "__code__", None) or getattr(getattr(holder, method, None), "__code__", None)
    if code is not None:
        yield code, getattr(call, "__name__", type(call).__name__)


def _template(path: str, path_params: Mapping[str, Any]) -> str | None:
    """Put the names of path parameters back into a path: what nested routers and mounts add up to.

    None where a value cannot be found in the path as it is, because a converter has changed it.
    """
    for name, value in path_params.items():
        text = str(value)
        before, found, after = path.rpartition("/" + text)
        if not text or not found or (after and not after.startswith("/")):
            return None
        path = f"{before}/{{{name}}}{after}"
    return path
