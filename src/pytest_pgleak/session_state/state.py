"""The state of a server session that outlives a transaction, and what was left of it. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pytest_pgleak.events import ConnectionFacts, Moment

What = Literal[
    "setting",
    "role",
    "session authorization",
    "advisory lock",
    "channel",
    "temporary table",
    "temporary view",
    "temporary sequence",
    "cursor",
    "prepared statement",
]


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that was changed in the session.

    Attributes:
        value: Its value now, as ``pg_settings.setting`` has it.
        reset: The value that ``RESET`` would bring back.
    """

    value: str
    reset: str


@dataclass(frozen=True, slots=True)
class SessionState:
    """What one look at a session has shown.

    Attributes:
        settings: The settings that were changed in the session, by name.
        role: ``current_setting('role')``; None where nobody has looked.
        session_user: Who it is by ``SET SESSION AUTHORIZATION``; empty for who has logged in, None where nobody has
            looked.
        custom: Values of the settings of the application's own (``app.user_id``), as far as their names are known;
            empty for one that is not set.
        locks: Advisory locks, as they are shown: the key, or both of them.
        channels: What it listens on.
        relations: Temporary relations: name and `What`.
        cursors: Names of the cursors ``WITH HOLD``.
        prepared: The text of each prepared statement, by its name; only read where a session is shared.
    """

    settings: Mapping[str, Setting] = field(default_factory=dict)
    role: str | None = None
    session_user: str | None = None
    custom: Mapping[str, str] = field(default_factory=dict, repr=False)  # row-level security: may be anything
    locks: frozenset[str] = frozenset()
    channels: frozenset[str] = frozenset()
    relations: frozenset[tuple[str, What]] = frozenset()
    cursors: frozenset[str] = frozenset()
    prepared: Mapping[str, str] = field(default_factory=dict, repr=False)


BORN = SessionState()
"""A session as the server makes it. Its role and the custom settings are whatever they are by default."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that was left.

    Attributes:
        what: What sort of thing.
        name: Its name, or its key.
        value: Value of a built-in setting; None where it was reset, and for custom settings, which may be secrets.
        was: Its value before.
    """

    what: What
    name: str
    value: str | None = None
    was: str | None = None

    @property
    def is_custom(self) -> bool:
        """Whether it is a setting of the application's own."""
        return self.what == "setting" and "." in self.name


@dataclass(frozen=True, slots=True)
class SharedServer:
    """Server connections of PgBouncer's, which one client after the other is given.

    Attributes:
        database: Database of their pool, as clients call it.
        user: User of their pool.
        pool_mode: ``session``, ``transaction`` or ``statement``.
        pids: Their backends.
    """

    database: str
    user: str
    pool_mode: str
    pids: tuple[int, ...] = ()

    def of(self, pids: Iterable[int]) -> SharedServer:
        """Return some of them."""
        return replace(self, pids=tuple(pids))


@dataclass(frozen=True, slots=True)
class LeftState:
    """What was left on one pooled connection, or on a server connection of PgBouncer's, by one line.

    Attributes:
        connection: Serial of the connection.
        facts: Facts of it.
        pool: Serial of its pool.
        moment: The statement that did it; the checkout, where no statement is known.
        holder: The checkout in which it happened.
        left: What was left.
        shared: The server connections on which it was left, where PgBouncer stands in between.
    """

    connection: int
    facts: ConnectionFacts
    pool: int | None
    moment: Moment
    holder: Moment
    left: tuple[Leftover, ...]
    shared: SharedServer | None = None


def left_since(before: SessionState, now: SessionState, before_is_complete: bool = False) -> tuple[Leftover, ...]:
    """Tell what is in a session now and was not there before.

    What has the value it had, or would have after ``RESET``, is not left.

    Args:
        before: What it is judged against.
        now: What is there.
        before_is_complete: Whether the settings in `before` are meant to stay (``configure`` has made them): then one
            that was reset is left, too.
    """
    found = [*_settings(before, now, before_is_complete)]
    found += _customs(before, now, before_is_complete)
    if before.role is not None and now.role not in (before.role, None):
        found.append(Leftover("role", now.role, was=before.role))
    if before.session_user is not None and now.session_user not in (before.session_user, None):
        found.append(Leftover("session authorization", now.session_user or "default", was=before.session_user))
    found += (Leftover("advisory lock", name) for name in sorted(now.locks - before.locks))
    found += (Leftover("channel", name) for name in sorted(now.channels - before.channels))
    found += (Leftover(what, name) for name, what in sorted(now.relations - before.relations))
    found += (Leftover("cursor", name) for name in sorted(now.cursors - before.cursors))
    return tuple(found)


def _settings(before: SessionState, now: SessionState, before_is_complete: bool) -> Iterable[Leftover]:
    for name, setting in sorted(now.settings.items()):
        was = before.settings[name].value if name in before.settings else setting.reset
        if setting.value != was and (before_is_complete or setting.value != setting.reset):
            yield _setting(name, setting.value, was)
    for name, setting in sorted(before.settings.items()):
        if before_is_complete and name not in now.settings and setting.value != setting.reset:
            yield _setting(name, None, setting.value)


def _setting(name: str, value: str | None, was: str) -> Leftover:
    return Leftover("setting", name) if "." in name else Leftover("setting", name, value, was)


def _customs(before: SessionState, now: SessionState, before_is_complete: bool) -> Iterable[Leftover]:
    for name, value in sorted(now.custom.items()):
        was = before.custom.get(name, value)
        if value != was and (value or before_is_complete) and name not in now.settings:
            yield Leftover("setting", name)


def unknown_before(before: SessionState, now: SessionState) -> tuple[frozenset[str], bool]:
    """Tell what has to be asked of the server before `left_since` can judge.

    Args:
        before: What it is to be judged against.
        now: What is there.

    Returns:
        The custom settings whose value by default is not known, and whether the role by default is not.
    """
    customs = frozenset(name for name, value in now.custom.items() if value and name not in before.custom)
    has_role = before.role is None and now.role not in (None, "none")
    return customs, has_role or (before.session_user is None and bool(now.session_user))


def completed(before: SessionState, default: SessionState) -> SessionState:
    """Fill in what was not known of a state with what a reset would bring."""
    return replace(
        before,
        role=default.role if before.role is None else before.role,
        session_user=default.session_user if before.session_user is None else before.session_user,
        custom={**default.custom, **before.custom},
    )


def adopted(before: SessionState, now: SessionState, left: Iterable[Leftover]) -> SessionState:
    """Take some of what was left into the state that the next look is judged against."""
    names = {(each.what, each.name) for each in left}
    settings = dict(before.settings)
    for name in {name for what, name in names if what == "setting"} - set(now.custom):
        settings.pop(name, None)
        if name in now.settings:
            settings[name] = now.settings[name]
    custom = {name: value for name, value in now.custom.items() if ("setting", name) in names}
    return replace(
        before,
        settings=settings,
        role=now.role if any(what == "role" for what, _ in names) else before.role,
        session_user=now.session_user if any(w == "session authorization" for w, _ in names) else before.session_user,
        custom={**before.custom, **custom},
        locks=before.locks | {name for name in now.locks if ("advisory lock", name) in names},
        channels=before.channels | {name for name in now.channels if ("channel", name) in names},
        relations=before.relations | {(name, what) for name, what in now.relations if (what, name) in names},
        cursors=before.cursors | {name for name in now.cursors if ("cursor", name) in names},
    )
