"""pytest's end of the conversation with the workers of one server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from pytest_pgleak.budget.timeline import Timeline
from pytest_pgleak.clock import Clock
from pytest_pgleak.findings import Finding
from pytest_pgleak.live.agent import SOCKET
from pytest_pgleak.live.journal import JournalReader, journals
from pytest_pgleak.live.last_words import LastWords
from pytest_pgleak.live.tally import Tally
from pytest_pgleak.live.trackers import OwnTracker
from pytest_pgleak.live.wire import RULES, Fault, Hello, Judged, Kept, Rules, Serving, Unwatched, dumps, loads

_ANSWER: Final = 10.0
"""Seconds that a worker may take for an answer, beside what it was told to wait for."""
_BACKLOG: Final = 128
_POLL: Final = 0.001


@dataclass(slots=True)
class Link:
    """The connection with one worker."""

    connection: Connection[Any, Any]
    pid: int = 0
    is_serving: bool = False
    is_gone: bool = False


@dataclass(slots=True)
class Said:
    """What workers have said by themselves.

    Attributes:
        findings: What their lifespans have left.
        kept: What they had for themselves when they shut down.
        faults: Faults of the plugin.
        unwatched: Trackers of the user's own that would have been needed.
    """

    findings: list[Finding] = field(default_factory=list)
    kept: list[Finding] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unwatched: list[OwnTracker] = field(default_factory=list)


class Workers:
    """Speaks to the workers. Nothing here runs by itself: whoever connects is heard when somebody asks.

    Args:
        directory: The server's.
        rules: The settings.
    """

    def __init__(self, directory: Path, rules: Rules) -> None:
        self.directory = directory
        self._rules: Rules | None = None
        self.publish(rules)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(directory / SOCKET))
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)
        self._links: list[Link] = []
        self._journals: dict[Path, JournalReader] = {}
        self._last_words: dict[int, LastWords] = {}
        self._tallies: dict[int, Tally] = {}

    def publish(self, rules: Rules) -> None:
        """Write down the settings for workers that are still to come."""
        if rules != self._rules:
            self._rules = rules
            (new := self.directory / f"{RULES}.new").write_bytes(dumps(rules))
            new.rename(self.directory / RULES)

    @property
    def links(self) -> list[Link]:
        """The workers that are there."""
        self._accept()
        for link in self._links:
            self._hear(link)
        self._links = [link for link in self._links if not link.is_gone]
        return list(self._links)

    @property
    def serving(self) -> int:
        """How many of them have completed the start-up of their application."""
        return sum(link.is_serving for link in self.links)

    @property
    def has_processes(self) -> bool:
        """Whether any Python process of the server was reached at all."""
        return bool(journals(self.directory))

    def tell(self, message: object) -> dict[int, Any]:
        """Send a message to all workers and wait for their answers, which come by the workers' pids."""
        return self.tell_each(lambda _link: message)

    def tell_each(self, message: Callable[[Link], object]) -> dict[int, Any]:
        """As `tell`, each its own message."""
        asking = self.asking(message)
        while True:
            try:
                next(asking)
            except StopIteration as done:
                answers: dict[int, Any] = done.value
                return answers
            Clock.sleep(_POLL)

    def asking(
        self, message: Callable[[Link], object], patience: float = 0.0
    ) -> Generator[float, None, dict[int, Any]]:
        """As `tell_each`; yields the pauses to make until all have answered.

        Args:
            message: Returns what to send to a worker.
            patience: Seconds that an answer may take by itself.

        Yields:
            Seconds to wait.

        Returns:
            The answers, by the workers' pids. Who has died has none.
        """
        answers = dict[int, Any]()
        asked = [link for link in self.links if self._send(link, dumps(message(link)))]
        give_up_at = Clock.monotonic() + patience + _ANSWER
        while True:
            for link in asked:
                if link.pid not in answers and (answer := self._hear(link)) is not None:
                    answers[link.pid] = answer
            asked = [link for link in asked if link.pid not in answers and not link.is_gone]
            if not asked:
                return answers
            if Clock.monotonic() > give_up_at:
                stuck = ", ".join(str(link.pid) for link in asked)
                raise TimeoutError(f"no answer from worker {stuck} of a live server within {_ANSWER:.0f} s")
            yield _POLL

    def read_journals(self) -> Said:
        """Return what workers have said by themselves since the last time."""
        said = Said()
        for path in journals(self.directory):
            reader = self._journals.setdefault(path, JournalReader(path))
            for record in reader.read():
                if isinstance(record, Judged):
                    said.findings += [replace(finding, process=reader.pid) for finding in record.findings]
                elif isinstance(record, Kept):
                    said.kept += [replace(finding, process=reader.pid) for finding in record.findings]
                elif isinstance(record, Fault):
                    said.faults.append(record.text)
                elif isinstance(record, Unwatched):
                    said.unwatched.append(record.tracker)
                else:
                    self._last_words.setdefault(reader.pid, LastWords.none()).take(record)
                    self._tallies.setdefault(reader.pid, Tally()).take(record)
        return said

    def timelines(self, test: int, statuses: Mapping[tuple[int, int], int]) -> list[Timeline]:
        """Return, once, what the workers had open while a test ran, those included that are gone by now.

        Args:
            test: Serial of the test. Journals were read before.
            statuses: What our clients were answered, by owners and ordinals of their requests.
        """
        there = {link.pid for link in self.links}
        found = (tally.timeline(test, pid not in there, statuses) for pid, tally in self._tallies.items())
        return [timeline for timeline in found if timeline is not None]

    def take_last_words(self) -> dict[int, LastWords]:
        """Return, once, the last words of those who have ended, by their pids. Journals were read before."""
        gone = self._last_words.keys() - {link.pid for link in self.links}
        return {pid: self._last_words.pop(pid) for pid in sorted(gone)}

    def close(self) -> None:
        """Hang up."""
        for link in self._links:
            link.connection.close()
        self._links.clear()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            accepted.setblocking(True)
            self._links.append(Link(Connection(accepted.detach())))

    def _send(self, link: Link, packed: bytes) -> bool:
        try:
            link.connection.send_bytes(packed)
        except OSError:
            link.is_gone = True
        return not link.is_gone

    def _hear(self, link: Link) -> Any:
        """Take what a worker has sent; return the answer that is among it, if there is one."""
        try:
            while not link.is_gone and link.connection.poll(0):
                message = loads(link.connection.recv_bytes())
                if isinstance(message, Hello):
                    link.pid = message.pid
                elif isinstance(message, Serving):
                    link.is_serving = True
                else:
                    return message
        except (EOFError, OSError):
            link.is_gone = True
        return None
