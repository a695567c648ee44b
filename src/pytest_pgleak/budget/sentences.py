"""What a finding about ``max_connections`` means, in words. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pytest_pgleak.activity import Backend
from pytest_pgleak.budget.peaks import Held, OverLimit
from pytest_pgleak.findings import Finding
from pytest_pgleak.frames import Frame

_MOST_LINES: Final = 6


def name(finding: Finding) -> str:
    """Name the finding, where no line of code does."""
    return f"at once: {_over(finding).number}"


def details(finding: Finding, place: Callable[[Frame], str]) -> list[tuple[str, str]]:
    """Say how many there were and who held them; each with the label of its line.

    Args:
        finding: The finding.
        place: Shows where a frame is.
    """
    over = _over(finding)
    were = "connection was" if over.number == 1 else "connections were"
    server = f"; the server takes {over.server}" if over.server else ""
    lines = [("at once", f"{over.number} {were} open at once, max_connections allows {over.limit}{server}")]
    shown = over.held if len(over.held) <= _MOST_LINES else over.held[: _MOST_LINES - 1]
    lines += [("" if number else "held by", _holder(held, place)) for number, held in enumerate(shown)]
    if left := sum(held.number for held in over.held[len(shown) :]):
        lines.append(("", f"and {left} more"))
    return lines


def fix(finding: Finding) -> str:
    """Say what to change."""
    pools = [held.pool for held in _over(finding).held if held.pool is not None]
    if pools:
        size = f" ({pools[0].max_size} for {pools[0].name!r})" if pools[0].max_size else ""
        lower = f"lower the pool's max_size{size}, close earlier, or raise max_connections"
        return f"{lower}; the server has to hold workers × max_size"
    if finding.origin is None:
        return "end earlier what the test has started, or raise max_connections; each worker process opens its own"
    return "close earlier, share a pool, or raise max_connections; each worker process opens its own"


def _client(backend: Backend) -> str:
    return f"application_name {backend.application_name!r}" if backend.application_name else "no application_name"


def _over(finding: Finding) -> OverLimit:
    assert finding.over is not None
    return finding.over


def _holder(held: Held, place: Callable[[Frame], str]) -> str:
    if held.backend is not None:
        return f"{held.number} × pid {held.backend.pid} ({_client(held.backend)}), not opened by this process"
    where = "a line that is not yours" if held.origin is None else place(held.origin)
    if held.workers:
        return _workers(held, where)
    return f"{held.number} × " + (where if held.pool is None else f"pool {held.pool.name!r} ({where})")


def _workers(held: Held, where: str) -> str:
    number = len(held.workers)
    each = held.workers[0]
    is_even = all(one == each for one in held.workers)
    of_each = f"× {each}" if is_even else f"({' + '.join(map(str, held.workers))})"
    what = where if held.pool is None else f"pool {held.pool.name!r} ({where})"
    use = "" if held.pool is None else f": {held.in_use} in use, {held.number - held.in_use} idle"
    return f"{number} worker{'s' if number != 1 else ''} {of_each}, {what}{use}"
