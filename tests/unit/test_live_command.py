from __future__ import annotations

import pytest

from pytest_pgleak.live.command import DEFAULT, LiveServerError, check_is_used, read_command

VALUES = {"app": "app.main:app", "workers": "4", "host": "127.0.0.1", "port": "5000", "dsn": "host=h password=secret"}


def read(text, **values):
    return read_command(text, VALUES | values, "/python")


@pytest.mark.parametrize(
    ("text", "arguments", "workers"),
    [
        (DEFAULT, "/python -m uvicorn app.main:app --workers 4 --host 127.0.0.1 --port 5000", 4),
        ("uvicorn shop:app", "/python -m uvicorn shop:app --host 127.0.0.1 --port 5000", 1),
        ("/bin/uvicorn a:b --port={port} --host localhost", "/python -m uvicorn a:b --port=5000 --host localhost", 1),
        (
            "WEB_CONCURRENCY=2 python -X dev -m uvicorn a:b",
            "/python -X dev -m uvicorn a:b --host 127.0.0.1 --port 5000",
            2,
        ),
        (
            "gunicorn {app} -w 2 --preload",
            "/python -m gunicorn app.main:app -w 2 --preload --bind 127.0.0.1:5000 -k uvicorn_worker.UvicornWorker",
            2,
        ),
        (
            "gunicorn a:b -w3 -k own.Worker -b127.0.0.1:{port}",
            "/python -m gunicorn a:b -w3 -k own.Worker -b127.0.0.1:5000",
            3,
        ),
        ("python serve.py '{port}'", "/python serve.py 5000", 1),
        ("PORT={port} hypercorn app", "hypercorn app", 1),
    ],
)
def test_what_is_executed(text, arguments, workers):
    command = read(text)
    assert " ".join(command.arguments) == arguments
    assert command.workers == workers


def test_assignments_become_the_environment_and_are_not_shown():
    command = read("DATABASE_URL={dsn} MODE='a b' uvicorn a:b")
    assert dict(command.environment) == {"DATABASE_URL": VALUES["dsn"], "MODE": "a b"}
    assert "secret" not in repr(command)
    assert command.arguments[:3] == ("/python", "-m", "uvicorn")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no program in it"),
        ("A=1 B=2", "there is no program in it"),
        ("uvicorn 'a:b", "No closing quotation"),
        ("hypercorn app.main:app", "where to listen"),
        ("uvicornn app.main:app", "uvicornn is neither uvicorn nor gunicorn"),
        ("uvicorn a:b --host 0.0.0.0", "other machines"),
        ("uvicorn a:b --host 127.0.0.1 --host 0.0.0.0", "other machines"),
        ("uvicorn a:b --host localhost.example.com", "other machines"),
        ("uvicorn a:b --host ::1", "the clients ask at 127.0.0.1"),
        ("uvicorn a:b --port 8000", "leave it out, or say {port}"),
        ("uvicorn a:b --uds a.socket", "leave --uds out"),
        ("python -m uvicorn a:b --port {port} --host 0.0.0.0", "other machines"),
        ("hypercorn a:b --bind 0.0.0.0:{port}", "other machines"),
        ("gunicorn a:b --bind :{port}", "other machines"),
        ("gunicorn a:b --bind unix:/run/app.socket", "leave unix:/run/app.socket out"),
        ("gunicorn a:b -b0.0.0.0:{port}", "other machines"),
        ("gunicorn a:b -b 127.0.0.1:8000", "leave it out, or say {port}"),
        ("uvicorn a:b {workes}", "nothing stands for {workes}; there are {app}, {workers}, {host}, {port}, {dsn}"),
        ("uvicorn a:b --dsn {dsn}", "DATABASE_URL={dsn}"),
    ],
)
def test_what_cannot_be_meant(text, says):
    with pytest.raises(LiveServerError) as caught:
        read(text)
    assert "pgleak_live_command" in str(caught.value)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("says", "has"), [("", True), ("--control-socket c", False), ("--no-control-socket", False)])
def test_gunicorn_makes_no_control_socket_unless_it_is_told_to(says, has):
    words = read_command(f"gunicorn a:b {says}", VALUES, "/python", has_control_socket=True).arguments
    assert (words[-3] == "--no-control-socket") is has
    assert ("--no-control-socket" in words) is (says != "--control-socket c")


@pytest.mark.parametrize(
    ("text", "app", "workers", "says"),
    [
        ("uvicorn {app}", "shop:app", None, None),
        ("uvicorn shop:app", "shop:app", None, None),
        ("uvicorn shop:app", None, None, None),
        ("uvicorn {app} --workers 2", "shop:app", 2, None),
        ("WEB_CONCURRENCY=2 uvicorn {app}", "shop:app", 2, None),
        ("uvicorn shop:app", "other:app", None, 'pgleak_live("other:app")'),
        ("uvicorn {app}", "shop:app", 2, "pgleak_live(workers=2)"),
        ("A=postgresql://a:secret@h/d uvicorn shop:app --workers 2", "other:app", 3, "Put {app} and {workers} into it"),
    ],
)
def test_what_a_command_has_no_place_for(text, app, workers, says):
    if says is None:
        check_is_used(text, app, workers)
        return
    with pytest.raises(LiveServerError) as caught:
        check_is_used(text, app, workers)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_application_has_to_be_named():
    with pytest.raises(LiveServerError, match="name your application"):
        read_command(DEFAULT, {"workers": "1", "port": "1"}, "/python")
