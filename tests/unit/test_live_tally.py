from __future__ import annotations

from dataclasses import replace

import pytest
from builders import CALL, moment, opened

from pytest_pgleak.budget.peaks import OpenConnection
from pytest_pgleak.budget.timeline import Change, most_at_once
from pytest_pgleak.clock import Clock
from pytest_pgleak.events import Event, EventKind
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.live.counting import Counting, CountingBegan, CountingEnded, FoundOpen
from pytest_pgleak.live.journal import Journal, JournalReader, journals
from pytest_pgleak.live.last_words import Closed, Goodbye, Notes, Opened
from pytest_pgleak.live.tally import Tally
from pytest_pgleak.requests import Request

TEST = 7


def tally(*records):
    made = Tally()
    for record in records:
        for each in record if isinstance(record, tuple) else (record,):
            made.take(each)
    return made


def began(at, *serials, test=TEST):
    facts = opened(1, CALL).connection
    found = {each: OpenConnection(each, facts, moment(CALL)) for each in serials}
    return CountingBegan(test, at), FoundOpen(found, {}, frozenset())


def opens(at, serial, request=None):
    event = opened(serial, CALL)
    return Opened(serial, event.connection, replace(event.moment, at=at, request=request), None)


def most(*tallies, is_gone=False):
    return len(most_at_once(each.timeline(TEST, is_gone, {}) for each in tallies))


def test_what_was_open_before_and_what_is_opened_since():
    assert most(tally(began(1.0, 1, 2), opens(2.0, 3), Closed(1, 3.0), opens(4.0, 4))) == 3


def test_what_happened_before_the_test_does_not_count():
    assert most(tally(opens(0.5, 1), Closed(1, 0.6), began(1.0), opens(2.0, 2))) == 1


@pytest.mark.parametrize("closes", [True, False])
def test_what_happens_while_the_worker_looks_at_what_is_open(tmp_path, closes):
    class Busy(Ledger):
        def view(self):
            if closes:
                happens(Event(EventKind.CONNECTION_CLOSED, 1))
            else:
                happens(opened(2, CALL))
            return super().view()

    def happens(event):
        if event.moment is not None:
            event = replace(event, moment=replace(event.moment, at=Clock.monotonic()))
        ledger.record(event)
        notes.see(event)
        counting.see(event)

    ledger, journal = Busy(), Journal(str(tmp_path))
    notes, counting = Notes(journal), Counting(ledger, journal)
    happens(opened(1, CALL))
    counting.switch(TEST)
    happens(opened(3, CALL))
    (path,) = journals(tmp_path)
    assert most(tally(*JournalReader(path).read())) == (1 if closes else 3)


def test_another_tests_counting_is_not_this_ones():
    assert tally(began(1.0, 1, test=6)).timeline(TEST, False, {}) is None
    made = tally(began(1.0, 1))
    assert made.timeline(TEST, False, {}) is not None
    assert made.timeline(TEST, False, {}) is None


def test_who_is_gone_has_nothing_open_after_it_was_last_heard_of():
    first = tally(began(1.0, 1), opens(2.0, 2), Change(3.0, 1, "taken"))
    assert most(first, tally(began(4.0), opens(5.0, 1)), is_gone=True) == 2
    first = tally(began(1.0, 1), opens(2.0, 2), Goodbye(6.0))
    assert most(first, tally(began(4.0), opens(5.0, 1)), is_gone=True) == 3


def test_a_request_gets_the_status_that_its_client_has_got():
    requests = [Request(number, "GET", "/", owner=CALL.serial) for number in (1, 2, 3)]
    records = [opens(2.0, each.ordinal, each) for each in requests]
    tally(began(1.0), *records, CountingEnded({(CALL.serial, 1): 201})).timeline(TEST, False, {(CALL.serial, 2): 404})
    assert [each.status for each in requests] == [201, 404, None]
