"""Numbers that were measured, and their medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


@dataclass(frozen=True, slots=True)
class Samples:
    """Durations of one thing.

    Attributes:
        seconds: Each of them, seconds.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile, seconds."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4)
        return first, third

    def describe(self) -> str:
        """Say it as ``17 ms [16-19]``."""
        factor, unit = unit_of(self.median)
        low, high = (number(each / factor) for each in self.quartiles)
        return f"{number(self.median / factor)} {unit} [{low}–{high}]"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        ours: With pytest-pgleak: durations, or what there is to say.
        peer: What it is compared with: its name, and the same.
        result: The comparison in words.
        target: What it was to be.
        is_met: Whether it is; None where there is no target.
    """

    what: str
    ours: Samples | str
    peer: tuple[str, Samples | str] | None
    result: str
    target: str
    is_met: bool | None


def alternating(rounds: int, candidates: Mapping[str, Callable[[], float]]) -> dict[str, Samples]:
    """Measure candidates in turn, so that whatever else the machine does meets all of them.

    Args:
        rounds: How often each is measured.
        candidates: Each returns the seconds that it took.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, measure in candidates.items():
            taken[name].append(measure())
    return {name: Samples(tuple(seconds)) for name, seconds in taken.items()}


def duration(seconds: float) -> str:
    """Say a duration in the unit that suits it."""
    factor, unit = unit_of(seconds)
    return f"{number(seconds / factor)} {unit}"


def unit_of(seconds: float) -> tuple[float, str]:
    """Return the unit that suits a duration, as seconds and as its name."""
    return next(((factor, unit) for factor, unit in _UNITS if abs(seconds) >= factor), _UNITS[-1])


def number(value: float) -> str:
    """Write a number with as many digits as mean something."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}"


def more_by_pairs(measured: Mapping[str, Samples], ours: str, peer: str) -> float:
    """Return what one candidate of `alternating` took more than another: the median of the rounds' differences.

    Between two rounds the machine changes by more than what is measured; within one it hardly does.
    """
    return differences(measured[ours].seconds, measured[peer].seconds).median


def differences(more: Sequence[float], less: Sequence[float]) -> Samples:
    """Return what one thing took more than another, pair by pair."""
    return Samples(tuple(a - b for a, b in zip(more, less, strict=True)))
