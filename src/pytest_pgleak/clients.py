"""The two client fixtures' insides: an application with its lifespan, and an HTTP client on it."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_pgleak.asgi import App, AsgiTracking, Receive, Scope, Send
from pytest_pgleak.event_loops import loop_of_test
from pytest_pgleak.lifespan import Lifespan

if TYPE_CHECKING:
    import httpx
    from starlette.testclient import TestClient

BASE_URL: Final = "http://testserver"

NO_APPLICATION: Final = """\
pgleak_client and pgleak_sync_client need your ASGI application. Put this into conftest.py:

    @pytest.fixture
    def pgleak_app(pgleak_dsn):
        from app.main import create_app
        return create_app(pgleak_dsn)
"""


class HostedApp:
    """An application with its lifespan, as the async client calls it.

    Args:
        app: The user's application.
        tracking: Follows its requests.
        started_late: Is told when the first request had to run the start-up.
    """

    def __init__(self, app: App, tracking: AsgiTracking, started_late: Callable[[HostedApp], None]) -> None:
        self._started_late = started_late
        self._app = tracking.follow(app)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.lifespan = Lifespan(self._app)

    async def start(self) -> None:
        """Run the start-up, in this event loop."""
        self._loop = asyncio.get_running_loop()
        await self.lifespan.start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; the first one runs the start-up where no fixture could."""
        if not self.lifespan.is_running and self._loop is None:
            await self.start()
            self._started_late(self)
        # As uvicorn does it: what the lifespan yielded is each request's own shallow copy.
        scope.setdefault("state", {}).update(self.lifespan.state)
        await self._app(scope, receive, send)

    async def stop_here(self) -> None:
        """Run the shutdown of a lifespan that a request has started, if that was in this event loop."""
        if self._loop is asyncio.get_running_loop():
            await self.lifespan.stop()


@contextmanager
def async_client(
    request: pytest.FixtureRequest,
    app: App,
    tracking: AsgiTracking,
    started_late: Callable[[HostedApp], None],
) -> Iterator[httpx.AsyncClient]:
    """Host an application for one test and make a client on it.

    Args:
        request: The fixture's request.
        app: The user's application.
        tracking: Follows its requests.
        started_late: Is told when the first request had to run the start-up.
    """
    check_application(app)
    module = httpx_module()
    hosted = HostedApp(app, tracking, started_late)
    client = module.AsyncClient(transport=module.ASGITransport(app=hosted), base_url=BASE_URL)
    with loop_of_test(request) as run:
        if run is None:
            yield client
            return
        run(hosted.start)
        try:
            yield client
        finally:
            run(client.aclose)
            run(hosted.lifespan.stop)


@contextmanager
def sync_client(app: App, tracking: AsgiTracking) -> Iterator[TestClient]:
    """Make Starlette's TestClient on an application, its lifespan run."""
    check_application(app)
    with warnings.catch_warnings():
        # Starlette 1.10 deprecates httpx in favour of httpx2: the user's choice of client is not ours to judge.
        warnings.filterwarnings("ignore", message=".*httpx.*")
        from starlette.applications import Starlette
        from starlette.testclient import TestClient
    followed: Any = app if isinstance(app, Starlette) else tracking.follow(app)
    with TestClient(followed) as client:
        yield client


def check_application(app: object) -> None:
    """Fail with an explanation where ``pgleak_app`` gave something that cannot be called."""
    if not callable(app):
        pytest.fail(f"pgleak_app returned {app!r}, which is no ASGI application.\n\n{NO_APPLICATION}", pytrace=False)


def httpx_module() -> Any:
    """Return httpx, or httpx2 where only that is installed."""
    try:
        import httpx
    except ModuleNotFoundError:
        import httpx2

        return httpx2
    return httpx
