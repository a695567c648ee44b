"""Who answers for a connection: a test's call phase, a fixture, a lifespan, a ``with`` block, the process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

What = Literal["call", "fixture", "lifespan", "block", "session", "process"]


@dataclass(frozen=True, slots=True)
class Owner:
    """One activation of something that opens connections.

    The same fixture that is set up twice is two owners.

    Attributes:
        serial: Unique within the session.
        what: The sort of owner.
        nodeid: The test that was running when it began; pytest's ``nodeid``, empty for the session.
        fixturename: pytest's ``fixturename`` for a fixture, or for the fixture that ran a lifespan.
        scope: The fixture's ``scope``.
        started_by: Serial of the owner that was active when a lifespan or a block began.
        variable: For the process, the global variable that keeps what it answers for.
    """

    serial: int
    what: What
    nodeid: str = ""
    fixturename: str | None = None
    scope: str | None = None
    started_by: int | None = None
    variable: str | None = None

    @property
    def outlives_tests(self) -> bool:
        """Whether it ends when pytest does: what it holds is nothing that a test has to give back."""
        return self.what in ("session", "process")

    def describe(self) -> str:
        """Name the owner in a sentence, as "fixture 'db' (module scope)"."""
        if self.what == "call":
            return "the test"
        if self.what == "fixture":
            return f"fixture {self.fixturename!r} ({self.scope} scope)"
        if self.what == "lifespan":
            ran = f" run by fixture {self.fixturename!r}" if self.fixturename else ""
            return f"the application's lifespan{ran}"
        if self.what == "block":
            return "the no_leaks() block"
        if self.what == "process":
            return f"the process (module global {self.variable})"
        return "the process (opened at import or collection)"
