"""The baseline's file: where it is, what is in it, how it is written."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_pgleak.baseline.known import Baseline, Known, Use
from pytest_pgleak.baseline.text import BaselineError, from_text, to_text

if TYPE_CHECKING:
    from pytest_pgleak.baseline.extent import Extent

OPTION: Final = "--pgleak-baseline"
UPDATE: Final = "--pgleak-baseline-update"
WORKERINPUT: Final = "pgleak_baseline"

_BASELINE: Final = pytest.StashKey[Baseline]()
_TEXT: Final = pytest.StashKey[str]()


def read_baseline(config: pytest.Config) -> Baseline | None:
    """Read the baseline that the options name; once in a session, for the file may be replaced while it runs.

    Raises:
        BaselineError: The options or the file cannot be meant; the message names them.
    """
    if _BASELINE not in config.stash:
        baseline = _from_controller(config.workerinput) if hasattr(config, "workerinput") else _from_options(config)
        if baseline is None:
            return None
        config.stash[_BASELINE] = baseline
    return config.stash[_BASELINE]


def for_worker(config: pytest.Config) -> dict[str, str]:
    """Return what an xdist worker must know: it may run where the file is not, and must not decide by itself."""
    baseline = config.stash[_BASELINE]
    return {"use": baseline.use, "shown": baseline.shown, "text": config.stash.get(_TEXT, "")}


def path_of(config: pytest.Config) -> Path | None:
    """Return where the baseline is, or is to be; None where there is none."""
    if given := config.getoption("pgleak_baseline", None):
        return Path(config.invocation_params.dir, given)
    if given := config.getini("pgleak_baseline"):
        return Path(config.rootpath, given)
    return None


def write(path: Path, known: Known, made_from: Extent) -> bool:
    """Write the baseline: whoever reads it meanwhile sees the old one or the new one.

    Returns:
        Whether anything changed.

    Raises:
        OSError: It cannot be written.
    """
    text, path = to_text(known, made_from), path.resolve()  # what a symbolic link names, not the link
    with contextlib.suppress(FileNotFoundError):
        if path.read_text(encoding="utf-8") == text:
            return False
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        with contextlib.suppress(OSError):
            shutil.copymode(path, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _from_controller(workerinput: dict[str, Any]) -> Baseline | None:
    if (sent := workerinput.get(WORKERINPUT)) is None:
        return None
    known, made_from = from_text(sent["text"]) if sent["text"] else ({}, None)
    return Baseline(sent["use"], sent["shown"], known, made_from)


def _from_options(config: pytest.Config) -> Baseline | None:
    updates = config.getoption("pgleak_baseline_update", False)
    if (path := path_of(config)) is None:
        if updates:
            raise BaselineError(f"{UPDATE}: which file? Give {OPTION}=FILE, or set pgleak_baseline in the ini file")
        return None
    shown = _shown(path, config)
    try:
        text = _read(path)
        known, made_from = from_text(text) if text is not None else ({}, None)
    except BaselineError as error:
        raise BaselineError(f"{_option(config)}: {shown}: {error}") from None
    if text is not None:
        config.stash[_TEXT] = text
    use: Use = "update" if updates else "compare" if text is not None else "create"
    if use == "create" and _runs_in_ci():
        raise BaselineError(
            f"{_option(config)}: {shown} does not exist. On a CI server (environment variable CI or BUILD_NUMBER) it"
            f" is not made by itself, or everything would be accepted: commit the file, or give {UPDATE}."
        )
    if use != "compare" and not os.access(path.parent, os.W_OK):
        raise BaselineError(f"{_option(config)}: {shown} cannot be written: no permission for its directory")
    return Baseline(use, shown, known, made_from)


def _read(path: Path) -> str | None:
    """Return the text; None where there is no file."""
    if path.is_dir():
        raise BaselineError("it is a directory. Give the name of a file.")
    if not path.parent.is_dir():
        raise BaselineError("its directory does not exist. Make it first.")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BaselineError(f"it cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise BaselineError("it is no baseline of pytest-pgleak. Give the name of another file.") from None


def _option(config: pytest.Config) -> str:
    return OPTION if config.getoption("pgleak_baseline", None) else "pgleak_baseline"


def _shown(path: Path, config: pytest.Config) -> str:
    here = config.invocation_params.dir
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.as_posix()


def _runs_in_ci() -> bool:
    # As pytest itself decides it.
    return any(os.environ.get(name) for name in ("CI", "BUILD_NUMBER"))
