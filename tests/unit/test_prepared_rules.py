from __future__ import annotations

from builders import CALL, FIXTURE, OTHER, SERVER, connection_facts, moment

from pytest_pgleak.events import Event, EventKind
from pytest_pgleak.find import Question
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.prepared.gids import GidUse
from pytest_pgleak.prepared.left import Prepared, PreparedRow
from pytest_pgleak.prepared.queries import strongest
from pytest_pgleak.prepared.rules import find_prepared, strangers_among

ASK = Question(CALL, ended=frozenset({CALL.serial}))
ELSEWHERE = ("other.example", "5432")


def entry(gid="x", owner=CALL, server=SERVER, **more):
    return Prepared(gid, connection_facts(server=server), moment(owner), **more)


def row(gid="x", transaction="739", database="app"):
    return PreparedRow(gid, transaction, 0.3, "app", database)


def found(entries, rows, strangers=()):
    return [(f.prepared.gid, f.owner, f.prepared.row is not None) for f in find_prepared(entries, rows, ASK, strangers)]


def test_what_an_ended_owner_left_on_the_server():
    assert found([entry()], {SERVER: (row(),)}) == [("x", CALL, True)]


def test_what_was_finished_by_whomever_is_not_listed():
    assert found([entry()], {SERVER: ()}) == []
    assert found([entry()], {SERVER: (row("y"),)}) == []


def test_a_living_owner_may_still_finish_it():
    assert found([entry(owner=FIXTURE)], {SERVER: (row(),)}) == []


def test_where_the_server_cannot_be_asked_the_client_stands_alone():
    assert found([entry()], {}) == [("x", CALL, False)]
    assert found([entry(), entry("y", server=ELSEWHERE)], {SERVER: ()}) == [("y", CALL, False)]


def test_a_finding_has_the_line_and_the_row():
    (finding,) = find_prepared([entry(by_sql=True)], {SERVER: (row(),)}, ASK)
    assert finding.origin is not None
    assert finding.origin.lineno == 14
    assert finding.serial == 739
    assert finding.prepared.row == row()
    assert finding.prepared.by_sql
    assert finding.prepared.database == "app"
    assert finding.can_heal


def test_a_stranger_is_charged_to_the_asker_and_has_no_line():
    (finding,) = find_prepared([], {SERVER: (row(),)}, ASK, [(SERVER, row())])
    assert (finding.owner, finding.origin, finding.prepared.is_known) == (CALL, None, False)


def test_strangers_are_new_in_databases_of_our_own_and_explained_by_nobody():
    rows = {SERVER: (row("new"), row("theirs", database="shared"), row("before"), row("known"))}
    before = frozenset({(SERVER, row("before").identity)})
    among = strangers_among(rows, [(SERVER, "app")], before, [entry("known", owner=OTHER)])
    assert among == ((SERVER, row("new")),)


def test_a_gid_that_is_used_again_is_another_one():
    before = frozenset({(SERVER, row("x", "700").identity)})
    assert strangers_among({SERVER: (row("x", "739"),)}, [(SERVER, "app")], before, []) == ((SERVER, row("x", "739")),)


def test_of_a_tables_locks_the_strongest_is_named():
    locks = [("b", "AccessShareLock"), ("a", "AccessShareLock"), ("b", "RowExclusiveLock"), ("c", "RowShareLock")]
    assert strongest(locks) == (("b", "RowExclusiveLock"), ("c", "RowShareLock"), ("a", "AccessShareLock"))


def prepared(gid="x", owner=CALL, finishes=False):
    use = GidUse(gid, finishes)
    return Event(EventKind.PREPARED, 10, moment(owner), connection=connection_facts(), gid=use)


def recorded(*events):
    ledger = Ledger()
    for event in events:
        ledger.record(event)
    return ledger


def test_the_ledger_keeps_what_was_not_finished():
    ledger = recorded(prepared("x"), prepared("y"), prepared("x", finishes=True))
    assert [each.gid for each in ledger.view().prepared] == ["y"]


def test_the_ledger_knows_a_gid_that_was_used_again_by_its_last_use():
    ledger = recorded(prepared(owner=OTHER), prepared(finishes=True), prepared())
    assert [each.moment.owner for each in ledger.view().prepared] == [CALL]


def test_the_ledger_lets_go_of_what_was_settled_or_whose_owner_is_over():
    ledger = recorded(prepared("x"), prepared("y", FIXTURE), prepared("z", OTHER))
    ledger.view()
    ledger.prepared.settle(SERVER, "x")
    ledger.forget_owner(OTHER.serial)
    assert [each.gid for each in ledger.view().prepared] == ["y"]


def test_the_ledger_can_charge_another_owner():
    ledger = recorded(prepared())
    ledger.view()
    ledger.prepared.reassign(SERVER, "x", FIXTURE)
    ledger.prepared.reassign(SERVER, "unknown", FIXTURE)
    assert [each.moment.owner for each in ledger.view().prepared] == [FIXTURE]


def test_the_ledger_does_not_grow_for_ever():
    ledger = recorded(*(prepared(str(number)) for number in range(1500)))
    kept = [each.gid for each in ledger.view().prepared]
    assert len(kept) == 1000
    assert kept[-1] == "1499"
