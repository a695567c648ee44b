"""asyncpg's pools, and what is acquired of them.

What is not public, and why it is needed all the same:

- ``Pool._async__init__``: a pool is opened by ``await``, by ``async with``, or not at all.
- ``Pool._acquire``: ``acquire()`` only makes an object that may be awaited or entered.
- ``Pool._get_new_connection``, and the ``acquire`` and ``release`` of a pool's holders: what happens in them is the
  pool's business, its callbacks ``init``, ``setup`` and ``reset`` included. Some of it goes on in other tasks.
- ``Pool._queue``: a pool has no weak references, so its queue stands for it. It lives exactly as long.
- ``PoolConnectionProxy._con`` and ``_holder``: which connection of which pool a proxy lends.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.events import PoolFacts
from pytest_pgleak.libraries.asyncpg_words import ASYNCPG, POOL
from pytest_pgleak.libraries.opening import opening_for
from pytest_pgleak.patching import Patch, Patches
from pytest_pgleak.session_state.home_loop import running_loop
from pytest_pgleak.transactions import How

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]

_ASKED: Final = (
    ("Pool", ("_queue", "_closed", "get_max_size")),
    ("PoolConnectionHolder", ("_pool",)),
    ("PoolConnectionProxy", ("_con", "_holder")),
)


def pool_patches(asyncpg: ModuleType, tracker: Tracker) -> Patches:
    """Make the patches that tell a tracker about pools.

    Args:
        asyncpg: The imported ``asyncpg``.
        tracker: Is told.

    Raises:
        AttributeError: This asyncpg looks different from those that are known.
    """
    module = asyncpg.pool
    for name, attributes in _ASKED:
        if missing := [each for each in attributes if not hasattr(getattr(module, name), each)]:
            raise AttributeError(f"{name} has no {missing[0]}")
    pool, holder = module.Pool, module.PoolConnectionHolder
    return Patches(
        Patch(pool, "_async__init__", functools.partial(_wrap_start, tracker)),
        Patch(pool, "_get_new_connection", functools.partial(_wrap_new_connection, tracker)),
        Patch(pool, "_acquire", functools.partial(_wrap_acquire, tracker)),
        Patch(pool, "release", functools.partial(_wrap_release, tracker)),
        Patch(pool, "close", functools.partial(_wrap_close, tracker)),
        Patch(pool, "terminate", functools.partial(_wrap_terminate, tracker)),
        Patch(holder, "acquire", _wrap_holder),
        Patch(holder, "release", _wrap_holder),
    )


def _facts(pool: Any, reference: weakref.ref[Any]) -> PoolFacts:
    return PoolFacts(reference, type(pool).__name__, True, "asyncpg", pool.get_max_size(), POOL, running_loop())


def _note_opened(tracker: Tracker, pool: Any) -> Any:
    """Tell that a pool has begun to open, once; return what stands for it, or None before it has begun."""
    queue = pool._queue  # noqa: SLF001 - see above
    if queue is not None and not hasattr(queue, "pgleak_pool"):
        queue.pgleak_pool = pool
        tracker.pool_opened(queue, functools.partial(_facts, pool))
    return queue


def _wrap_start(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def _async__init__(self: Any) -> Any:
        __tracebackhide__ = True
        try:
            opened = await original(self)
        except BaseException:
            if (queue := _note_opened(tracker, self)) is not None:
                tracker.pool_closed(queue)  # whoever awaited it has nothing to close
            raise
        _note_opened(tracker, self)
        return opened

    return _async__init__


def _wrap_new_connection(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def _get_new_connection(self: Any) -> Any:
        __tracebackhide__ = True
        with opening_for(_note_opened(tracker, self)):
            return await original(self)

    return _get_new_connection


def _wrap_holder(original: Method) -> Method:
    @functools.wraps(original)
    async def acquire_or_release(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with opening_for(self._pool._queue):  # noqa: SLF001 - see above
            return await original(self, *args, **kwargs)

    return acquire_or_release


def _wrap_acquire(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def _acquire(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        proxy = await original(self, *args, **kwargs)
        tracker.checked_out(self._queue, proxy._con)  # noqa: SLF001 - see above
        return proxy

    return _acquire


def _wrap_release(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def release(self: Any, connection: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        lent = getattr(connection, "_con", None)
        # What is another pool's, or no pool's at all, is refused.
        if lent is not None and getattr(getattr(connection, "_holder", None), "_pool", None) is self:
            tracker.transaction_ending(lent, ASYNCPG.transaction_status(lent), How.POOL)
            tracker.returned(lent)
        await original(self, connection, *args, **kwargs)

    return release


def _wrap_close(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def close(self: Any) -> None:
        __tracebackhide__ = True
        try:
            await original(self)
        finally:
            _note_closed(tracker, self)

    return close


def _wrap_terminate(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def terminate(self: Any) -> None:
        __tracebackhide__ = True
        try:
            original(self)
        finally:
            _note_closed(tracker, self)

    return terminate


def _note_closed(tracker: Tracker, pool: Any) -> None:
    if pool._queue is not None and POOL.is_closed(pool):  # noqa: SLF001 - see above
        tracker.pool_closed(pool._queue)  # noqa: SLF001 - as above
