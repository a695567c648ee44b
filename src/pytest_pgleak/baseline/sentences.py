"""What the end of a run says about the baseline. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pytest_pgleak.baseline.compare import Comparison
from pytest_pgleak.baseline.keys import Key

_MOST_SHOWN: Final = 20


def header(shown: str, use: str) -> str:
    """Say before the run that it will accept everything."""
    if use == "create":
        return f"baseline {shown} does not exist: what this run finds is written into it and fails nothing"
    return f"baseline {shown} is brought up to date: what this run finds is written into it and fails nothing"


def created(shown: str, number: int, lines: int) -> str:
    """Say that there is a baseline now."""
    if not lines:
        return f"baseline written to {shown}: nothing was found, so whatever is found from now on fails"
    return f"baseline written to {shown}: {_findings(number, lines)}. They fail no test; what is new will."


def not_created(shown: str, why: str) -> str:
    """Say that there is none, although everything was accepted."""
    return f"no baseline was written to {shown}, for this was no complete run: {why}"


def compared(shown: str, number: int, comparison: Comparison) -> list[str]:
    """Say what is known, and what the file need not list any more."""
    sentences = []
    if number:
        is_are = "is" if number == 1 else "are"
        sentences.append(f"{_findings(number, len(comparison.found))} {is_are} in {shown}")
    if comparison.no_longer:
        listed = _list(comparison.no_longer)
        sentences.append(f"no longer found, remove from {shown} with --pgleak-baseline-update:{listed}")
    return sentences


def updated(shown: str, comparison: Comparison, why_incomplete: str) -> list[str]:
    """Say what has changed in the file, and why other things have not."""
    kept = len(comparison.found) + len(comparison.undecided)
    numbers = f"{len(comparison.new)} added, {len(comparison.no_longer)} removed, {kept} kept"
    changed = comparison.new or comparison.no_longer
    sentences = [f"baseline {shown} updated: {numbers}" if changed else f"baseline {shown} is up to date: {kept} kept"]
    if comparison.new:
        sentences.append(f"added to {shown}:{_list(comparison.new)}")
    if comparison.no_longer:
        sentences.append(f"removed from {shown}:{_list(comparison.no_longer)}")
    if comparison.undecided and why_incomplete:
        sentences.append(f"nothing was removed from {shown}, for this was no complete run: {why_incomplete}")
    elif comparison.undecided:
        sentences.append(
            f"not found, and kept in {shown} because a test that had found it did not run to its end, or because its"
            f" kind is off:{_list(comparison.undecided)}"
        )
    return sentences


def not_written(shown: str, error: str) -> str:
    """Say that writing has failed."""
    return f"the baseline could not be written to {shown}: {error}"


def _findings(number: int, lines: int) -> str:
    return f"{number} known finding{_s(number)} from {lines} line{_s(lines)} of code"


def _s(number: int) -> str:
    return "" if number == 1 else "s"


def _list(keys: Sequence[Key]) -> str:
    lines = [key.describe() for key in keys[:_MOST_SHOWN]]
    if len(keys) > _MOST_SHOWN:
        lines.append(f"… and {len(keys) - _MOST_SHOWN} more")
    return "".join(f"\n          {line}" for line in lines)
