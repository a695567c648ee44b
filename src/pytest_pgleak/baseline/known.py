"""The baseline as values: which findings are known, and what a run is to do with them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pytest_pgleak.baseline.extent import Extent
from pytest_pgleak.baseline.keys import Key

Use = Literal["compare", "create", "update"]
"""``compare``: what is not known fails. ``create``, ``update``: everything is accepted, and written at the end."""

Known = Mapping[Key, tuple[str, ...]]
"""Each known finding with some of the tests that have found it, sorted; none for what the session has left."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The baseline of a run.

    Attributes:
        use: What the run does with it.
        shown: The file as messages name it.
        known: What it lists.
        made_from: How far a run must go to miss nothing of that; None for a file that is not there yet.
    """

    use: Use
    shown: str
    known: Known = field(default_factory=dict)
    made_from: Extent | None = None

    def accepts(self, key: Key) -> bool:
        """Tell whether a finding does not fail."""
        return self.use != "compare" or key.among(self.known) in self.known
