"""``--pgleak-report``: which reports are asked for, checked before the first test runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_pgleak.reports import html_report

SUFFIXES: Final = (".json", ".sarif", ".html")


class TargetError(Exception):
    """A report that cannot be written; the message names the option and the remedy."""


@dataclass(frozen=True, slots=True)
class Target:
    """One report to write.

    Attributes:
        given: The path as the user wrote it.
        path: The same, absolute.
        suffix: Which format; one of `SUFFIXES`.
    """

    given: str
    path: Path
    suffix: str


def read_targets(given: Iterable[str], directory: Path) -> tuple[Target, ...]:
    """Read the values of the option.

    Args:
        given: The values.
        directory: The one that pytest was started in.

    Raises:
        TargetError: One of them cannot be meant, or cannot be written.
    """
    return tuple(_target(each, directory) for each in dict.fromkeys(given))


def _target(given: str, directory: Path) -> Target:
    option = f"--pgleak-report={given}"
    path = directory / Path(given).expanduser()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise TargetError(f"{option}: expected a file that ends in .json, .sarif or .html")
    if suffix == ".html" and not html_report.is_possible():
        raise TargetError(f'{option}: HTML needs Jinja2: pip install "pytest-pgleak[html]"')
    try:
        trouble = _trouble(path)
    except OSError as error:
        trouble = error.strerror or str(error)
    if trouble:
        raise TargetError(f"{option}: it cannot be written: {trouble}; give the path of a file that can")
    return Target(given, path, suffix)


def _trouble(path: Path) -> str:
    if path.is_dir():
        return "it is a directory"
    existing = next(each for each in (path, *path.parents) if each.exists())
    if existing != path and not existing.is_dir():
        return f"{existing.name} is no directory"
    return "" if os.access(existing, os.W_OK) else "permission denied"
