"""Who answers for a connection: a test's call phase, a fixture, a lifespan, a ``with`` block, the process."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

What = Literal["call", "fixture", "lifespan", "block", "session", "process"]

_OF_XUNIT_STYLE: Final = re.compile(r"_(?:xunit|unittest)_(setup_\w+?|setUp\w+?)_fixture_(.+)")
"""What pytest calls the fixtures that run set-ups and teardowns of xunit style and of unittest's."""


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

    @property
    def teardown(self) -> str | None:
        """For a set-up of xunit style or of unittest's, the name of the function that undoes it."""
        if (match := _OF_XUNIT_STYLE.fullmatch(self.fixturename or "")) is None:
            return None
        return match[1].replace("setup", "teardown").replace("setUp", "tearDown")

    def describe(self) -> str:
        """Name the owner in a sentence, as "fixture 'db' (module scope)"."""
        if self.what == "call":
            return "the test"
        if self.what == "fixture" and (match := _OF_XUNIT_STYLE.fullmatch(self.fixturename or "")):
            return f"{match[1]} or {self.teardown} of {match[2]}"
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
