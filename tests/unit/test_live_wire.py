from __future__ import annotations

import os
import subprocess
import sys
import weakref

import pytest

from pytest_pgleak.events import ConnectionFacts, Moment
from pytest_pgleak.findings import Finding
from pytest_pgleak.frames import capture, user_frames
from pytest_pgleak.libraries.psycopg3 import PSYCOPG
from pytest_pgleak.live.journal import Journal, JournalReader, journals
from pytest_pgleak.live.wire import Judged, dumps, header_of, loads, read_header
from pytest_pgleak.owners import Owner
from pytest_pgleak.requests import Request
from pytest_pgleak.views import Ending


class Thing:
    pass


@pytest.fixture
def moment():
    thing = Thing()
    request = Request(3, "GET", "/visit/", status=200, task=weakref.ref(thing), learn=lambda: None)
    request.dependencies = {capture.__code__: "capture"}
    return Moment(1.5, Owner(7, "call", "test_it.py::test_it"), capture(), request, task=weakref.ref(thing))


def test_a_moment_comes_back_with_its_frames_and_its_request(moment):
    back = loads(dumps(moment))
    assert user_frames(back.stack)[0] == user_frames(moment.stack)[0]
    assert back.owner == moment.owner
    assert back.task() is None
    request = back.request
    assert (request.ordinal, request.method, request.path, request.status) == (3, "GET", "/visit/", 200)
    assert request.learn is None


def test_a_generator_stays_one(moment):
    def generator():
        yield capture(0)

    (stack,) = generator()
    assert [frame.is_generator for frame in user_frames(loads(dumps(stack)))][:1] == [True]


def test_a_library_stays_itself():
    thing = Thing()
    facts = ConnectionFacts(weakref.ref(thing), "Connection", False, 1, ("localhost", "5432"), "db", "me")
    finding = Finding("connection-dropped", Owner(1, "call"), None, Ending.DROPPED, "connection", 1, connection=facts)
    back = loads(dumps(Judged((finding,)))).findings[0]
    assert back.library is PSYCOPG
    assert back.connection.reference() is None
    assert back.words == finding.words


@pytest.mark.parametrize(
    "owner",
    [
        Owner(1, "call", "tests/test_it.py::test_it[a;b-ü]", started_by=0),
        Owner(2, "fixture", "test_it.py::test_it", "visitor", "module", 1),
        Owner(0, "session"),
    ],
    ids=lambda owner: owner.what,
)
def test_an_owner_survives_the_header(owner):
    header = header_of(12, owner)
    header.encode("ascii")
    assert read_header(header) == (12, owner)


@pytest.mark.parametrize("value", ["", "probe", "1;2", "a;1;;call;;;", ";;;;;;"])
def test_another_header_means_nothing(value):
    assert read_header(value) is None


def test_a_journal_keeps_what_was_written_when_its_writer_is_killed(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from pytest_pgleak.live.journal import Journal\n"
        "journal = Journal(sys.argv[1])\n"
        "journal.write('first'); journal.write(['second'])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert process.returncode == -9
    (path,) = journals(tmp_path)
    reader = JournalReader(path)
    assert reader.read() == ["first", ["second"]]
    assert reader.read() == []


def test_a_record_that_was_not_written_to_its_end_is_left_out(tmp_path):
    journal = Journal(str(tmp_path))
    journal.write("whole")
    journal.write("cut")
    journal.close()
    (path,) = journals(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    reader = JournalReader(path)
    assert reader.read() == ["whole"]
    assert reader.pid == os.getpid()
