from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace

import pytest
from builders import (
    CALL,
    FIXTURE,
    LIFESPAN,
    OTHER,
    Living,
    backend,
    began,
    checked_out,
    closed,
    finalized,
    gone,
    moment,
    opened,
    pool_closed,
    pool_facts,
    pool_gone,
    pool_opened,
    returned,
    transaction,
)

from pytest_pgleak.events import Event, EventKind
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.views import Ending


def ledger(*events):
    made = Ledger()
    for event in events:
        made.record(event)
    return made


def only(made):
    (shown,) = made.view().connections
    return shown


def serials(made):
    return [shown.serial for shown in made.view().connections]


def sizes(made):
    kept = vars(made) | vars(made._books)
    return {name.lstrip("_"): len(value) for name, value in kept.items() if hasattr(value, "__len__")}


def in_transaction(ledger):
    return {connection.serial for connection in ledger.view().connections if connection.in_transaction}


def test_it_begins_empty():
    made = Ledger()
    assert made.view().connections == ()
    assert made.view().pools == {}
    assert made.known_pids() == frozenset()
    assert made.open_connections() == {}
    assert in_transaction(made) == set()


def test_an_open_connection():
    living = Living("INTRANS")
    shown = only(ledger(opened(living=living)))
    assert (shown.serial, shown.ending, shown.pool, shown.checkout) == (10, Ending.OPEN, None, None)
    assert (shown.opened.owner, shown.transaction_status) == (CALL, "INTRANS")


def test_the_transaction_status_is_that_of_now():
    living = Living("IDLE")
    made = ledger(opened(living=living))
    assert in_transaction(made) == set()
    living.info.transaction_status.name = "INERROR"
    assert in_transaction(made) == {10}
    assert only(made).transaction_status == "INERROR"


def test_a_closed_connection_is_forgotten_but_its_pid_is_known():
    made = ledger(opened(pid=4711), closed())
    assert made.view().connections == ()
    assert made.known_pids() == {4711}


def test_a_connection_that_broke_counts_as_closed():
    living = Living()
    made = ledger(opened(living=living))
    living.closed = True
    assert only(made).ending is Ending.CLOSED
    assert made.open_connections() == {}


# In a reference cycle the weak reference dies before __del__ runs, otherwise after it.
@pytest.mark.parametrize("events", [(finalized, gone), (gone, finalized)])
def test_a_dropped_connection_in_either_order(events):
    row = backend(4711, backend_xid="739")
    facts = {finalized: {"backend": row, "after_response": True}, gone: {"after_response": True}}
    made = ledger(opened(), *(event(**facts[event]) for event in events))
    shown = only(made)
    assert shown.ending is Ending.DROPPED
    assert (shown.transaction_status, shown.backend, shown.after_response) == ("INTRANS", row, True)


@pytest.mark.parametrize("events", [(finalized, gone), (gone, finalized)])
def test_looking_between_the_two_does_no_harm(events):
    made = ledger(opened())
    for event in events:
        made.record(event())
        made.view()
    shown = only(made)
    assert (shown.ending, shown.transaction_status) == (Ending.DROPPED, "INTRANS")


def test_it_is_dropped_though_nobody_has_said_so_yet():
    living = Living()
    made = ledger(opened(living=living))
    del living
    gc.collect()
    assert only(made).ending is Ending.DROPPED
    assert made.open_connections() == {}


@pytest.mark.parametrize("events", [(closed(), gone()), (gone(), closed()), (closed(), finalized(), gone())])
def test_what_was_closed_is_not_dropped(events):
    assert ledger(opened(), *events).view().connections == ()


def test_a_connection_that_broke_before_the_garbage_collector_came():
    """`__del__` finds it closed: the tracker says closed, after the weak reference has said gone."""
    assert ledger(opened(), gone(), closed()).view().connections == ()


def test_what_is_not_known_changes_nothing():
    made = ledger(closed(), finalized(), gone(), checked_out(), returned(), began(), pool_closed(), pool_gone())
    assert made.view().connections == ()
    assert made.view().pools == {}


def test_a_serial_that_was_forgotten_stays_forgotten():
    made = ledger(opened(), closed(), checked_out(), gone(), finalized())
    assert made.view().connections == ()


def test_a_checkout_and_its_return():
    made = ledger(pool_opened(), opened(pool=20), checked_out(owner=OTHER))
    assert only(made).checkout.owner == OTHER
    assert made.view().pools[20].checked_out == 1
    made.record(returned())
    assert only(made).checkout is None
    assert made.view().pools[20].checked_out == 0


def test_the_second_of_two_checkouts_is_the_one_that_counts():
    # Another thread takes it in the moment in which it was given back.
    made = ledger(pool_opened(), opened(pool=20), checked_out(owner=CALL), returned(), checked_out(owner=OTHER, at=5.0))
    assert (only(made).checkout.owner, only(made).checkout.at) == (OTHER, 5.0)


def test_a_return_that_failed_leaves_it_out():
    made = ledger(pool_opened(), opened(pool=20), checked_out(), returned(), checked_out(owner=CALL, at=6.0))
    assert only(made).checkout.at == 6.0


def test_a_transaction_began_until_the_connection_is_returned():
    made = ledger(opened(pool=20), checked_out(), began(owner=OTHER))
    assert only(made).began.owner == OTHER
    made.record(returned())
    assert only(made).began is None


def test_an_idle_member_that_dies_is_no_news():
    for death in ((finalized(), gone()), (gone(), finalized()), (closed(), gone())):
        assert serials(ledger(pool_opened(), opened(pool=20), *death)) == []


@pytest.mark.parametrize("death", [(finalized(), gone()), (gone(), finalized())])
def test_a_checkout_that_dies_is_kept(death):
    made = ledger(pool_opened(), opened(pool=20), checked_out(), *death)
    assert only(made).ending is Ending.DROPPED
    assert only(made).checkout is not None


def test_a_checkout_that_was_closed_is_kept_until_it_is_returned():
    made = ledger(pool_opened(), opened(pool=20), checked_out(), closed())
    assert only(made).ending is Ending.CLOSED
    assert made.view().pools[20].members == 0
    made.record(returned())
    assert serials(made) == []


def test_a_checkout_that_is_returned_after_it_was_seen_closed():
    made = ledger(pool_opened(), opened(pool=20), checked_out(), returned(), closed())
    assert serials(made) == []


def test_a_pool_counts_its_open_members_and_its_checkouts():
    broken = Living()
    made = ledger(
        pool_opened(),
        opened(10, pool=20),
        opened(11, pool=20),
        opened(12, pool=20, living=broken),
        opened(13),
        checked_out(11),
        checked_out(12),
    )
    broken.closed = True
    shown = made.view().pools[20]
    assert (shown.members, shown.checked_out, shown.ending) == (2, 2, Ending.OPEN)


def test_a_pool_that_closed_with_checkouts_out_is_named_until_they_are_back():
    made = ledger(pool_opened(), opened(pool=20), checked_out(), pool_closed())
    assert made.view().pools[20].ending is Ending.CLOSED
    assert only(made).checkout is not None
    made.record(returned())
    made.record(closed())
    assert serials(made) == []
    made.record(pool_opened(21))
    made.record(pool_closed(21))
    assert made.view().pools == {}


def test_a_pool_that_closed_is_forgotten():
    assert ledger(pool_opened(), opened(pool=20), closed(), pool_closed()).view().pools == {}


def test_a_pool_that_was_opened_again_is_open():
    made = ledger(pool_opened(), pool_closed(), pool_opened(owner=OTHER, at=7.0))
    shown = made.view().pools[20]
    assert (shown.ending, shown.opened.owner) == (Ending.OPEN, OTHER)


def test_a_pool_that_was_dropped():
    assert ledger(pool_opened(), pool_gone()).view().pools[20].ending is Ending.DROPPED
    living = Living()
    made = ledger(pool_opened(living=living))
    del living
    gc.collect()
    assert made.view().pools[20].ending is Ending.DROPPED


def test_a_pool_that_was_closed_and_then_freed_was_closed():
    assert (
        ledger(pool_opened(), opened(pool=20), checked_out(), pool_closed(), pool_gone()).view().pools[20].ending
        is Ending.CLOSED
    )


def test_a_pool_that_says_it_is_closed():
    living = Living()
    made = ledger(pool_opened(living=living))
    living.closed = True
    assert made.view().pools[20].ending is Ending.CLOSED


def test_what_was_judged_is_not_shown_again():
    living = Living()
    made = ledger(opened(10, living=living), opened(11))
    made.view()
    made.settle_connection(10)
    assert serials(made) == [11]
    made.record(gone(10))
    assert serials(made) == [11]
    assert made.known_pids() == {4711}


def test_a_settled_drop_is_forgotten():
    made = ledger(opened(), gone())
    made.view()
    made.settle_connection(10)
    assert made.view().connections == ()
    assert sizes(made)["connections"] == 0


def test_a_settled_checkout_is_shown_when_it_is_taken_again():
    made = ledger(pool_opened(), opened(pool=20), checked_out())
    made.view()
    made.settle_checkout(10)
    assert only(made).checkout is None
    made.record(returned())
    made.record(checked_out(owner=OTHER))
    assert only(made).checkout.owner == OTHER


def test_a_settled_checkout_still_takes_a_slot():
    made = ledger(pool_opened(), opened(pool=20), checked_out())
    made.view()
    made.settle_checkout(10)
    assert made.view().pools[20].checked_out == 1


def test_a_settled_pool_is_not_shown_again():
    made = ledger(pool_opened(), opened(pool=20))
    made.view()
    made.settle_pool(20)
    assert made.view().pools == {}


@pytest.mark.parametrize("settle", ["settle_connection", "settle_checkout", "settle_pool"])
def test_settling_what_is_gone_is_harmless(settle):
    getattr(Ledger(), settle)(99)


def test_an_owner_is_forgotten_with_what_is_its():
    made = ledger(
        opened(10, owner=CALL),
        opened(11, owner=OTHER),
        pool_opened(20, owner=CALL),
        pool_opened(21, owner=OTHER),
        opened(12, owner=OTHER, pool=21),
        checked_out(12, owner=CALL, pool=21),
    )
    made.forget_owner(CALL.serial)
    view = made.view()
    assert [shown.serial for shown in view.connections] == [11, 12]
    assert view.connections[1].checkout is None
    assert list(view.pools) == [21]


def test_what_a_forgotten_owner_left_open_is_let_go_of_when_it_closes():
    made = ledger(opened(10, owner=CALL), pool_opened(20, owner=CALL), opened(11, owner=CALL, pool=20))
    made.forget_owner(CALL.serial)
    for event in (closed(10), closed(11), pool_closed(20)):
        made.record(event)
    made.view()
    assert (sizes(made)["connections"], sizes(made)["pools"]) == (0, 0)


def test_open_connections_are_counted_by_server_and_database():
    made = ledger(
        opened(10, dbname="app"),
        opened(11, dbname="app", pool=20),
        opened(12, dbname="other"),
        opened(13, dbname="app", server=("elsewhere", "5432")),
        opened(14, dbname="app"),
        closed(14),
    )
    assert made.open_connections() == {
        ("db.example", "5432"): {"app": 2, "other": 1},
        ("elsewhere", "5432"): {"app": 1},
    }


def test_connections_are_shown_in_the_order_in_which_they_were_opened():
    assert serials(ledger(opened(12), opened(10), opened(11))) == [12, 10, 11]


def test_it_keeps_nothing_alive():
    living = Living()
    made = ledger(opened(living=living), pool_opened(living=living))
    view = made.view()
    reference = weakref.ref(living)
    del living
    gc.collect()
    assert reference() is None
    assert view.connections[0].ending is Ending.OPEN, "a view is a picture of its instant"


def use_everything(made, number, owner):
    """What one test may do: a direct connection, a pool with a checkout, a drop, a leak that was judged."""
    first = number * 10
    for event in (
        opened(first, owner, pid=first),
        closed(first),
        gone(first),
        pool_opened(first + 1, owner),
        opened(first + 2, owner, pool=first + 1, pid=first + 2),
        checked_out(first + 2, owner, pool=first + 1),
        began(first + 2, owner),
        pool_closed(first + 1),
        returned(first + 2),
        closed(first + 2),
        pool_gone(first + 1),
        opened(first + 3, owner, pid=first + 3),
        gone(first + 3),
        finalized(first + 3),
        opened(first + 4, owner, pid=first + 4, living=Living()),
        gone(first + 4),
        pool_opened(first + 5, owner, living=Living()),
        opened(first + 6, owner, pool=first + 5, pid=first + 6),
        checked_out(first + 6, owner, pool=first + 5),
        gone(first + 6),
        pool_gone(first + 5),
    ):
        made.record(event)


def test_its_memory_is_bounded_over_ten_thousand_tests():
    made = Ledger()
    owners = (CALL, FIXTURE, LIFESPAN, OTHER)
    before = None
    for number in range(10_000):
        owner = owners[number % len(owners)]
        use_everything(made, number, owner)
        if number % 2:
            made.view()
        made.forget_owner(owner.serial)
        if number == 2_000:
            before = sizes(made)
    assert sizes(made) == before
    assert sum(before.values()) - before["past_pids"] <= 10
    assert before["past_pids"] <= 4096


def test_ten_thousand_connections_of_one_test_leave_nothing():
    made = Ledger()
    for number in range(10_000):
        made.record(opened(number, pid=number))
        made.record(closed(number))
    made.view()
    assert {name: size for name, size in sizes(made).items() if size} == {"past_pids": 4096, "roles": 1}


def test_the_pids_that_are_remembered_are_the_last_ones():
    made = Ledger()
    for number in range(10_000):
        made.record(opened(number, pid=number))
        made.record(closed(number))
    pids = made.known_pids()
    assert 9_999 in pids
    assert 10_000 - 4096 in pids
    assert made.known_among([1, 9_999, 10_000]) == {9_999}
    assert made.closed == 10_000


def test_a_pid_that_is_given_out_again_is_remembered_from_then_on():
    made = ledger(opened(1, pid=4711), closed(1))
    for number in range(2, 4_000):
        made.record(opened(number, pid=10_000 + number))
        made.record(closed(number))
    made.record(opened(4_000, pid=4711))
    made.record(closed(4_000))
    for number in range(5_000, 6_000):
        made.record(opened(number, pid=20_000 + number))
        made.record(closed(number))
    assert made.known_among([4711, 10_002]) == {4711}


def test_recording_from_several_threads_loses_nothing():
    made = Ledger()
    threads, each = 8, 2_000
    done = threading.Event()
    finished = []

    def work(thread):
        for number in range(each):
            serial = thread * each + number
            made.record(opened(serial, pid=serial))
            made.record(checked_out(serial))
            made.record(returned(serial))
            if number % 4:
                made.record(closed(serial))

    def look():
        looks = 0
        while not done.is_set():
            made.view()
            made.known_pids()
            looks += 1
        finished.append(looks)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for thread in (*lookers, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    for thread in lookers:
        thread.join()
    assert len(finished) == len(lookers), "a look has failed"
    left = made.view().connections
    assert len(left) == threads * each // 4
    assert all(shown.checkout is None for shown in left)


def test_recording_inside_of_a_look_does_not_block():
    """The garbage collector may run anywhere, in the thread that is folding too."""

    class Nasty(Living):
        def __init__(self, made):
            super().__init__()
            self._made = made

        @property
        def closed(self):
            self._made.record(gone(99))
            return False

        @closed.setter
        def closed(self, value):
            pass

    made = Ledger()
    living = Nasty(made)
    made.record(opened(living=living))
    assert serials(made) == [10]
    assert serials(made) == [10]


def test_what_only_looks_like_a_connection_does_not_stand_there():
    not_one, one = Living(), Living("INTRANS")
    del not_one.info
    made = ledger(opened(living=not_one), opened(11, living=one))
    standing, in_transaction = made.standing()
    assert (len(standing), in_transaction) == (1, {11})
    assert serials(made) == [11]


def test_holders_are_shown_whether_they_were_judged_or_not():
    made = ledger(opened(living=(living := Living())), began(owner=OTHER))
    made.forget_owner(CALL.serial)
    assert made.view().connections == ()
    (holder,) = made.holders()
    assert (holder.serial, holder.ending, holder.held.owner, holder.began.owner) == (10, Ending.OPEN, CALL, OTHER)
    living.closed = True
    made.record(closed())
    assert made.holders() == ()


def test_an_idle_member_of_a_pool_is_held_by_whoever_opened_the_pool():
    living = Living()
    made = ledger(pool_opened(), opened(pool=20, living=living), checked_out(owner=OTHER))
    assert made.holders()[0].held.owner == OTHER
    made.record(returned())
    (holder,) = made.holders()
    assert (holder.held.owner, holder.pool_facts.name) == (FIXTURE, "pool-1")


@pytest.mark.parametrize("ended", [gone, closed])
def test_a_slot_that_was_lost_is_remembered_as_long_as_its_pool(ended):
    living = Living()
    made = ledger(pool_opened(living=living), opened(pool=20, living=living), checked_out(owner=OTHER), ended())
    made.forget_owner(OTHER.serial)
    (holder,) = made.holders()
    assert (holder.ending is Ending.OPEN, holder.held.owner) == (False, OTHER)
    made.record(pool_closed())
    assert made.holders() == ()


def test_a_closed_connection_that_comes_back_has_lost_no_slot():
    living = Living()
    made = ledger(pool_opened(living=living), opened(pool=20, living=living), checked_out(owner=OTHER), closed())
    made.forget_owner(OTHER.serial)
    made.record(returned())
    assert made.holders() == ()


# -- ended transactions and nested checkouts --------------------------------------------------------------------------


def transaction_ended(serial=30, number=10, **more):
    return Event(EventKind.TRANSACTION_ENDED, number, transaction=transaction(serial=serial, connection=number, **more))


def taken_while(held_by, serial=11, pool=20, at=3.0, **more):
    held = (10, held_by)
    return Event(EventKind.CHECKED_OUT, serial, moment(at=at, **more), pool=pool, held=held)


def test_a_transaction_knows_the_pool_and_the_checkout_it_belongs_to():
    made = ledger(pool_opened(), opened(pool=20), checked_out(at=7.0), transaction_ended())
    (ended,) = made.view().transactions
    assert ended.pool == 20
    assert ended.holder.at == 7.0


def test_a_transaction_of_a_direct_connection_is_held_since_it_was_opened():
    (ended,) = ledger(opened(at=6.0), transaction_ended()).view().transactions
    assert ended.pool is None
    assert ended.holder.at == 6.0


def test_ended_transactions_are_shown_until_they_are_judged_or_their_owner_is():
    made = ledger(opened(), transaction_ended(30), transaction_ended(31))
    assert [each.serial for each in made.view().transactions] == [30, 31]
    made.settle_transactions({30})
    assert [each.serial for each in made.view().transactions] == [31]
    made.forget_owner(OTHER.serial)
    assert [each.serial for each in made.view().transactions] == [31]
    made.forget_owner(CALL.serial)
    assert made.view().transactions == ()


def test_only_so_many_ended_transactions_are_kept():
    made = ledger(opened(), *(transaction_ended(serial) for serial in range(3000)))
    assert len(made.view().transactions) == 1000


class Loop:
    def __init__(self):
        self.closed = False

    def is_closed(self):
        return self.closed


def test_a_pool_and_a_connection_know_whether_their_loop_is_closed():
    loop = Loop()
    pool = replace(pool_opened(), opened_pool=replace(pool_facts(), loop=weakref.ref(loop)))
    direct = opened()
    made = ledger(pool, replace(direct, connection=replace(direct.connection, loop=weakref.ref(loop))))

    def shown():
        view = made.view()
        return view.pools[20].loop_is_closed, view.connections[0].loop_is_closed

    assert shown() == (False, False)
    loop.closed = True
    assert shown() == (True, True)
    loop.closed = False
    del loop
    gc.collect()
    assert shown() == (True, True)
    assert not ledger(opened()).view().connections[0].loop_is_closed


def test_whether_anybody_has_ended_a_transaction():
    made = ledger(opened(), began())
    assert not only(made).was_finished
    made.record(Event(EventKind.TRANSACTION_FINISHED, 10))
    assert only(made).was_finished


def test_a_transaction_that_was_undone_is_known_until_somebody_ends_one():
    made = ledger(opened(), checked_out(), began())
    made.undone(10)
    made.record(began(at=4.0))
    assert only(made).is_undone
    made.record(Event(EventKind.TRANSACTION_FINISHED, 10))
    assert not only(made).is_undone
    made.undone(10)
    made.record(returned())
    made.record(checked_out(at=5.0))
    assert not only(made).is_undone
    made.undone(99)


def test_the_facts_of_a_pool():
    made = ledger(pool_opened())
    assert made.pool_facts(20).name == "pool-1"
    assert made.pool_facts(21) is None


def test_a_nested_checkout_names_both():
    made = ledger(pool_opened(), opened(10, pool=20), opened(11, pool=20))
    first = moment(at=2.0)
    made.record(taken_while(first))
    (nested,) = made.view().nested
    assert (nested.serial, nested.held, nested.pool, nested.first) == (11, 10, 20, first)


def test_the_same_lines_again_are_no_other_nested_checkout():
    made = ledger(pool_opened(), opened(10, pool=20), opened(11, pool=20), opened(12, pool=20))
    for number, at in ((11, 3.0), (12, 4.0), (11, 5.0)):
        made.record(taken_while(moment(at=2.0), number, at=at))
    assert len(made.view().nested) == 1
    made.record(taken_while(moment(at=2.0), 12, where=()))
    assert len(made.view().nested) == 2


def test_a_pool_without_a_limit_has_no_nested_checkouts():
    unlimited = replace(pool_opened(), opened_pool=pool_facts(max_size=0))
    made = ledger(unlimited, opened(10, pool=20), opened(11, pool=20), taken_while(moment(at=2.0)))
    assert made.view().nested == ()


def test_nested_checkouts_are_shown_until_they_are_judged_or_their_owner_is():
    made = ledger(pool_opened(), opened(10, pool=20), opened(11, pool=20), taken_while(moment(at=2.0)))
    made.settle_nested({99})
    assert len(made.view().nested) == 1
    made.settle_nested({11})
    assert made.view().nested == ()
    made.record(taken_while(moment(at=2.0)))
    assert len(made.view().nested) == 1
    made.forget_owner(CALL.serial)
    assert made.view().nested == ()
