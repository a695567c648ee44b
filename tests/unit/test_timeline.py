from __future__ import annotations

from pathlib import Path

from builders import CALL, moment, opened, pool_facts

from pytest_pgleak import rendering
from pytest_pgleak.budget.peaks import OpenConnection, Peak
from pytest_pgleak.budget.rules import find_over_limit_of_workers
from pytest_pgleak.budget.timeline import Change, Timeline, most_at_once

ROOT = Path("/project")


def connection(serial, pool=None):
    event = opened(serial, CALL)
    return OpenConnection(serial, event.connection, event.moment, pool)


def line(*changes, open_=(), taken=(), pool=None):
    """A timeline of connections that all belong to one pool, or to none."""
    serials = {*open_, *(serial for _, serial, _ in changes)}
    pools = {} if pool is None else {pool: (pool_facts(name="main"), moment(CALL))}
    return Timeline(
        {serial: connection(serial, pool) for serial in serials},
        pools,
        frozenset(open_),
        frozenset(taken),
        tuple(Change(at, serial, what) for at, serial, what in changes),
    )


def at_once(*lines):
    return sorted((each.process, each.connection.serial, each.in_use) for each in most_at_once(lines))


def test_nothing_is_open():
    assert at_once() == []
    assert at_once(line(), line()) == []


def test_what_two_processes_have_one_after_the_other_is_no_sum():
    first = line((1.0, 1, "opened"), (2.0, 1, "closed"))
    second = line((3.0, 1, "opened"), (4.0, 1, "closed"))
    assert len(at_once(first, second)) == 1


def test_what_they_have_at_one_time_is():
    first = line((1.0, 1, "opened"), (3.0, 1, "closed"))
    second = line((2.0, 1, "opened"), (4.0, 1, "closed"))
    assert at_once(first, second) == [(0, 1, True), (1, 1, True)]


def test_what_was_open_at_the_beginning_counts():
    assert at_once(line(open_=[1, 2]), line((5.0, 7, "opened"))) == [(0, 1, True), (0, 2, True), (1, 7, True)]


def test_of_several_moments_the_one_with_the_most_in_use():
    pooled = line((1.0, 1, "taken"), (2.0, 2, "taken"), (3.0, 1, "returned"), open_=[1, 2, 3], pool=9)
    assert at_once(pooled) == [(0, 1, True), (0, 2, True), (0, 3, False)]


def test_what_is_closed_while_it_was_taken_is_in_use_no_more():
    pooled = line((1.0, 1, "closed"), (2.0, 1, "opened"), open_=[1, 2], taken=[1], pool=9)
    assert at_once(pooled) == [(0, 1, True), (0, 2, False)]
    assert at_once(line((1.0, 1, "closed"), (2.0, 3, "opened"), (3.0, 4, "opened"), open_=[1], taken=[1], pool=9)) == [
        (0, 3, False),
        (0, 4, False),
    ]


def found(*lines, limit, now=(), server=100):
    return find_over_limit_of_workers(lines, Peak(limit, now=tuple(now)), CALL, server)


def text(findings):
    return [each.text.strip() for each in rendering.failure(findings, ROOT)]


def test_the_limit_itself_is_allowed():
    assert found(line(open_=[1, 2], pool=9), line(open_=[1, 2], pool=9), limit=4) == ()


def test_the_sum_is_workers_times_pool():
    pooled = [line((1.0, 1, "taken"), open_=[1, 2, 3, 4], pool=9) for _ in range(4)]
    (finding,) = findings = found(*pooled, limit=15)
    assert finding.over.number == 16
    lines = text(findings)
    assert "at once   16 connections were open at once, max_connections allows 15; the server takes 100" in lines
    (holder,) = [each for each in lines if each.startswith("held by")]
    assert holder.startswith("held by   4 workers × 4, pool 'main' (")
    assert holder.endswith("): 4 in use, 12 idle")


def test_workers_that_have_different_numbers():
    findings = found(line(open_=[1, 2, 3], pool=9), line(open_=[1], pool=9), limit=3, server=0)
    assert "at once   4 connections were open at once, max_connections allows 3" in text(findings)
    assert any("2 workers (3 + 1), pool 'main' (" in each for each in text(findings))


def test_what_this_process_has_open_to_the_end_counts_as_well():
    assert found(line(open_=[1, 2]), limit=3, now=[connection(5)]) == ()
    (finding,) = found(line(open_=[1, 2]), limit=2, now=[connection(5)])
    assert finding.over.number == 3
    assert [held.workers for held in finding.over.held] == [(2,), ()]


def test_a_finding_of_this_process_alone_is_not_this_ones():
    assert found(limit=0, now=[connection(1)]) == ()
