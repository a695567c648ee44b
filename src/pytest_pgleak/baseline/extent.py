"""How much of a suite a run was asked to run: what a smaller one did not find may be there all the same. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

Options = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Extent:
    """What a run was asked for.

    Attributes:
        args: The paths and nodeids it was given, relative to the root directory, with forward slashes.
        select: ``pgleak_select``.
        options: The options that leave out tests, with their values: ``-k``, ``-m`` and the like, as far as they were
            given.
    """

    args: tuple[str, ...] = (".",)
    select: str = "marked"
    options: Options = field(default_factory=dict)

    def falls_short_of(self, other: Extent) -> str:
        """Say why this run did not go as far as another; empty if it did."""
        if other.select == "all" and self.select != "all":
            return f"--pgleak-select={self.select}"
        if (left_out := not_covered(other.args, self.args)) is not None:
            return f"it did not run {left_out}"
        # The same option in both leaves out the same tests.
        more = [name for name, values in self.options.items() if other.options.get(name) != values]
        return f"{more[0]} was given" if more else ""

    def joined(self, other: Extent) -> Extent:
        """Return the smallest extent that goes as far as both."""
        return Extent(
            args=smallest((*self.args, *other.args)),
            select="all" if "all" in (self.select, other.select) else self.select,
            options={name: values for name, values in self.options.items() if other.options.get(name) == values},
        )

    def including(self, other: Extent, tests: Iterable[str]) -> Extent:
        """Return the smallest extent that goes as far as this one and finds what another run has found in some tests.

        Args:
            other: The other run.
            tests: Nodeids; where one is not known, it is empty.
        """
        joined = self.joined(other)
        return replace(joined, args=self.args) if not_covered(tests, self.args) is None else joined


def not_covered(wanted: Iterable[str], args: Iterable[str]) -> str | None:
    """Return the first path or nodeid that is neither one of the arguments nor below one."""
    args = tuple(args)
    return next((each for each in wanted if not any(_is_below(each, arg) for arg in args)), None)


def smallest(args: Iterable[str]) -> tuple[str, ...]:
    """Leave out what is below another one; sorted."""
    ordered = sorted(set(args))
    return tuple(arg for arg in ordered if not any(other != arg and _is_below(arg, other) for other in ordered))


def _is_below(path: str, arg: str) -> bool:
    if arg == ".":
        return path != "" and not path.startswith(("../", "/")) and path != ".."
    return path == arg or path.startswith((f"{arg}/", f"{arg}::", f"{arg}["))
