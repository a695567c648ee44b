from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_pgleak.ignore_rules import IgnoreRule
from pytest_pgleak.kinds import KINDS
from pytest_pgleak.options import INI, is_configured
from pytest_pgleak.settings import DEFAULT_GRACE, MarkerSettings, SettingError, Settings, read_marker, read_settings


class Config:
    """What of pytest's config the settings are read from: values of ini options and of the command line."""

    def __init__(self, ini=(), options=()):
        kinds = {name: {"bool": False, "linelist": []}.get(kind, "") for name, kind, _ in INI}
        self._ini = {**kinds, **dict(ini)}
        self._options = dict(options)

    def getini(self, name):
        return self._ini[name]

    def getoption(self, name, default=None):
        return self._options.get(name, default)


def read(*, options=(), **ini):
    return read_settings(Config({f"pgleak_{name}": value for name, value in ini.items()}, options))


def complaint(read, *args, **kwargs):
    with pytest.raises(SettingError) as caught:
        read(*args, **kwargs)
    return str(caught.value)


def marker(*args, **kwargs):
    return read_marker(args, kwargs)


def test_the_defaults(monkeypatch):
    monkeypatch.delenv("PGLEAK_DSN", raising=False)
    settings = read()
    assert replace(settings, dsn_option="") == replace(Settings(), dsn_option="")
    assert (settings.mode, settings.select, settings.server, settings.grace) == ("fail", "marked", "auto", 0.5)
    assert (settings.dsn, settings.terminate, settings.ignore, settings.levels) == (None, False, (), {})


def test_nothing_is_configured_by_default():
    assert not is_configured(Config())
    assert is_configured(Config({"pgleak_mode": "warn"}))
    assert is_configured(Config({"pgleak_terminate": True}))
    assert is_configured(Config(options={"pgleak_select": "all"}))


def test_what_the_ini_file_says():
    settings = read(
        mode="warn", select="all", server="local", bindir="/opt/pg/bin", docker_image="postgres:15", tcp=True
    )
    assert (settings.mode, settings.select, settings.server) == ("warn", "all", "local")
    assert (settings.bindir, settings.docker_image, settings.tcp) == ("/opt/pg/bin", "postgres:15", True)
    assert read(terminate=True).terminate is True


@pytest.mark.parametrize(
    ("name", "ini", "option"),
    [("mode", "warn", "off"), ("select", "marked", "all"), ("server", "docker", "embedded"), ("bindir", "/a", "/b")],
)
def test_the_command_line_goes_before_the_ini_file(name, ini, option):
    assert getattr(read(**{name: ini}), name) == ini
    assert getattr(read(**{name: ini}, options={f"pgleak_{name}": option}), name) == option


def test_the_dsn_comes_from_the_command_line_the_ini_file_the_environment_in_that_order(monkeypatch):
    monkeypatch.setenv("PGLEAK_DSN", "host=environment")
    settings = read(dsn="host=ini", options={"pgleak_dsn": "host=option"})
    assert (settings.dsn, settings.dsn_option) == ("host=option", "--pgleak-dsn")
    settings = read(dsn="host=ini")
    assert (settings.dsn, settings.dsn_option) == ("host=ini", "pgleak_dsn")
    settings = read()
    assert (settings.dsn, settings.dsn_option) == ("host=environment", "PGLEAK_DSN")


def test_another_tools_variable_is_not_read(monkeypatch):
    monkeypatch.delenv("PGLEAK_DSN", raising=False)
    monkeypatch.setenv("DATABASE_URL", "postgresql://production")
    monkeypatch.setenv("PGHOST", "production")
    assert read().dsn is None


def test_the_dsn_is_not_in_the_repr():
    assert "s3cr3t" not in repr(read(dsn="postgresql://app:s3cr3t@db/app"))


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [("mode", "fails", "fail"), ("select", "mark", "marked"), ("server", "dokcer", "docker")],
)
def test_a_choice_that_there_is_not(name, value, meant):
    text = complaint(read, **{name: value})
    assert f"pgleak_{name} = {value}" in text
    assert f"did you mean {meant!r}?" in text


def test_a_choice_that_is_like_nothing_gets_no_guess():
    text = complaint(read, mode="xyzzy")
    assert "fail, warn, off" in text
    assert "did you mean" not in text


@pytest.mark.parametrize(
    ("text", "seconds"), [("", DEFAULT_GRACE), ("0", 0.0), ("2", 2.0), ("1.5", 1.5), ("1e-3", 0.001)]
)
def test_a_grace(text, seconds):
    assert read(grace=text).grace == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "-0.001", "nan", "inf", "1,5", "1s", "0x1"])
def test_a_grace_that_cannot_be_meant(text):
    assert complaint(read, grace=text).startswith(f"pgleak_grace = {text}: expected a number of seconds")


@pytest.mark.parametrize(("text", "seconds"), [("", 5.0), ("0", 0.0), ("0.5", 0.5)])
def test_after_how_long_a_wait_for_a_lock_is_told_of(text, seconds):
    assert read(blocked_after=text).blocked_after == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "5s"])
def test_a_patience_that_cannot_be_meant(text):
    assert complaint(read, blocked_after=text).startswith(f"pgleak_blocked_after = {text}: expected a number of")


def test_levels():
    settings = read(levels=["connection-dropped = warn", "untracked-backend=fail", "  write-lost  =  off  "])
    assert settings.levels == {"connection-dropped": "warn", "untracked-backend": "fail", "write-lost": "off"}
    assert settings.level("connection-dropped") == "warn"
    assert settings.level("connection-not-closed") == "fail"


def test_the_levels_of_the_design():
    assert {kind: Settings().level(kind) for kind in KINDS} == {
        "connection-not-closed": "fail",
        "connection-dropped": "fail",
        "connection-not-returned": "fail",
        "pool-not-closed": "fail",
        "transaction-left-open": "fail",
        "write-lost": "fail",
        "returned-in-transaction": "warn",
        "prepared-transaction": "fail",
        "session-state": "fail",
        "too-many-connections": "fail",
        "untracked-backend": "warn",
        "nested-checkout": "warn",
        "commit-after-response": "off",
    }


@pytest.mark.parametrize(
    "line", ["connection-dropped", "connection-dropped: warn", "connection-dropped = ignore", "= warn", "a = = fail"]
)
def test_a_level_that_cannot_be_meant(line):
    text = complaint(read, levels=[line])
    assert text.startswith("pgleak_levels")
    assert repr(line) in text


def test_a_level_of_a_kind_that_there_is_not():
    text = complaint(read, levels=["conection-dropped = off"])
    assert "unknown kind 'conection-dropped' (did you mean 'connection-dropped'?)" in text


def test_rules_to_ignore():
    (first, second) = read(ignore=["connection-dropped app/*.py::get_db", "* legacy/db.py"]).ignore
    assert first == IgnoreRule("connection-dropped", "app/*.py", "get_db", "connection-dropped app/*.py::get_db")
    assert (second.kind, second.glob, second.function) == ("*", "legacy/db.py", "*")


@pytest.mark.parametrize("line", ["connection-dropped", "connection-dropped ::get_db", "connection-dropped app.py::"])
def test_a_rule_that_cannot_be_meant(line):
    text = complaint(read, ignore=[line])
    assert repr(line) in text
    assert "KIND GLOB::FUNCTION" in text


def test_a_rule_for_a_kind_that_there_is_not():
    assert "did you mean 'pool-not-closed'?" in complaint(read, ignore=["pool-not-close app/*.py"])


def test_a_bare_marker():
    assert marker() == MarkerSettings()


def test_everything_that_a_marker_takes():
    settings = marker(
        allow=["connection-dropped", "write-lost"],
        grace=2,
        max_connections=3,
        commit="before-response",
        faults=("disconnect",),
    )
    assert settings == MarkerSettings(
        frozenset({"connection-dropped", "write-lost"}), 2.0, 3, "before-response", ("disconnect",)
    )


@pytest.mark.parametrize(
    "allow",
    [
        "connection-dropped",
        ["connection-dropped"],
        ("connection-dropped",),
        {"connection-dropped"},
        ["connection-dropped"] * 2,
    ],
)
def test_one_kind_may_be_allowed_in_many_ways(allow):
    assert marker(allow=allow).allow == {"connection-dropped"}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_may_be_named(kind):
    assert marker(allow=[kind]).allow == {kind}
    assert read(levels=[f"{kind} = off"]).level(kind) == "off"


def test_a_positional_argument_is_told_where_it_belongs():
    assert "@pytest.mark.pgleak(allow=['connection-dropped'])" in complaint(marker, "connection-dropped")


def test_an_unknown_keyword():
    text = complaint(marker, max_connection=3)
    assert "@pytest.mark.pgleak: unknown keyword 'max_connection' (did you mean 'max_connections'?)" in text
    assert "allow, grace, max_connections, commit, faults" in text


def test_an_unknown_kind():
    text = complaint(marker, allow=["conection-dropped"])
    assert "@pytest.mark.pgleak: allow" in text
    assert "did you mean 'connection-dropped'?" in text
    assert all(kind in text for kind in KINDS)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("allow", 5),
        ("allow", None),
        ("allow", [5]),
        ("allow", {"connection-dropped": True}),
        ("grace", "soon"),
        ("grace", -1),
        ("grace", float("nan")),
        ("grace", float("inf")),
        ("grace", True),
        ("grace", [1]),
        ("max_connections", -1),
        ("max_connections", 1.5),
        ("max_connections", "3"),
        ("max_connections", True),
        ("commit", "after-response"),
        ("commit", True),
        ("faults", 5),
        ("faults", [None]),
    ],
)
def test_a_value_of_the_wrong_sort_points_at_the_marker(keyword, value):
    text = complaint(marker, **{keyword: value})
    assert text.startswith("@pytest.mark.pgleak")
    assert keyword in text


@pytest.mark.parametrize(("value", "expected"), [(None, None), (0, 0.0), (1.5, 1.5)])
def test_the_grace_of_a_marker(value, expected):
    assert marker(grace=value).grace == expected


def test_no_connection_at_all_may_be_allowed():
    assert marker(max_connections=0).max_connections == 0


def test_pytest_reads_the_ini_file_as_meant(pytester):
    pytester.makeini("""
        [pytest]
        pgleak_grace = 1.5
        pgleak_terminate = yes
        pgleak_levels =
            connection-dropped = warn
            untracked-backend = off
        pgleak_ignore =
            connection-dropped app/*.py::get_db
    """)
    settings = read_settings(pytester.parseconfigure("-p", "no:pytest_asyncio.plugin", "--pgleak-select=all"))
    assert (settings.grace, settings.terminate, settings.select) == (1.5, True, "all")
    assert settings.levels == {"connection-dropped": "warn", "untracked-backend": "off"}
    assert [rule.function for rule in settings.ignore] == ["get_db"]
