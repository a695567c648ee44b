"""What a run has found against what is known, and the baseline that follows from it. Pure.

The rule that all of this serves: what was merely not run is never called fixed. So a known finding is no longer found
only if the run was complete, and if each test that is on record for it ran to its end, or exists no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from pytest_pgleak.baseline.extent import Extent
from pytest_pgleak.baseline.keys import Key
from pytest_pgleak.baseline.known import Baseline, Known

_MOST_TESTS: Final = 3
"""Tests on record for one finding: enough to see it again, few enough for a line."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run can say.

    Attributes:
        found: What was found, each with the tests that found it, without their parameters.
        extent: How far the run was to go.
        incomplete: Why it may have missed something; empty for a complete run.
        finished: Tests of which no run failed or was skipped.
        gone: Tests that exist no more.
        off: Kinds that were not looked for.
    """

    found: Mapping[Key, frozenset[str]]
    extent: Extent
    incomplete: str = ""
    finished: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    off: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is known against what was found, each in the order of the file.

    Attributes:
        found: Known, and found again.
        new: Found, and not known.
        no_longer: Known, and certainly no longer found.
        undecided: Known, and not found, for all that this run can say.
    """

    found: tuple[Key, ...] = ()
    new: tuple[Key, ...] = ()
    no_longer: tuple[Key, ...] = ()
    undecided: tuple[Key, ...] = ()


def compare(known: Known, evidence: Evidence) -> Comparison:
    """Compare."""
    evidence = _as_known(evidence, known)
    missing = _ordered(key for key in known if key not in evidence.found)
    no_longer = tuple(key for key in missing if _is_no_longer_found(key, known[key], evidence))
    return Comparison(
        found=_ordered(key for key in known if key in evidence.found),
        new=_ordered(key for key in evidence.found if key not in known),
        no_longer=no_longer,
        undecided=tuple(key for key in missing if key not in no_longer),
    )


def updated(baseline: Baseline, evidence: Evidence) -> tuple[Known, Extent]:
    """Return what the file is to say now."""
    evidence = _as_known(evidence, baseline.known)
    comparison = compare(baseline.known, evidence)
    known = {key: baseline.known[key] for key in comparison.undecided}
    known |= {key: _tests(baseline.known[key], key, evidence) for key in comparison.found}
    known |= {key: _tests((), key, evidence) for key in comparison.new}
    if baseline.made_from is None:
        return known, evidence.extent
    if not comparison.new:
        return known, baseline.made_from
    tests = [test for key in comparison.new for test in known[key] or ("",)]
    return known, baseline.made_from.including(evidence.extent, tests)


def _as_known(evidence: Evidence, known: Known) -> Evidence:
    found: dict[Key, frozenset[str]] = {}
    for key, tests in evidence.found.items():
        name = key.among(known)
        found[name] = found.get(name, frozenset()) | tests
    return replace(evidence, found=found)


def _is_no_longer_found(key: Key, tests: tuple[str, ...], evidence: Evidence) -> bool:
    if evidence.incomplete or key.kind in evidence.off:
        return False
    return all(test in evidence.finished or test in evidence.gone for test in tests)


def _tests(before: tuple[str, ...], key: Key, evidence: Evidence) -> tuple[str, ...]:
    # The same as before wherever that is still true: a file that does not change cannot conflict.
    found_by = evidence.found[key]
    kept = tuple(test for test in before if test in found_by or test not in evidence.gone | evidence.finished)
    return kept or tuple(sorted(found_by)[:_MOST_TESTS])


def _ordered(keys: Iterable[Key]) -> tuple[Key, ...]:
    return tuple(sorted(keys, key=lambda key: key.order))
