from __future__ import annotations

from pathlib import Path

import pytest
from builders import CALL, FIXTURE, OTHER, Living, backend, closed, gone, moment, opened, pool_facts, pool_opened, stack

from pytest_pgleak import rendering
from pytest_pgleak.budget.meter import ConnectionMeter
from pytest_pgleak.budget.peaks import Held, OpenConnection, Peak
from pytest_pgleak.budget.rules import find_over_limit, held_by
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.reporting import reported

ROOT = Path("/project")
MINE = {CALL.serial, FIXTURE.serial}


def metered(*before, limit=2):
    ledger = Ledger()
    for event in before:
        ledger.record(event)
    meter = ConnectionMeter(limit, lambda owner: owner.serial in MINE)
    ledger.start_meter(meter)
    return ledger, meter


def read(ledger):
    reading = ledger.read_meter()
    return [each.serial for each in reading.most], [each.serial for each in reading.now]


def after(ledger, *events):
    for event in events:
        ledger.record(event)
    return read(ledger)


def test_nothing_is_open():
    ledger, meter = metered()
    assert read(ledger) == ([], [])
    assert meter.went_over is None


def test_the_most_that_were_open_in_between():
    ledger, meter = metered()
    most, now = after(ledger, opened(1), opened(2), closed(1), opened(3), opened(4), closed(3), gone(4))
    assert most == [2, 3, 4]
    assert now == [2]
    assert meter.went_over.serial == 4
    # … since the last time:
    assert after(ledger, opened(5)) == ([2, 5], [2, 5])


def test_one_after_the_other_is_one():
    ledger, meter = metered(limit=1)
    most, _ = after(ledger, *(event for serial in range(9) for event in (opened(serial), closed(serial))))
    assert len(most) == 1
    assert meter.went_over is None


def test_what_is_open_already_counts():
    ledger, meter = metered(opened(1, FIXTURE), opened(2, FIXTURE), closed(2), opened(3), limit=1)
    assert read(ledger) == ([1, 3], [1, 3])
    assert meter.went_over.serial == 3


def test_what_belongs_to_others_does_not():
    ledger, _ = metered(opened(1, OTHER), opened(2, FIXTURE))
    assert after(ledger, opened(3, OTHER), opened(4)) == ([2, 4], [2, 4])


def test_a_member_of_a_pool_counts_for_whoever_opened_the_pool():
    ledger, _ = metered(pool_opened(20, FIXTURE), opened(1, FIXTURE, pool=20), pool_opened(21, OTHER))
    assert after(ledger, opened(2, OTHER, pool=20), opened(3, CALL, pool=21)) == ([1, 2], [1, 2])


def test_a_pool_may_be_heard_of_after_its_members():
    ledger, meter = metered(limit=0)
    assert after(ledger, opened(1, pool=20), pool_opened(20, OTHER)) == ([], [])
    assert meter.went_over is None
    assert after(ledger, opened(2, pool=21), pool_opened(21, CALL)) == ([2], [2])


def test_what_the_server_has_ended_is_not_open():
    ledger, _ = metered()
    living = Living()
    assert after(ledger, opened(1, living=living)) == ([1], [1])
    living.closed = True
    assert read(ledger) == ([1], [])
    assert read(ledger) == ([], [])


def test_without_a_meter_nothing_is_counted():
    ledger, meter = metered()
    ledger.stop_meter()
    ledger.record(opened(1))
    ledger.view()
    assert meter.take().most == ()
    with pytest.raises(LookupError):
        ledger.read_meter()


def line(lineno):
    return stack(("get_conn", "/project/app/db.py", lineno))


def conn(serial, lineno=None, pool=None):
    where = (
        stack(("connect", "/usr/lib/python3/site-packages/psycopg_pool/pool.py", 1)) if lineno is None else line(lineno)
    )
    event = opened(serial)
    return OpenConnection(serial, event.connection, moment(where=where), pool)


POOLS = {20: (pool_facts(name="main", max_size=4), moment(FIXTURE, where=line(3)))}


def peak(limit, *connections, others=(), went_over=None):
    return Peak(limit, connections, tuple(others), went_over, POOLS)


def test_the_limit_itself_is_allowed():
    assert find_over_limit(peak(2, conn(1, 14), conn(2, 15)), CALL) == ()
    assert find_over_limit(peak(0), CALL) == ()


def test_one_more_is_found_where_it_was_opened():
    (found,) = find_over_limit(peak(1, conn(1, 14), conn(2, 15), went_over=conn(2, 15)), CALL)
    assert (found.kind, found.owner, found.origin.lineno) == ("too-many-connections", CALL, 15)
    assert not found.can_heal


def test_a_member_of_a_pool_is_found_where_the_pool_was_opened():
    (found,) = find_over_limit(peak(0, conn(1, pool=20), went_over=conn(1, pool=20)), CALL)
    assert (found.origin.lineno, found.owner) == (3, CALL)


def test_holders_are_grouped_by_line_and_by_pool():
    held = held_by(
        peak(0, conn(1, 14), conn(2, pool=20), conn(3, 15), conn(4, pool=20), others=[backend(4712)]),
    )
    assert [(each.number, each.origin and each.origin.lineno, each.pool and each.pool.name) for each in held] == [
        (2, 3, "main"),
        (1, 14, None),
        (1, 15, None),
        (1, None, None),
    ]
    assert held[-1] == Held(1, backend=backend(4712))


def shown(found):
    return [text.text for text in rendering.failure(found, ROOT)]


def test_all_lines():
    everything = [conn(1, pool=20), conn(2, 15), conn(3, pool=20)]
    others = [backend(4712, application_name="worker"), backend(4713)]
    assert shown(find_over_limit(peak(2, *everything, others=others, went_over=everything[2]), CALL)) == [
        "[too-many-connections] more connections open at once than allowed",
        "  opened    app/db.py:3 in get_conn",
        "  at once   5 connections were open at once, max_connections allows 2",
        "  held by   2 × pool 'main' (app/db.py:3 in get_conn)",
        "            1 × app/db.py:15 in get_conn",
        "            1 × pid 4712 (application_name 'worker'), not opened by this process",
        "            1 × pid 4713 (no application_name), not opened by this process",
        (
            "  fix       lower the pool's max_size (4 for 'main'), close earlier, or raise max_connections;"
            " the server has to hold workers × max_size"
        ),
        '  allow     @pytest.mark.pgleak(allow=["too-many-connections"])',
    ]


def test_many_holders_are_counted():
    lines = shown(find_over_limit(peak(0, *(conn(number, number + 1) for number in range(9))), CALL))
    assert lines[-3] == "            and 4 more"
    assert sum(" × app/db.py" in text for text in lines) == 5


def test_six_lines_are_shown():
    lines = shown(find_over_limit(peak(0, *(conn(number, number + 1) for number in range(6))), CALL))
    assert sum(" × app/db.py" in text for text in lines) == 6
    assert not any("more" in text.split() for text in lines if text.startswith("            "))


def test_only_others():
    found = find_over_limit(peak(0, others=[backend(4712)]), CALL)
    assert shown(found)[1] == "  at once   1 connection was open at once, max_connections allows 0"
    assert reported(found[0], "test_a.py::test_it", True, ROOT).place == "at once: 1"
