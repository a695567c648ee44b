"""What the user configured: command line over ini over environment, as one frozen value; and the marker."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from pytest_pgleak.ignore_rules import IgnoreRule, parse_rule
from pytest_pgleak.kinds import KINDS, LEVELS, Level
from pytest_pgleak.reports.targets import Target, TargetError, read_targets

if TYPE_CHECKING:
    import pytest

    from pytest_pgleak.baseline.known import Baseline

Mode = Literal["fail", "warn", "off"]
Select = Literal["marked", "all"]
ServerChoice = Literal["auto", "dsn", "embedded", "local", "docker"]

MODES: Final = get_args(Mode)
SELECTS: Final = get_args(Select)
SERVERS: Final = get_args(ServerChoice)
COMMITS: Final = ("before-response",)
DEFAULT_BLOCKED_AFTER: Final = 5.0
"""Seconds: longer than the locks that honest tests wait for, shorter than the patience of whoever waits for the run."""
DEFAULT_GRACE: Final = 0.5
"""Seconds: 25 times the slowest exit of a backend that was measured (22 ms, after 50 temporary tables)."""


class SettingError(Exception):
    """A setting that cannot be meant; the message names the option and the remedy."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a session. Attributes are named after their ini options, without the prefix."""

    mode: Mode = "fail"
    select: Select = "marked"
    grace: float = DEFAULT_GRACE
    blocked_after: float = DEFAULT_BLOCKED_AFTER
    levels: Mapping[str, Level] = field(default_factory=dict)
    ignore: tuple[IgnoreRule, ...] = ()
    baseline: Baseline | None = None
    server: ServerChoice = "auto"
    dsn: str | None = field(default=None, repr=False)
    dsn_option: str = "--pgleak-dsn"
    pgbouncer: str | None = field(default=None, repr=False)
    pgbouncer_option: str = "--pgleak-pgbouncer"
    bindir: str | None = None
    docker_image: str | None = None
    tcp: bool = False
    schema: str | None = None
    live_command: str | None = None
    terminate: bool = False
    reports: tuple[Target, ...] = ()

    def level(self, kind: str) -> Level:
        """Return the level of a kind: what ``pgleak_levels`` says, else the kind's own."""
        return self.levels.get(kind, KINDS[kind].level)


def read_settings(config: pytest.Config) -> Settings:
    """Read the settings.

    Raises:
        SettingError: One of them cannot be meant.
    """
    dsn, dsn_option = _dsn(config)
    pgbouncer, pgbouncer_option = _pgbouncer(config)
    return Settings(
        mode=_choice(config, "pgleak_mode", MODES, "fail"),
        select=_choice(config, "pgleak_select", SELECTS, "marked"),
        grace=_seconds("pgleak_grace", config.getini("pgleak_grace") or str(DEFAULT_GRACE)),
        blocked_after=_seconds(
            "pgleak_blocked_after", config.getini("pgleak_blocked_after") or str(DEFAULT_BLOCKED_AFTER)
        ),
        levels=_levels(config.getini("pgleak_levels")),
        ignore=_rules(config.getini("pgleak_ignore")),
        baseline=_baseline(config),
        server=_choice(config, "pgleak_server", SERVERS, "auto"),
        dsn=dsn,
        dsn_option=dsn_option,
        pgbouncer=pgbouncer,
        pgbouncer_option=pgbouncer_option,
        bindir=config.getoption("pgleak_bindir", None) or config.getini("pgleak_bindir") or None,
        docker_image=config.getini("pgleak_docker_image") or None,
        tcp=config.getoption("pgleak_tcp", False) or config.getini("pgleak_tcp"),
        schema=config.getini("pgleak_schema") or None,
        live_command=config.getini("pgleak_live_command") or None,
        terminate=config.getini("pgleak_terminate"),
        reports=_reports(config),
    )


def _dsn(config: pytest.Config) -> tuple[str | None, str]:
    if given := config.getoption("pgleak_dsn", None):
        return given, "--pgleak-dsn"
    if given := config.getini("pgleak_dsn"):
        return given, "pgleak_dsn"
    return os.environ.get("PGLEAK_DSN") or None, "PGLEAK_DSN"


def _pgbouncer(config: pytest.Config) -> tuple[str | None, str]:
    given = config.getoption("pgleak_pgbouncer", None)
    if given is None and (given := config.getini("pgleak_pgbouncer")):
        return given, "pgleak_pgbouncer"
    return given or None, "--pgleak-pgbouncer"


def _reports(config: pytest.Config) -> tuple[Target, ...]:
    given = config.getoption("pgleak_report", None)
    if not given or hasattr(config, "workerinput"):  # the controller of xdist writes them
        return ()
    try:
        return read_targets(given, config.invocation_params.dir)
    except TargetError as error:
        raise SettingError(str(error)) from None


def _choice(config: pytest.Config, name: str, allowed: tuple[str, ...], default: str) -> Any:
    # The command line checks its own values (argparse); the ini file gets the same check here.
    given = config.getoption(name, None) or config.getini(name) or default
    if given not in allowed:
        raise SettingError(f"{name} = {given}: expected one of {', '.join(allowed)}{_did_you_mean(given, allowed)}")
    return given


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise SettingError(f"{name} = {text}: expected a number of seconds, as 0.5")
    return seconds


def _levels(lines: Iterable[str]) -> dict[str, Level]:
    levels: dict[str, Level] = {}
    for line in lines:
        kind, separator, level = (part.strip() for part in line.partition("="))
        if not separator or level not in LEVELS:
            raise SettingError(f"pgleak_levels: {line!r}: expected a line `KIND = fail|warn|off`")
        check_kind(kind, f"pgleak_levels: {line!r}")
        levels[kind] = level
    return levels


def _rules(lines: Iterable[str]) -> tuple[IgnoreRule, ...]:
    rules = []
    for line in lines:
        rule = parse_rule(line)
        if rule is None:
            raise SettingError(
                f"pgleak_ignore: {line!r}: expected a line `KIND GLOB::FUNCTION`,"
                " as `connection-dropped app/legacy/*.py::get_db`"
            )
        if rule.kind != "*":
            check_kind(rule.kind, f"pgleak_ignore: {line!r}")
        rules.append(rule)
    return tuple(rules)


def _baseline(config: pytest.Config) -> Baseline | None:
    options = ("pgleak_baseline", "pgleak_baseline_update")
    if not config.getini("pgleak_baseline") and not any(config.getoption(option, None) for option in options):
        return None
    if _choice(config, "pgleak_mode", MODES, "fail") == "off":
        if config.getoption("pgleak_baseline_update", False):
            raise SettingError("--pgleak-baseline-update: pgleak_mode is off, and nothing would be found")
        return None
    from pytest_pgleak.baseline.file import read_baseline
    from pytest_pgleak.baseline.text import BaselineError

    try:
        return read_baseline(config)
    except BaselineError as error:
        raise SettingError(str(error)) from None


def check_kind(kind: str, where: str) -> None:
    """Check that a kind exists.

    Args:
        kind: What the user wrote.
        where: The setting to name in the error.

    Raises:
        SettingError: There is no such kind.
    """
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise SettingError(f"{where}: unknown kind {kind!r}{_did_you_mean(kind, KINDS)}\n  The kinds are: {known}")


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    close = get_close_matches(given, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


MARKER_KEYWORDS: Final = ("allow", "grace", "max_connections", "commit", "faults")


@dataclass(frozen=True, slots=True)
class MarkerSettings:
    """What ``@pytest.mark.pgleak(…)`` of one test says.

    Attributes:
        allow: Kinds that this test may leave.
        grace: Seconds to wait for late releases; None for the session's.
        max_connections: Most connections that may be open at once.
        commit: ``"before-response"`` to check when writes are committed.
        faults: Reserved.
    """

    allow: frozenset[str] = frozenset()
    grace: float | None = None
    max_connections: int | None = None
    commit: str | None = None
    faults: tuple[str, ...] = ()


def read_marker(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> MarkerSettings:
    """Read the arguments of the marker.

    Raises:
        SettingError: An argument that the marker does not know, or a value that it cannot mean.
    """
    if args:
        raise SettingError(
            f"@pytest.mark.pgleak takes keywords only, got {args[0]!r}; to allow a kind write"
            f" @pytest.mark.pgleak(allow=[{args[0]!r}])"
        )
    for keyword in kwargs:
        if keyword not in MARKER_KEYWORDS:
            raise SettingError(
                f"@pytest.mark.pgleak: unknown keyword {keyword!r}{_did_you_mean(keyword, MARKER_KEYWORDS)}\n"
                f"  The keywords are: {', '.join(MARKER_KEYWORDS)}"
            )
    grace = kwargs.get("grace")
    return MarkerSettings(
        allow=_allow(kwargs.get("allow", ())),
        grace=None if grace is None else _seconds("@pytest.mark.pgleak: grace", str(grace)),
        max_connections=_max_connections(kwargs.get("max_connections")),
        commit=_commit(kwargs.get("commit")),
        faults=_names("faults", kwargs.get("faults", ())),
    )


def _allow(value: Any) -> frozenset[str]:
    kinds = _names("allow", value)
    for kind in kinds:
        check_kind(kind, "@pytest.mark.pgleak: allow")
    return frozenset(kinds)


def _names(keyword: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(name, str) for name in value):
        raise SettingError(f"@pytest.mark.pgleak: {keyword} = {value!r}: expected a list of names")
    return tuple(value)


def _max_connections(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise SettingError(f"@pytest.mark.pgleak: max_connections = {value!r}: expected a whole number")


def _commit(value: Any) -> str | None:
    if value is None or value in COMMITS:
        return value  # type: ignore[no-any-return]  # None or one of the strings
    raise SettingError(f'@pytest.mark.pgleak: commit = {value!r}: expected "before-response"')
