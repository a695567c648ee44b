"""What a finding about session state means, in words. Pure."""

from __future__ import annotations

from typing import Final

from pytest_pgleak.findings import Finding
from pytest_pgleak.session_state.state import Leftover, What

_MOST: Final = 4
"""Things that are named; the others are counted."""
_WIDTH: Final = 40
"""Characters of a setting's value."""
_VERBS: Final[dict[What, str]] = {
    "setting": "set",
    "role": "set",
    "session authorization": "set",
    "advisory lock": "locked",
    "channel": "listened",
    "cursor": "declared",
    "prepared statement": "prepared",
}


def verb(finding: Finding) -> str:
    """Return the label of the line that shows the origin: the statement, or else the checkout."""
    is_checkout = finding.shared is None and finding.origin == finding.opened
    return "taken" if is_checkout else _VERBS.get(finding.left[0].what, "created")


def left(finding: Finding) -> str:
    """Say what was left."""
    phrases = [_phrase(each) for each in finding.left[:_MOST]]
    if (more := len(finding.left) - _MOST) > 0:
        phrases.append(f"{more} more")
    return ", ".join(phrases)


def ended(finding: Finding) -> str:
    """Say how the connection went back."""
    pid = f" (pid {finding.connection.backend_pid})" if finding.connection is not None else ""
    return f"given back to its pool like this{pid}; whoever takes the connection next inherits it"


def fix(finding: Finding) -> str:
    """Say what to change."""
    first = finding.left[0]
    with_ = "async with" if finding.connection is not None and finding.connection.is_async else "with"
    inside = f"inside `{with_} conn.transaction():`"
    if first.what == "advisory lock":
        return f"take it with `pg_advisory_xact_lock(…)` {inside}, or unlock it in a `finally:`"
    if first.what == "channel":
        return f"`unlisten {first.name}` before it goes back; better listen on a connection that is in no pool"
    if first.what == "cursor":
        return f"close it: `{with_} conn.cursor({first.name!r}, withhold=True) as cur:`"
    if first.what == "temporary table":
        return f"`create temp table … on commit drop` {inside}, or drop it before the connection goes back"
    if first.what in ("temporary view", "temporary sequence"):
        return "drop it before the connection goes back, or in the pool's `reset=` callback"
    if first.what == "role":
        return f"`set local role …` {inside}, or `reset role` before the connection goes back"
    if first.what == "session authorization":
        return f"`set local session authorization …` {inside}, or reset it before the connection goes back"
    if first.value is None and not first.is_custom:
        return f"do not reset what the pool's `configure=` has set; to change {first.name} for a while, `set local` it"
    if first.is_custom:
        return f"`set_config('{first.name}', …, true)` {inside}, or `reset all` in the pool's `reset=` callback"
    return f"`set local {first.name} …` {inside}, or `reset all` in the pool's `reset=` callback"


def _phrase(each: Leftover) -> str:
    if each.what == "channel":
        return f"listening on channel {each.name}"
    if each.what == "cursor":
        return f"cursor {each.name} (WITH HOLD)"
    if each.what != "setting" or each.is_custom:
        return f"{each.what} {each.name}"
    was = f" (was {_cut(each.was)})" if each.was else ""
    return f"setting {each.name} = {_cut(each.value) or '(empty)'}{was}" if each.value is not None else _reset(each)


def _reset(each: Leftover) -> str:
    return f"setting {each.name} reset (the pool's `configure` had set {_cut(each.was)})"


def _cut(value: str | None) -> str:
    text = " ".join((value or "").split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
