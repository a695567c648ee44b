"""Who awaits what a library does in a task of its own, so that a cancellation cannot stop it half-way.

Such a task has a stack of its own and handles no exception; who awaits it has the line of the user's code, and the
exception that ended the block. Pure: the library's tracker says it, whoever writes down a moment asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

from pytest_pgleak.frames import RawStack


@dataclass(frozen=True, slots=True)
class Awaiter:
    """Whoever awaits the running task.

    Attributes:
        stack: Where it does. Innermost frame first.
        cause: Name of the exception that it is handling.
        identity: ``id()`` of that exception; not the exception itself, which would keep its frames alive.
    """

    stack: RawStack
    cause: str | None
    identity: int


_awaiter: ContextVar[Awaiter | None] = ContextVar("pgleak_awaiter", default=None)


def awaiter() -> Awaiter | None:
    """Return who awaits the running task, where a library has started it; None anywhere else."""
    return _awaiter.get()


@contextmanager
def awaited_at(stack: RawStack, error: BaseException | None) -> Iterator[None]:
    """Tell the tasks that are started inside who awaits them.

    Args:
        stack: Where they are awaited.
        error: The exception that is being handled there.
    """
    outer = _awaiter.get()
    if outer is not None:
        stack += outer.stack
    if error is not None or outer is None:
        here = Awaiter(stack, type(error).__name__ if error is not None else None, id(error))
    else:
        here = Awaiter(stack, outer.cause, outer.identity)
    token = _awaiter.set(here)
    try:
        yield
    finally:
        with suppress(ValueError):  # closed from another context, as generators may be
            _awaiter.reset(token)
