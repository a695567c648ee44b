"""Inner pytest runs that measure themselves, in a directory in memory, as a user whom PostgreSQL accepts."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

PLUGIN: Final = ("-p", "pytest_pgleak.plugin")
_TIMINGS: Final = """
    import json, os, time
    import pytest

    TAKEN = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(item):
        started_at = time.perf_counter()
        try:
            return (yield)
        finally:
            name = getattr(item, "originalname", item.name)
            TAKEN.setdefault(name, []).append(time.perf_counter() - started_at)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(item):
        started_at = time.perf_counter()
        try:
            return (yield)
        finally:
            name = getattr(item, "originalname", item.name)
            TAKEN.setdefault(f"setup of {name}", []).append(time.perf_counter() - started_at)

    def pytest_sessionfinish(session):
        # One file a process, for xdist has several.
        with open(os.environ["BENCHMARK_RESULT"] + os.environ.get("PYTEST_XDIST_WORKER", ""), "w") as file:
            json.dump(TAKEN, file)
"""
TIMED: Final = {"conftest.py": _TIMINGS}
"""Files of a suite that notes how long each test, and its set-up, took, by its name without parameters."""


@cache
def plain_user() -> dict[str, Any]:
    """Return the arguments of `subprocess.run` that run it as a plain user, for pytest-postgresql must not be root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@cache
def obstacle() -> str:
    """Return why that user cannot run this Python; empty if he can."""
    command = [sys.executable, "-c", "import pytest, pytest_pgleak"]
    try:
        result = subprocess.run(command, **plain_user(), cwd="/", capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return "" if result.returncode == 0 else (result.stderr.strip().splitlines() or ["?"])[-1]


@contextlib.contextmanager
def suite(files: Mapping[str, str]) -> Iterator[Path]:
    """Write a suite into a directory of its own.

    Args:
        files: Their names and texts; indented texts are dedented.
    """
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a slow disk would be measured instead
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
    try:
        directory.chmod(0o777)
        for name, text in files.items():
            (directory / name).write_text(textwrap.dedent(text), encoding="utf-8")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run_pytest(directory: Path, *args: str, environment: Mapping[str, str] | None = None) -> dict[str, list[float]]:
    """Run pytest on a suite that has `TIMED` in it.

    Args:
        directory: The suite's.
        args: More arguments. No plugin is loaded but those that are named.
        environment: More variables.

    Returns:
        The seconds of each test, by its name without parameters; of all xdist workers together.
    """
    result = directory / "result.json"
    for earlier in directory.glob("result.json*"):
        earlier.unlink()
    run_python(
        directory,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *args,
        environment={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "BENCHMARK_RESULT": str(result), **(environment or {})},
    )
    taken: dict[str, list[float]] = {}
    for file in directory.glob("result.json*"):
        for name, seconds in json.loads(file.read_text(encoding="utf-8")).items():
            taken.setdefault(name, []).extend(seconds)
    return taken


def run_python(directory: Path, *args: str, environment: Mapping[str, str] | None = None) -> str:
    """Run Python as the plain user, and return what it has printed.

    Raises:
        RuntimeError: It failed.
    """
    env = {
        **os.environ,
        "HOME": str(directory),
        "TMPDIR": str(directory),
        # What pip installs is compiled; what lies here need not be, and may belong to somebody else.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(directory / "pycache"),
        "PGLEAK_CACHE_DIR": str(directory / "cache"),
        **(environment or {}),
    }
    user = {} if obstacle() else plain_user()
    command = [sys.executable, *args]
    done = subprocess.run(command, cwd=directory, env=env, **user, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return str(done.stdout)
