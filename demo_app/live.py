"""All applications of one half in one server, each below its own name: ``uvicorn demo_app.live:leaky``.

``POST /leaky.dependency_returned/visit/`` is ``POST /visit/`` of `demo_app.leaky.dependency_returned`. Each application
has its own lifespan, as it would have in a server of its own. The database is that of the variable VISITS_DSN.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from typing import TYPE_CHECKING

from pytest_pgleak.lifespan import Lifespan

if TYPE_CHECKING:
    from fastapi import FastAPI

    from pytest_pgleak.asgi import Receive, Scope, Send


class Half:
    """The applications of one half.

    Args:
        name: ``"correct"`` or ``"leaky"``.
        others: Applications of the other half to serve beside them, as ``"leaky.dependency_returned"``.
    """

    def __init__(self, name: str, *others: str) -> None:
        self._name = name
        self._others = others
        self._applications: dict[str, FastAPI] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application that its path begins with."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        _, name, *rest = scope["path"].split("/", 2)
        # What begins with none of them is answered by some application: 404.
        application = self._applications.get(name) or next(iter(self._applications.values()))
        path = f"/{rest[0]}" if rest else scope["path"]
        await application({**scope, "path": path, "raw_path": path.encode()}, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        self._build()
        lifespans = [Lifespan(application) for application in self._applications.values()]
        await receive()
        for lifespan in lifespans:
            await lifespan.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for lifespan in reversed(lifespans):
            await lifespan.stop()
        await send({"type": "lifespan.shutdown.complete"})

    def _build(self) -> None:
        package = importlib.import_module(f"demo_app.{self._name}")
        own = (f"{self._name}.{module.name}" for module in pkgutil.iter_modules(package.__path__))
        for name in (*own, *self._others):
            create_app = importlib.import_module(f"demo_app.{name}").create_app
            self._applications[name] = create_app(os.environ["VISITS_DSN"])


correct = Half("correct")
leaky = Half("leaky")
one_leaks = Half("correct", "leaky.dependency_returned")
