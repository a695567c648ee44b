"""SQLAlchemy's asyncio extension: what the exits of its ``async with`` blocks do is done in a task of its own.

``AsyncSession.__aexit__`` and its kin close inside ``asyncio.shield(create_task(…))``. Neither the line of the user's
code nor the exception that has ended the block can be seen from there; so they are noted before. The context manager of
``async_sessionmaker.begin()`` is not public; where it is missing, it is left out.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.awaiters import awaited_at
from pytest_pgleak.frames import capture
from pytest_pgleak.patching import Patch, Patches

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]

_EXITS: Final = (("session", "AsyncSession"), ("session", "_AsyncSessionContextManager"), ("engine", "AsyncConnection"))


def asyncio_patches(module: ModuleType, tracker: Tracker) -> Patches:
    """Make the patches that note who awaits the end of a block.

    Args:
        module: The imported ``sqlalchemy.ext.asyncio``.
        tracker: Knows whether a test is being checked.
    """
    found = (getattr(getattr(module, place, None), name, None) for place, name in _EXITS)
    wrap = functools.partial(_wrap_exit, tracker)
    return Patches(*(Patch(cls, "__aexit__", wrap) for cls in found if cls is not None))


def _wrap_exit(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def __aexit__(self: Any, *exc: Any) -> Any:
        __tracebackhide__ = True
        if not tracker.is_checking():
            return await original(self, *exc)
        with awaited_at(capture(), sys.exc_info()[1]):
            return await original(self, *exc)

    return __aexit__
