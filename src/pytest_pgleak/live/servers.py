"""The live servers of a session: which run, what is asked of them at each checkpoint, what they have to say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from pytest_pgleak.activity import Backend
from pytest_pgleak.budget.timeline import Timeline
from pytest_pgleak.clock import Clock
from pytest_pgleak.find import Question
from pytest_pgleak.findings import Finding
from pytest_pgleak.live.command import DEFAULT, LiveServerError, PortTakenError, check_is_used
from pytest_pgleak.live.last_words import LastWords, killed_in_transaction, lost_write, outlived
from pytest_pgleak.live.server import TAG, LiveServer
from pytest_pgleak.live.trackers import OwnTracker, own_trackers
from pytest_pgleak.live.wire import (
    LONGEST_WORK,
    Begin,
    Forget,
    Judge,
    Judged,
    Kept,
    Pids,
    Rules,
    Stopping,
    Told,
    header_of,
    read_header,
)
from pytest_pgleak.owners import Owner
from pytest_pgleak.plugin import libraries_of
from pytest_pgleak.settling import Findings
from pytest_pgleak.verdicts import Verdicts

if TYPE_CHECKING:
    from pytest_pgleak.state import State

TIMEOUT: Final = 30.0
"""Seconds that a server gets to answer. Two workers of a FastAPI application take about one."""

_ATTEMPTS: Final = 3
"""Between the look for a free port and the server's start others open connections, which have ports as well."""
_PAUSE: Final = 0.005


class LiveServers:
    """Starts servers, and speaks to all of their workers as one.

    Args:
        state: The session's state.
        command: The command of the settings.
        dsn: Returns the DSN that ``{dsn}`` stands for; asked only where the command has it.
    """

    def __init__(self, state: State, command: str, dsn: Callable[[], str]) -> None:
        self._state = state
        self._command = command
        self._dsn = dsn
        self._own_trackers = own_trackers(libraries_of(state.config))
        self._all: list[LiveServer] = []
        self._unasked: list[Finding] = []
        self.kept: list[Finding] = []
        """What workers had for themselves when they shut down; told at the end of the session."""
        self._active: Owner | None = None
        self._counting: int | None = None
        self._unwatched: set[OwnTracker] = set()
        self._over = frozenset[int]()
        """Owners that ended with the call phase of this test."""
        self.timelines: list[Timeline] = []
        """What the workers had open while a test with ``max_connections`` ran."""
        self._answers: dict[tuple[int, int], int] = {}
        self._judged: list[tuple[LiveServer, int, int, Finding]] = []

    @contextmanager
    def __call__(
        self,
        app: str | None = None,
        *,
        workers: int | None = None,
        command: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
    ) -> Iterator[LiveServer]:
        """Run a server for as long as the block lasts.

        Args:
            app: What stands for ``{app}`` in the command: where your application is, as ``"app.main:app"``.
            workers: What stands for ``{workers}``: how many processes serve; 1 if nobody says.
            command: Instead of the one of ``pgleak_live_command``.
            env: Variables for its environment, beside those of pytest.
            timeout: How long it may take until it answers, seconds.
        """
        __tracebackhide__ = True
        text = self._command if command is None else command
        values = {"workers": str(workers or 1)}
        if app is not None:
            values["app"] = app
        trouble = ""
        try:
            check_is_used(text, app, workers)
            if "{dsn}" in text:
                values["dsn"] = self._dsn()
            server = self._started(text, values, env or {}, timeout)
        except LiveServerError as error:
            trouble = str(error)
        if trouble:
            pytest.fail(trouble, pytrace=False)
        try:
            yield server
        finally:
            self._stop(server)

    def _started(self, text: str, values: Mapping[str, str], env: Mapping[str, str], timeout: float) -> LiveServer:
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(PortTakenError):
                return self._start(text, values, env, timeout)
        return self._start(text, values, env, timeout)

    def _start(self, text: str, values: Mapping[str, str], env: Mapping[str, str], timeout: float) -> LiveServer:
        root, is_watched = self._state.config.rootpath, self._state.settings.mode != "off"
        server = LiveServer(text, values, env, root, self._rules(), self._tag, self._told, is_watched)
        self._all.append(server)
        try:
            server.wait(timeout)
            self._greet(server)
        except BaseException:
            self._stop(server)
            raise
        return server

    def begin(self, owner: Owner, counts: bool = False) -> None:
        """A test's call phase begins.

        Args:
            owner: It.
            counts: Whether it has ``max_connections``.
        """
        self._active, self._counting = owner, owner.serial if counts else None
        self.timelines = []
        self._over = frozenset[int]()
        self._answers.clear()
        for server in self._running:
            self._greet(server)

    def judging(
        self, question: Question, grace: float, ends_call: bool, is_last: bool = True
    ) -> Generator[float, None, Findings]:
        """Ask all workers; yields the pauses to make until they have answered.

        Args:
            question: What to ask.
            grace: Longest time that each waits for a late release, seconds.
            ends_call: Whether the call phase is over.
            is_last: Whether what is found is not to be found again.

        Yields:
            Seconds to wait.

        Returns:
            What they have found, and what has been found in servers that were stopped since.
        """
        message = Judge(replace(question, left_open=()), grace, ends_call, is_last)
        self._judged = []
        for server in self._running:
            answers = yield from server.workers.asking(lambda _link: message, LONGEST_WORK + 2 * grace)
            for pid, answer in answers.items():
                for place, finding in enumerate(answer.findings if isinstance(answer, Judged) else ()):
                    self._judged.append((server, pid, place, replace(finding, process=pid)))
            self._read_journals(server)
            if ends_call:
                self._collect_timelines(server)
        if ends_call:
            self._counting = None
            self._over = question.ended
        if not is_last:
            return tuple(finding for _, _, _, finding in self._judged)
        unasked, self._unasked = self._unasked, []
        return (*(finding for _, _, _, finding in self._judged), *unasked)

    def told(self, verdicts: Verdicts) -> None:
        """Tell the workers what became of their findings: they undo what was left."""
        for server in {judged[0] for judged in self._judged}:
            server.workers.tell_each(
                lambda link, server=server: Told(  # type: ignore[misc]  # mypy infers no type for such a default
                    self._places(server, link.pid, verdicts.failing),
                    self._places(server, link.pid, (*verdicts.warning, *verdicts.known)),
                )
            )
        self._judged = []

    def forget(self, owners: Iterable[Owner], is_judged: Callable[[Owner], bool] = lambda _owner: True) -> None:
        """Let go of owners that have ended.

        Args:
            owners: They.
            is_judged: Tells of each whether anybody judges what it has left.
        """
        judged = {owner.serial: is_judged(owner) for owner in owners}
        message = Forget(tuple(judged), frozenset(serial for serial, is_so in judged.items() if is_so))
        for server in self._running if judged else ():
            server.workers.tell(message)

    @property
    def has_findings(self) -> bool:
        """Whether workers have found something by themselves that is still to be told."""
        return bool(self._unasked)

    def owns(self, backend: Backend) -> bool:
        """Tell whether a backend was opened by a worker."""
        return backend.application_name == TAG or backend.pid in self.pids()

    def pids(self) -> frozenset[int]:
        """Return the pids of the backends that the workers have opened, the recently closed ones included."""
        answers = (answer for server in self._running for answer in server.workers.tell(Pids()).values())
        counted = (each.facts.backend_pid for line in self.timelines for each in line.connections.values())
        return frozenset(counted).union(*(answer.pids for answer in answers if isinstance(answer, Pids)))

    def close(self) -> None:
        """Stop all servers."""
        for server in self._running:
            self._stop(server)

    @property
    def _running(self) -> list[LiveServer]:
        """Those that run; in a child of fork() none of its parent's, who would miss the answers that it takes."""
        return [server for server in self._all if server.is_ours]

    def _places(self, server: LiveServer, pid: int, findings: Findings) -> tuple[int, ...]:
        return tuple(
            place
            for of_server, of_pid, place, finding in self._judged
            if of_server is server and of_pid == pid and any(finding is each for each in findings)
        )

    def _greet(self, server: LiveServer) -> None:
        rules = self._rules()
        server.workers.publish(rules)
        if self._active is not None:
            server.workers.tell(Begin(self._active, rules))

    def _collect_timelines(self, server: LiveServer) -> None:
        if self._counting is not None:
            self.timelines += server.workers.timelines(self._counting, self._answers)

    def _stop(self, server: LiveServer) -> None:
        if server not in self._running:
            return
        self._all.remove(server)
        self._hear_the_last(server)
        server.stop()
        if server.was_killed:
            self._state.note(
                f"the live server {server.url} was told to stop and did not; it was killed, and nobody knows what its"
                " lifespan would have left. Does something in it wait for a client, or hold a thread?"
            )
        try:
            self._read_journals(server, is_over=True)
            self._collect_timelines(server)
        except Exception:  # noqa: BLE001 - a fault of the plugin is reported as one, and leaves nothing lying about
            self._state.fault("the end of a live server")
        finally:
            server.clean_up()

    def _hear_the_last(self, server: LiveServer) -> None:
        """Ask what websockets keep that their tests have left open: when the server stops, they are closed."""
        try:
            for pid, answer in server.workers.tell(Stopping(self._over)).items():
                if isinstance(answer, Kept):
                    self.kept += [replace(finding, process=pid) for finding in answer.findings]
        except TimeoutError:
            pass  # it hangs: whether it stops is seen in a moment
        except Exception:  # noqa: BLE001 - a fault of the plugin is reported as one, and the server is stopped
            self._state.fault("the end of a live server")

    def _read_journals(self, server: LiveServer, is_over: bool = False) -> None:
        new = server.workers.read_journals()
        self._unasked += new.findings
        known = {(each.process, each.subject, each.serial) for each in self.kept}
        self.kept += [each for each in new.kept if (each.process, each.subject, each.serial) not in known]
        for pid, words in server.workers.take_last_words().items():
            if words.has_shut_down:
                said = self._of_ended(words)
            elif is_over and server.was_killed:
                continue  # by ourselves: it had nobody to tell
            else:
                said = self._of_killed(pid, words)
            self._unasked += [replace(finding, process=pid) for finding in said]
        for tracker in new.unwatched:
            self._note_unwatched(tracker)
        for fault in new.faults:
            self._state.missed = "internal error in a worker process"
            self._state.note(f"internal error of pytest-pgleak in {fault}")

    def _note_unwatched(self, tracker: OwnTracker) -> None:
        if tracker in self._unwatched:
            return
        self._unwatched.add(tracker)
        self._state.missed = f"{tracker.module} is not watched in the workers of live servers"
        self._state.note(
            f"a worker of a live server has imported {tracker.module}, and no worker can import its tracker"
            f" ({tracker.home}.{tracker.function}): what they did with it was not watched. Put the tracker into a"
            " module of its own"
        )

    def _of_ended(self, words: LastWords) -> Iterator[Finding]:
        """Find backends that are still at work for a process that has shut down: the server notices late."""
        give_up_at = Clock.monotonic() + self._state.settings.grace
        facts = {each.facts.backend_pid: each for each in words.open.values()}
        while rows := self._state.observers.look([each.facts for each in facts.values()]).backends:
            if Clock.monotonic() > give_up_at:
                break
            Clock.sleep(_PAUSE)
        for pid, backend in rows.items():
            yield outlived(facts[pid], backend)
            if self._state.may_terminate(facts[pid].facts):
                self._state.observers.terminate([facts[pid].facts])

    def _of_killed(self, pid: int, words: LastWords) -> Iterator[Finding]:
        yield from words.standing
        for wrote in words.open_writes.values():
            request = wrote.moment.request
            status = self._answers.get((wrote.moment.owner.serial, request.ordinal)) if request is not None else None
            if status is not None and status < 400:
                yield lost_write(wrote, status)
            else:
                self._state.note(killed_in_transaction(wrote, pid, status, self._state.config.rootpath))

    def _told(self, header: str, status: int) -> None:
        if (sender := read_header(header)) is not None:
            self._answers[sender[1].serial, sender[0]] = status

    def _rules(self) -> Rules:
        state = self._state
        settings = state.settings
        dsn = (settings.dsn, settings.dsn_option) if settings.dsn and settings.server in ("auto", "dsn") else None
        collects = settings.mode == "fail"
        console = (settings.pgbouncer, settings.pgbouncer_option) if settings.pgbouncer else None
        databases = frozenset(state.own_databases)
        counts, own = self._counting, self._own_trackers
        return Rules(databases, settings.terminate, collects, dsn, console, settings.grace, counts, own)

    def _tag(self) -> str:
        return header_of(next(self._state.requests), self._state.ownership.active)


def live_servers(state: State, request: pytest.FixtureRequest) -> LiveServers:
    """Return the live servers of a session, made when first asked for.

    Args:
        state: The session's state.
        request: The request of a fixture of session scope.
    """
    if state.live is None:
        command = state.settings.live_command or DEFAULT
        state.live = LiveServers(state, command, lambda: str(request.getfixturevalue("pgleak_dsn")))
    return state.live
