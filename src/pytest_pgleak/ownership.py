"""Who is at work right now: a plain stack, pushed and popped around fixtures and the call phase.

A ContextVar set in a pytest hook is stale under AnyIO's runner and unset in a pool's worker threads (measured), so a
stack read from any thread is the right thing. The lifespan of an application is the exception: it runs in a task of
its own beside the test, so it carries its owner in a ContextVar.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from pytest_pgleak.background import Background
from pytest_pgleak.owners import Owner, What
from pytest_pgleak.requests import Request


class Ownership:
    """The stack of owners, and what the running context says.

    Args:
        background: Knows which threads and tasks are somebody else's.
        first_serial: Serial of the first owner that is made here; another process has made others.
    """

    def __init__(self, background: Background, first_serial: int = 1) -> None:
        self.background = background
        self._serials = itertools.count(first_serial)
        self.session = Owner(0, "session")
        self._stack: list[Owner] = [self.session]
        self._ended: list[Owner] = []
        self._fixtures: set[int] = set()
        self._lifespans: dict[int, Owner] = {}
        self._apps: dict[int, weakref.ref[Any]] = {}
        self._apps_with_lifespan: weakref.WeakSet[Any] = weakref.WeakSet()
        self._context_owner: ContextVar[Owner | None] = ContextVar("pgleak_owner", default=None)
        self._request: ContextVar[Request | None] = ContextVar("pgleak_request", default=None)

    @property
    def current(self) -> Owner:
        """Who answers for what happens here and now."""
        if (owner := self._context_owner.get()) is not None:
            return owner
        if self._request.get() is not None:
            return self._stack[-1]
        return self.background.owner_here() or self._stack[-1]

    @property
    def request(self) -> Request | None:
        """The request that is being answered here and now."""
        return self._request.get()

    @property
    def active(self) -> Owner:
        """The innermost phase or fixture, whatever the running context says."""
        return self._stack[-1]

    @property
    def living(self) -> frozenset[int]:
        """Serials of those on the stack, and of the lifespans. May be asked from any thread."""
        return frozenset([*(owner.serial for owner in list(self._stack)), *list(self._lifespans)])

    def begin(self, what: What, nodeid: str = "", fixturename: str | None = None, scope: str | None = None) -> Owner:
        """Make a new owner, without making it the active one."""
        owner = Owner(next(self._serials), what, nodeid, fixturename, scope, self._stack[-1].serial)
        if what == "fixture":
            self._fixtures.add(owner.serial)
        return owner

    def begin_lifespan(self, runner: Owner, app: Any = None) -> Owner:
        """Make a new owner for a lifespan that is about to start up.

        Args:
            runner: The phase or fixture that runs it, and with which it ends at the latest.
            app: The application, where it is one of Starlette's.
        """
        owner = Owner(next(self._serials), "lifespan", runner.nodeid, runner.fixturename, runner.scope, runner.serial)
        self._lifespans[owner.serial] = owner
        if app is not None:
            self._apps[owner.serial] = weakref.ref(app)
            self._apps_with_lifespan.add(app)
        return owner

    def app_of(self, lifespan: Owner) -> Any:
        """Return the application of a lifespan, if it is one of Starlette's and still there."""
        reference = self._apps.get(lifespan.serial)
        return None if reference is None else reference()

    def has_run_lifespan(self, app: Any) -> bool:
        """Tell whether somebody has run the lifespan of an application of Starlette's."""
        return app in self._apps_with_lifespan

    def process(self, variable: str) -> Owner:
        """Return the owner of what a global variable keeps: the session under another name, for both end together."""
        return replace(self.session, what="process", variable=variable)

    @property
    def lifespans(self) -> tuple[Owner, ...]:
        """The lifespans that began and have not been judged yet, whether they have ended or not."""
        return tuple(self._lifespans.values())

    def forget_lifespan(self, owner: Owner) -> None:
        """Let go of a lifespan that was judged."""
        self._lifespans.pop(owner.serial, None)
        self._apps.pop(owner.serial, None)

    def push(self, owner: Owner) -> None:
        """Make an owner the active one."""
        self._stack.append(owner)

    def pop(self, owner: Owner) -> None:
        """Take an owner off the stack; what an error left above it goes too."""
        if owner in self._stack:
            del self._stack[self._stack.index(owner) :]

    def end(self, owner: Owner) -> None:
        """Note that an owner has ended: from now on it must not hold anything."""
        self._ended.append(owner)
        self._fixtures.discard(owner.serial)

    def is_over(self, owner: Owner) -> bool:
        """Tell whether an owner has ended. May be asked from any thread."""
        if owner.what == "fixture":
            return owner.serial not in self._fixtures
        if owner.what == "lifespan":
            return owner.serial not in self._lifespans
        return owner.what in ("call", "block") and owner.serial not in self.living

    def take_ended(self) -> tuple[Owner, ...]:
        """Return the owners that have ended since the last call."""
        ended, self._ended = tuple(self._ended), []
        return ended

    @contextmanager
    def in_lifespan(self, owner: Owner) -> Iterator[None]:
        """Charge what this context, and tasks made in it, do to a lifespan."""
        token = self._context_owner.set(owner)
        try:
            yield
        finally:
            self._context_owner.reset(token)

    @contextmanager
    def in_request(self, request: Request, owner: Owner | None = None) -> Iterator[None]:
        """Charge what this context does to a request, and to whoever is active rather than to a lifespan.

        Args:
            request: The request.
            owner: Who has sent it, where that is known; None for whoever is active.
        """
        owner_token = self._context_owner.set(owner)
        token = self._request.set(request)
        try:
            yield
        finally:
            self._request.reset(token)
            self._context_owner.reset(owner_token)
