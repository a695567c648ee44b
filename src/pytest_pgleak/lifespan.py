"""The lifespan of an ASGI application, run as a server would: one task, start-up, shutdown (ASGI specification 2.0)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import MutableMapping
from typing import Any

from pytest_pgleak.asgi import App

Message = MutableMapping[str, Any]


class Lifespan:
    """Runs an application's lifespan in a task of the current event loop.

    Args:
        app: The application.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self.state: dict[str, Any] = {}

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._task is not None

    async def start(self) -> None:
        """Run the start-up.

        Raises:
            BaseException: What the application's own start-up raised.
            RuntimeError: The application reported a failed start-up without an exception.
        """
        if self.is_running:
            return
        self._task = asyncio.create_task(self._run(), name="lifespan")
        await self._to_app.put({"type": "lifespan.startup"})
        message = await self._answer()
        if message is not None and message["type"] == "lifespan.startup.failed":
            await self._finish("start-up", message)

    async def stop(self) -> None:
        """Run the shutdown.

        Raises:
            BaseException: What the application's own shutdown raised.
            RuntimeError: The application reported a failed shutdown without an exception.
        """
        if not self.is_running:
            return
        await self._to_app.put({"type": "lifespan.shutdown"})
        message = await self._answer()
        await self._finish("shutdown", message)

    async def _finish(self, phase: str, message: Message | None) -> None:
        task, self._task = self._task, None
        if task is not None:
            await task
        if message is not None and message["type"].endswith(".failed"):
            raise RuntimeError(f"the application's {phase} failed: {message.get('message', '')}")

    async def _answer(self) -> Message | None:
        """Wait for the next message; None where the application ended without one (it has no lifespan)."""
        assert self._task is not None
        getter = asyncio.ensure_future(self._from_app.get())
        try:
            await asyncio.wait({getter, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                return getter.result()
            if not self._from_app.empty():
                return self._from_app.get_nowait()
            await self._ended_silently()
            return None
        finally:
            getter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({getter})

    async def _ended_silently(self) -> None:
        # An application that knows nothing of lifespans raises, or returns, before it has received anything: that is
        # allowed (ASGI specification, "Lifespan Protocol"). Once it has begun, its exception is the user's to see.
        assert self._task is not None
        task, self._task = self._task, None
        if self._to_app.empty():
            await task
        else:
            with contextlib.suppress(Exception):
                await task

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self._app(scope, self._to_app.get, self._from_app.put)
