from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from docker_engines import DEADLINE as ENGINE_DEADLINE
from docker_engines import Engine, connected

import pytest_pgleak
from pytest_pgleak.servers import ServerError, ServerRequest, plan, start

DEADLINE = 30.0  # seconds; what is expected takes milliseconds, if the machine has time
NOBODY = pwd.getpwnam("nobody")
AS_NOBODY = {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid, "extra_groups": []}


def wait_until(condition, timeout=DEADLINE):
    deadline = time.monotonic() + timeout
    while not (result := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return result


def processes_with(text):
    """Command lines, by pid, of the processes that mention `text`."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if text in line:
                    found[int(entry.name)] = line
    return found


def query(dsn, statement):
    with psycopg.connect(dsn, autocommit=True) as conn:
        return conn.execute(statement).fetchone()[0]


class RunDir:
    """A PGLEAK_RUN_DIR of this test's own: all that its servers leave is seen here."""

    def __init__(self, path):
        self.path = path

    def entries(self):
        return sorted(entry.name for entry in self.path.iterdir())

    def traces(self):
        return self.entries() + list(processes_with(str(self.path)).values())

    def is_clean(self):
        return wait_until(lambda: not self.traces())


@pytest.fixture
def run_dir(monkeypatch):
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("needs /proc to see processes")
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
    with tempfile.TemporaryDirectory(prefix="servers-test-", dir=base) as name:
        path = Path(name)
        path.chmod(0o1777)
        monkeypatch.setenv("PGLEAK_RUN_DIR", name)
        yield RunDir(path)


@pytest.fixture
def cache(run_dir, monkeypatch):
    """A cache of this test's own, beside the directories of its servers: others discard what they think is broken."""
    directory = Path(f"{run_dir.path}-cache")
    directory.mkdir()
    directory.chmod(0o755)
    monkeypatch.setenv("PGLEAK_CACHE_DIR", str(directory))
    yield directory
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    directory.rmdir()


def planned(server):
    try:
        return plan(ServerRequest(server=server))
    except ServerError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture(params=["embedded", "local"])
def owned_plan(request):
    return planned(request.param)


@pytest.fixture(scope="session")
def any_plan():
    try:
        return planned("embedded")
    except pytest.skip.Exception:
        return planned("local")


@pytest.fixture(scope="session")
def server(any_plan):
    running = start(any_plan)
    yield running
    running.stop()


@contextmanager
def run_python(script, *, environment=None, **options):
    """A Python process that runs `script` with this project and its dependencies importable.

    `prefix` is a command that runs the one that follows it; the rest of the options is for Popen.
    """
    paths = {Path(pytest_pgleak.__file__).parents[1], Path(psycopg.__file__).parents[1]}
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "COVERAGE_PROCESS_START")}
    env = {
        **inherited,
        "PYTHONPATH": os.pathsep.join(map(str, sorted(paths))),
        "PYTHONDONTWRITEBYTECODE": "1",
        **(environment or {}),
    }
    executable = options.pop("executable", sys.executable)
    process = subprocess.Popen(
        [*options.pop("prefix", ()), executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=env,
        cwd="/",
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def docker_api():
    with connected() as client:
        yield client


@pytest.fixture
def engine(docker_api, run_dir):
    engine = Engine(docker_api, run_dir)
    yield engine
    left = wait_until(lambda: not engine.traces(), ENGINE_DEADLINE) or engine.traces()
    for each in engine.containers():
        docker_api.remove_container(each["Id"], v=True, force=True)
    assert left is True


@pytest.fixture(name="wait_until", scope="session")
def wait_until_fixture():
    return wait_until


@pytest.fixture(name="processes_with")
def processes_with_fixture():
    return processes_with


@pytest.fixture(name="query")
def query_fixture():
    return query


@pytest.fixture
def python():
    return run_python


@pytest.fixture
def as_nobody():
    return AS_NOBODY


@pytest.fixture(scope="session")
def nobodys_python():
    """An interpreter that an unprivileged user can run."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for executable in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with suppress(OSError):
            probe = run_python("import psycopg, pytest_pgleak", executable=executable, **AS_NOBODY)
            with probe as process:
                process.communicate()
                if process.returncode == 0:
                    return executable
    pytest.skip("no Python that the user nobody can run")


@pytest.fixture
def tree():
    """A copy of the wheel's server, to break or to hide."""
    try:
        original = plan(ServerRequest(server="embedded")).bindir.parent
    except ServerError as error:
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory(prefix="servers-test-", dir="/tmp") as name:
        site = Path(name)
        site.chmod(0o755)
        package = site / original.parent.name
        shutil.copytree(original, package / original.name, ignore=shutil.ignore_patterns("include"))
        libraries = original.parent.with_name(f"{original.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, site / libraries.name)
        yield SimpleNamespace(bindir=package / original.name / "bin", top=site)
