"""Switches the ledger on in a process of a live server, when it first imports what there is to watch.

Imported by every Python process that the server starts, so it imports little itself.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pytest_pgleak.libraries.registry import BUILT_IN, LibraryTracker
from pytest_pgleak.live.trackers import OwnTracker
from pytest_pgleak.live.wire import RULES, VARIABLE, Rules, loads
from pytest_pgleak.post_import import PostImportHook

if TYPE_CHECKING:
    from pytest_pgleak.live.agent import Agent


def watch_this_process() -> None:
    """Watch this process, and every process that it forks."""
    worker = Worker(os.environ[VARIABLE])
    worker.begin()
    os.register_at_fork(before=worker.pause, after_in_parent=worker.resume, after_in_child=worker.begin_again)


class Worker:
    """This process.

    Args:
        directory: The server's.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._hook: PostImportHook | None = None
        self._agent: Agent | None = None
        self._has_failed = False

    def begin(self) -> None:
        """Wait for the imports. What was imported already is watched at once."""
        # An empty journal tells pytest that a process was here.
        os.close(os.open(f"{self._directory}/journal-{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o600))
        self._hook = PostImportHook()
        self._hook.install()
        self._hook.add("starlette.applications", self._starlette_imported)
        for library in BUILT_IN:
            self._hook.add(library.module, self._watch(library))
        rules: Rules = loads(Path(self._directory, RULES).read_bytes())
        for tracker in rules.trackers:
            known = self._watch(tracker.as_tracker()) if tracker.is_importable else self._cannot_watch(tracker)
            self._hook.add(tracker.module, known)

    def pause(self) -> None:
        """The process is about to fork."""
        if self._agent is not None:
            self._agent.pause()

    def resume(self) -> None:
        """It has forked."""
        if self._agent is not None:
            self._agent.resume()

    def begin_again(self) -> None:
        """In a child of ``fork()``: what the parent has opened is the parent's."""
        try:
            if self._hook is not None:
                self._hook.uninstall()
            if self._agent is not None:
                self._agent.abandon()
                self._agent = None
            self.begin()
        except Exception:  # noqa: BLE001 - the child is the application's own and must run
            traceback.print_exc()

    def _watch(self, library: LibraryTracker) -> Callable[[ModuleType], None]:
        def watch(module: ModuleType) -> None:
            if (agent := self._the_agent()) is not None:
                agent.watch(library, module)

        return watch

    def _cannot_watch(self, tracker: OwnTracker) -> Callable[[ModuleType], None]:
        def cannot_watch(_module: ModuleType) -> None:
            if (agent := self._the_agent()) is not None:
                agent.cannot_watch(tracker)

        return cannot_watch

    def _starlette_imported(self, module: ModuleType) -> None:
        if (agent := self._the_agent()) is not None:
            agent.starlette_imported(module)

    def _the_agent(self) -> Agent | None:
        if self._agent is None and not self._has_failed:
            try:
                from pytest_pgleak.live.agent import Agent

                self._agent = Agent(self._directory)
                self._agent.start()
            except Exception:  # noqa: BLE001 - the application imports something here, and that must not fail
                self._has_failed = True
                traceback.print_exc()
        return self._agent
