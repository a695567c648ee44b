from __future__ import annotations

from pathlib import Path

import pytest
from builders import CALL, OTHER, backend, connection_facts, finding, frame, moment, pool

from pytest_pgleak.activity import NOTHING_KNOWN
from pytest_pgleak.find import Question, find
from pytest_pgleak.rendering import failure
from pytest_pgleak.requests import Request
from pytest_pgleak.session_state.state import Leftover, LeftState
from pytest_pgleak.views import Ending, View

ROOT = Path("/project")
SEARCH_PATH = Leftover("setting", "search_path", "tenant_a", '"$user", public')


def left_state(*left, owner=CALL, at=3.0, connection=10, holder=None, **more):
    where = moment(owner, at, **more)
    return LeftState(connection, connection_facts(), 20, where, holder or moment(owner, 2.0), left or (SEARCH_PATH,))


def ask(view, owner=CALL):
    return find(view, NOTHING_KNOWN, Question(owner, frozenset({owner.serial})))


def session_finding(*left, is_async=True, **more):
    return finding(
        "session-state",
        "session",
        Ending.CLOSED,
        connection=connection_facts(is_async=is_async),
        left=left or (SEARCH_PATH,),
        opened=frame(9),
        **more,
    )


def lines_of(found):
    return [line.text for line in failure([found], ROOT)]


def line(label, found):
    return next(text[12:] for text in lines_of(found) if text.startswith(f"  {label} "))


def test_found_for_whoever_had_checked_it_out():
    view = View(sessions=(left_state(), left_state(owner=OTHER)), pools={20: pool()})
    (found,) = ask(view)
    assert (found.kind, found.subject, found.serial, found.owner) == ("session-state", "session", 10, CALL)
    assert found.left == (SEARCH_PATH,)
    assert found.pool is not None
    assert not found.can_heal
    assert [each.owner for each in ask(view, OTHER)] == [OTHER]


def test_the_request_of_the_checkout_stands_in():
    request = Request(1, "GET", "/visit/")
    (found,) = ask(View(sessions=(left_state(holder=moment(CALL, 2.0, request=request)),)))
    assert found.request is not None
    assert found.request.ordinal == 1


def test_a_pool_that_is_gone_is_not_shown():
    (found,) = ask(View(sessions=(left_state(),)))
    assert found.pool is None


def test_the_usual_block():
    inside = "`set local search_path …` inside `async with conn.transaction():`"
    assert lines_of(session_finding()) == [
        "[session-state] session state left on a pooled connection",
        "  set       app/db.py:14 in get_conn",
        "  taken     app/db.py:9 in get_conn",
        '  left      setting search_path = tenant_a (was "$user", public)',
        "  ended     given back to its pool like this (pid 4711); whoever takes the connection next inherits it",
        f"  fix       {inside}, or `reset all` in the pool's `reset=` callback",
        '  allow     @pytest.mark.pgleak(allow=["session-state"])',
    ]


@pytest.mark.parametrize(
    ("left", "label", "phrase", "fix"),
    [
        (Leftover("setting", "lock_timeout", "1ms", "0ms"), "set", "setting lock_timeout = 1ms (was 0ms)", "set local"),
        (Leftover("setting", "app.user"), "set", "setting app.user", "set_config('app.user', …, true)"),
        (
            Leftover("setting", "search_path", None, "app"),
            "set",
            "setting search_path reset (the pool's `configure` had set app)",
            "`configure=`",
        ),
        (Leftover("role", "tenant", was="none"), "set", "role tenant", "set local role"),
        (
            Leftover("session authorization", "tenant"),
            "set",
            "session authorization tenant",
            "set local session authorization",
        ),
        (Leftover("advisory lock", "42"), "locked", "advisory lock 42", "pg_advisory_xact_lock"),
        (Leftover("channel", "visits"), "listened", "listening on channel visits", "unlisten visits"),
        (Leftover("temporary table", "scratch"), "created", "temporary table scratch", "on commit drop"),
        (Leftover("temporary view", "scratch"), "created", "temporary view scratch", "drop it"),
        (Leftover("cursor", "c"), "declared", "cursor c (WITH HOLD)", "withhold=True"),
    ],
)
def test_each_sort_has_its_words(left, label, phrase, fix):
    found = session_finding(left)
    assert line("left", found) == phrase
    assert fix in line("fix", found)
    assert line(label, found).startswith("app/db.py:14")


def test_where_no_statement_is_known_the_checkout_stands():
    found = session_finding(origin=frame(9))
    assert line("taken", found).startswith("app/db.py:9")
    assert sum("app/db.py" in text for text in lines_of(found)) == 1


def test_long_values_and_long_lists_are_cut():
    found = session_finding(
        Leftover("setting", "search_path", "x" * 100, "y" * 100),
        *(Leftover("channel", f"c{number}") for number in range(5)),
    )
    assert line("left", found) == (
        f"setting search_path = {'x' * 39}… (was {'y' * 39}…), listening on channel c0, listening on channel c1,"
        " listening on channel c2, 2 more"
    )


def test_sync_code_gets_a_sync_fix():
    assert "inside `with conn.transaction():`," in line("fix", session_finding(is_async=False))


def test_the_look_itself_is_no_last_sql():
    found = finding("connection-not-returned", "checkout", Ending.OPEN, backend=backend(query="/* pgleak */ select 1"))
    assert not any("last sql" in text for text in lines_of(found))
