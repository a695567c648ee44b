from __future__ import annotations

import asyncio
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import CALL, OTHER, Living, checked_out, gone, opened, pool_facts, pool_opened

from pytest_pgleak.descriptors import Places
from pytest_pgleak.hangs.slot_notes import SlotNotes, chain, has_note, is_full
from pytest_pgleak.known_servers import KnownServers
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.observers import Observers

POOL = SimpleNamespace(name="app", max_size=2)
FULL = 'connection failed: FATAL:  too many connections for role "app"'


class PoolTimeout(Exception):  # noqa: N818 - psycopg_pool's name
    pass


def notes(*events):
    ledger = Ledger()
    for event in events:
        ledger.record(event)
    return SlotNotes(ledger, Observers(KnownServers(Places(), lambda: None)), lambda: CALL.nodeid, Path("/project"))


def starved(loop):
    facts = replace(pool_facts(), loop=loop)
    written = notes(replace(pool_opened(), opened_pool=facts))
    written.pool_starved(POOL, 20, PoolTimeout("couldn't get a connection"))
    (noted,) = written.take()
    return noted.note


def test_a_pool_that_is_asked_in_another_event_loop():
    async def own():
        return starved(weakref.ref(asyncio.get_running_loop()))

    async def others():
        return starved(reference)

    loop = asyncio.new_event_loop()
    reference = weakref.ref(loop)
    assert "event loop" not in loop.run_until_complete(own())
    assert "it was opened in another event loop" in starved(reference)
    assert "it was opened in another event loop" in asyncio.run(others())
    loop.close()
    assert "its event loop is closed" in starved(reference)
    del loop
    assert "its event loop is closed" in starved(reference)
    assert "event loop" not in starved(None)


@pytest.mark.parametrize(
    "text",
    [
        "FATAL:  sorry, too many clients already",
        "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        FULL,
        'FATAL:  too many connections for database "app"',
        "FATAL: no more connections allowed (max_client_conn)",
    ],
)
def test_a_server_that_is_full(text):
    assert is_full(text)
    assert not is_full("FATAL:  the database system is starting up")


def test_the_chain_of_an_error():
    inner, cause, grouped = ValueError("inner"), KeyError("cause"), OSError("grouped")
    inner.__cause__ = cause
    cause.__context__ = inner  # a circle
    error = ExceptionGroup("several", [grouped])
    error.__context__ = inner
    assert set(chain(error)) == {error, inner, cause, grouped}
    assert list(chain(None)) == []


def test_a_note_is_put_once():
    written, error = notes(pool_opened(), opened(pool=20, living=Living()), checked_out(owner=OTHER)), PoolTimeout()
    for _ in range(2):
        written.pool_starved(POOL, 20, error)
    (noted,) = written.take()
    note = noted.note
    assert note.startswith("pgleak: pool 'app' (max_size 2): 1 checked out\n  pid 4711 taken ")
    assert "by test_visits.py::test_other" in note
    assert noted.error() is error
    assert not has_note(error)  # a test may catch it, and compare its text
    assert written.take() == []


def test_a_slot_that_was_lost_and_judged_is_still_lost():
    ledger_events = pool_opened(), opened(pool=20, living=Living()), checked_out(owner=OTHER), gone()
    written, error = notes(*ledger_events), PoolTimeout()
    written._ledger.forget_owner(OTHER.serial)
    assert written._ledger.view().connections == ()
    written.pool_starved(POOL, 20, error)
    assert "0 checked out, 1 slot lost for ever" in written.take()[0].note


def test_another_error_gets_no_note():
    written, error = notes(), ValueError("nothing to do with it")
    written.pool_starved(POOL, 20, error)
    written.refused(error)
    assert written.take() == []


def test_why_a_pool_could_not_connect_is_told_until_it_can():
    written, error = notes(pool_opened()), PoolTimeout()
    written.pool_has_tried(20, OSError(FULL))
    written.pool_starved(POOL, 20, error)
    pool, crowd = written.take()[0].note.split("pgleak: ")[1:]
    assert "the pool could not open another one: connection failed: FATAL: too many" in pool
    assert crowd.startswith("this process has 0 connections")
    written.pool_has_tried(20, None)
    written.pool_starved(POOL, 20, later := PoolTimeout())
    assert "could not open" not in written.take()[0].note
    assert later.args == ()


def test_the_memory_is_bounded():
    written = notes()
    for number in range(1000):
        written.pool_has_tried(number, OSError("no"))
        written.refused(OSError(FULL))
    assert len(written._troubles) == 100
    assert len(written.take()) == 3
