from __future__ import annotations

import pytest

from pytest_pgleak.session_state.state import (
    BORN,
    Leftover,
    SessionState,
    Setting,
    adopted,
    completed,
    left_since,
    unknown_before,
)

APP = SessionState(
    settings={"search_path": Setting("app", "public")},
    role="none",
    session_user="",
    custom={"app.user": "nobody"},
    locks=frozenset({"1"}),
    channels=frozenset({"jobs"}),
    relations=frozenset({("cache", "temporary table")}),
    cursors=frozenset({"c"}),
)


def state(**more):
    return SessionState(**{"role": "none", "session_user": "", **more})


def names(found):
    return [(each.what, each.name) for each in found]


# what is there now, what is left of it where nothing was configured
FROM_BORN = [
    ({}, []),
    ({"settings": {"search_path": Setting("tenant", "public")}}, [("setting", "search_path")]),
    ({"settings": {"search_path": Setting("public", "public")}}, []),
    ({"settings": {"auto_explain.log_analyze": Setting("on", "off")}}, [("setting", "auto_explain.log_analyze")]),
    ({"locks": frozenset({"42"})}, [("advisory lock", "42")]),
    ({"channels": frozenset({"visits"})}, [("channel", "visits")]),
    ({"relations": frozenset({("scratch", "temporary view")})}, [("temporary view", "scratch")]),
    ({"cursors": frozenset({"report"})}, [("cursor", "report")]),
    # Nobody knows what a reset would bring: that is to be asked first.
    ({"role": "tenant"}, []),
    ({"session_user": "tenant"}, []),
    ({"custom": {"app.user": "7"}}, []),
]


@pytest.mark.parametrize(("now", "left"), FROM_BORN)
def test_what_is_left_on_a_session_as_it_was_born(now, left):
    assert names(left_since(BORN, state(**now))) == left


# what is there now, what is left where all of it was there before, and where `configure` is known to have made it
FROM_CONFIGURED = [
    (APP, [], []),
    (state(), [], [("setting", "search_path")]),
    (state(custom={"app.user": ""}), [], [("setting", "search_path"), ("setting", "app.user")]),
    (state(settings={"search_path": Setting("public", "public")}), [], [("setting", "search_path")]),
    (state(settings={"search_path": Setting("x", "public")}), *[[("setting", "search_path")]] * 2),
    (state(settings=APP.settings, custom={"app.user": "7"}), *[[("setting", "app.user")]] * 2),
    (state(settings=APP.settings, role="tenant"), *[[("role", "tenant")]] * 2),
    (state(settings=APP.settings, session_user="tenant"), *[[("session authorization", "tenant")]] * 2),
    (state(settings=APP.settings, locks=frozenset({"1", "2"})), *[[("advisory lock", "2")]] * 2),
]


@pytest.mark.parametrize(("now", "left", "left_of_configure"), FROM_CONFIGURED)
def test_what_is_left_on_a_session_that_was_used_before(now, left, left_of_configure):
    assert names(left_since(APP, now)) == left
    assert names(left_since(APP, now, before_is_complete=True)) == left_of_configure


def test_values_are_those_of_built_in_settings():
    now = state(settings={"search_path": Setting("x", "public")}, custom={"app.user": "s3cr3t"})
    assert left_since(APP, now) == (
        Leftover("setting", "search_path", "x", "app"),
        Leftover("setting", "app.user"),
    )


def test_secrets_are_not_in_the_representation():
    assert "s3cr3t" not in repr(state(custom={"app.user": "s3cr3t"}))


def test_a_custom_setting_that_the_server_knows_is_one():
    now = state(settings={"app.user": Setting("7", "")}, custom={"app.user": "7"})
    before = completed(BORN, state(custom={"app.user": ""}))
    assert names(left_since(before, now)) == [("setting", "app.user")]


@pytest.mark.parametrize(
    ("before", "now", "unknown"),
    [
        (BORN, state(), (frozenset(), False)),
        (BORN, state(role="tenant"), (frozenset(), True)),
        (BORN, state(session_user="tenant"), (frozenset(), True)),
        (BORN, state(custom={"app.user": "", "app.tenant": "7"}), (frozenset({"app.tenant"}), False)),
        (APP, state(role="tenant", custom={"app.user": "7"}), (frozenset(), False)),
    ],
)
def test_what_must_be_asked(before, now, unknown):
    assert unknown_before(before, now) == unknown


def test_what_was_asked_is_filled_in():
    known = completed(BORN, state(role="owner", custom={"app.user": "nobody"}))
    assert (known.role, known.session_user, known.custom) == ("owner", "", {"app.user": "nobody"})
    assert completed(APP, state(role="owner", custom={"app.user": "7"})) == APP


def test_adopted_is_what_was_judged_and_no_more():
    now = state(
        settings={"search_path": Setting("x", "public"), "lock_timeout": Setting("1", "0")},
        role="tenant",
        custom={"app.user": "7"},
        locks=frozenset({"1", "2"}),
        channels=frozenset({"jobs", "visits"}),
        relations=frozenset({("scratch", "temporary table")}),
        cursors=frozenset({"d"}),
    )
    left = left_since(APP, now, before_is_complete=True)
    assert left_since(adopted(APP, now, left), now, before_is_complete=True) == ()
    for each in left:
        others = left_since(adopted(APP, now, [each]), now, before_is_complete=True)
        assert names(others) == [name for name in names(left) if name != (each.what, each.name)]
