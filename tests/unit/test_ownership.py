from __future__ import annotations

import contextvars
import threading

from pytest_pgleak.background import Background
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.requests import Request
from pytest_pgleak.tasks import EventLoops


def in_thread(ask):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    thread.join()
    return answers[0]


def test_the_session_answers_for_what_nobody_else_does():
    ownership = Ownership(Background(EventLoops()))
    assert ownership.current == ownership.active == ownership.session
    assert ownership.session.what == "session"


def test_the_innermost_owner_is_the_current_one():
    ownership = Ownership(Background(EventLoops()))
    call = ownership.begin("call", "test_a.py::test_it")
    assert ownership.current is ownership.session, "begin() alone charges nobody"
    ownership.push(call)
    fixture = ownership.begin("fixture", "test_a.py::test_it", "db", "function")
    ownership.push(fixture)
    assert ownership.current is fixture
    ownership.pop(fixture)
    assert ownership.current is call
    ownership.pop(call)
    assert ownership.current is ownership.session


def test_every_activation_is_an_owner_of_its_own():
    ownership = Ownership(Background(EventLoops()))
    first, second = (ownership.begin("fixture", "test_a.py::test_it", "db", "function") for _ in range(2))
    assert first != second
    assert len({ownership.session.serial, first.serial, second.serial}) == 3


def test_an_owner_knows_who_started_it():
    ownership = Ownership(Background(EventLoops()))
    fixture = ownership.begin("fixture", "test_a.py::test_it", "client", "function")
    ownership.push(fixture)
    assert ownership.begin("call").started_by == fixture.serial


def test_a_lifespan_is_its_runners():
    ownership = Ownership(Background(EventLoops()))
    fixture = ownership.begin("fixture", "test_a.py::test_it", "client", "module")
    lifespan = ownership.begin_lifespan(fixture)
    assert lifespan.what == "lifespan"
    assert (lifespan.nodeid, lifespan.fixturename, lifespan.started_by) == (
        "test_a.py::test_it",
        "client",
        fixture.serial,
    )
    assert lifespan.serial != fixture.serial


def test_what_an_error_left_above_goes_with_the_owner():
    ownership = Ownership(Background(EventLoops()))
    outer, inner = ownership.begin("fixture"), ownership.begin("fixture")
    ownership.push(outer)
    ownership.push(inner)
    ownership.pop(outer)
    assert ownership.current is ownership.session


def test_popping_an_owner_that_is_not_there_harms_nobody():
    ownership = Ownership(Background(EventLoops()))
    call = ownership.begin("call")
    ownership.push(call)
    ownership.pop(ownership.begin("fixture"))
    assert ownership.current is call


def test_another_thread_is_charged_to_the_same_owner():
    ownership = Ownership(Background(EventLoops()))
    call = ownership.begin("call")
    ownership.push(call)
    assert in_thread(lambda: ownership.current) is call


def test_a_stale_context_is_not_asked():
    """A pool's worker and AnyIO's runner keep the context of the time when they were made."""
    ownership = Ownership(Background(EventLoops()))
    first = ownership.begin("call")
    ownership.push(first)
    stale = contextvars.copy_context()
    ownership.pop(first)
    second = ownership.begin("call")
    ownership.push(second)
    assert stale.run(lambda: ownership.current) is second


def test_a_lifespan_is_charged_in_its_own_context_only():
    ownership = Ownership(Background(EventLoops()))
    fixture = ownership.begin("fixture")
    ownership.push(fixture)
    lifespan = ownership.begin_lifespan(ownership.active)
    with ownership.in_lifespan(lifespan):
        assert ownership.current is lifespan
        assert ownership.active is fixture
        assert in_thread(lambda: ownership.current) is fixture
        inherited = contextvars.copy_context()
    assert ownership.current is fixture
    assert inherited.run(lambda: ownership.current) is lifespan, "a task made in it belongs to it"


def test_a_request_is_charged_to_the_test_though_it_came_through_the_lifespans_context():
    ownership = Ownership(Background(EventLoops()))
    call = ownership.begin("call")
    ownership.push(call)
    request = Request(1, "GET", "/")
    with ownership.in_lifespan(ownership.begin_lifespan(ownership.active)), ownership.in_request(request):
        assert ownership.current is call
        assert ownership.request is request
    assert ownership.request is None
    assert ownership.current is call


def test_the_context_is_put_back_after_an_error():
    ownership = Ownership(Background(EventLoops()))
    try:
        with (
            ownership.in_lifespan(ownership.begin_lifespan(ownership.active)),
            ownership.in_request(Request(1, "GET", "/")),
        ):
            raise RuntimeError
    except RuntimeError:
        pass
    assert ownership.request is None
    assert ownership.current is ownership.session


def test_two_ownerships_do_not_mix():
    one, two = Ownership(Background(EventLoops())), Ownership(Background(EventLoops()))
    with one.in_lifespan(one.begin_lifespan(one.active)), one.in_request(Request(1, "GET", "/")):
        assert two.current is two.session
        assert two.request is None


def test_the_ended_are_handed_over_once():
    ownership = Ownership(Background(EventLoops()))
    first, second = ownership.begin("fixture"), ownership.begin("call")
    ownership.end(first)
    ownership.end(second)
    assert ownership.take_ended() == (first, second)
    assert ownership.take_ended() == ()


def test_a_lifespan_is_remembered_until_it_was_judged():
    ownership = Ownership(Background(EventLoops()))
    lifespan, fixture = ownership.begin_lifespan(ownership.active), ownership.begin("fixture")
    ownership.end(lifespan)
    ownership.take_ended()
    assert ownership.lifespans == (lifespan,)
    ownership.forget_lifespan(fixture)
    ownership.forget_lifespan(lifespan)
    ownership.forget_lifespan(lifespan)
    assert ownership.lifespans == ()
