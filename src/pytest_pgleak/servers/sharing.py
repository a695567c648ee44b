"""One server for several processes, as xdist's workers are: whoever comes first starts it, the others join."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_pgleak.servers import failures, leftovers, rundir
from pytest_pgleak.servers.values import Plan, RunningServer, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_pgleak.servers.privilege import OsUser

_TIMEOUT = 120.0  # seconds, without those in which somebody else tries to start it
_POLL = 0.01


@dataclass(frozen=True)
class Place:
    """Where the processes of one run meet.

    Attributes:
        parent: The directory for the server's directory.
        user: Whom the server runs as; None for the current user.
        run_id: What they have in common.
    """

    parent: Path
    user: OsUser | None
    run_id: str

    @property
    def name(self) -> str:
        """Name of the server's directory, without the prefix."""
        return hashlib.sha256(self.run_id.encode()).hexdigest()[:12]

    @property
    def path(self) -> Path:
        """The server's directory."""
        return self.parent / f"{leftovers.PREFIX}{self.name}"


def share(place: Place, plan: Plan, start: Callable[[list[rundir.Lease]], RunningServer]) -> RunningServer:
    """Start the server of a run, or join it where another process was faster.

    Args:
        place: Where the processes meet.
        plan: The server that was chosen.
        start: Starts it, given the lease of its directory; may add further leases.

    Raises:
        ServerError: It does not start. Another process that fails is no reason to: this one tries itself.
    """
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        rundir.sweep(place.parent, place.user)
        if (claimed := rundir.claim(place.parent, place.user, place.name)) is not None:
            lease, starting = claimed
            try:
                leases = [lease]
                server = start(leases)
                _publish(plan, server, leases)
            finally:
                starting.release()
            return server
        waiting_since = time.monotonic()
        joined = rundir.join(place.path, place.user)
        deadline += (
            time.monotonic() - waiting_since
        )  # the other one's own time limits hold: it may have to pull an image
        if joined is not None and (server_of_others := _joined(plan, *joined)) is not None:
            return server_of_others
        time.sleep(_POLL)  # whoever was faster has failed, or an earlier server of this run is going away
    raise ServerError(f"The test server that the workers of this run share did not come up in {place.path}.")


def _publish(plan: Plan, server: RunningServer, leases: list[rundir.Lease]) -> None:
    try:
        rundir.publish(leases[0], _announcement(server, leases[1:]))
    except OSError as error:  # the disk has become full
        server.stop()
        raise failures.not_started(plan, str(error), "") from error


def _announcement(server: RunningServer, further: list[rundir.Lease]) -> str:
    # With a password, if there is one: only this user may enter the directory that this comes to lie in.
    return "".join(f"{line}\n" for line in (server.version, server.dsn, *(lease.path for lease in further)))


def _joined(plan: Plan, lease: rundir.Lease, published: str) -> RunningServer | None:
    version, dsn, *further = published.splitlines()
    leases = [lease]

    def leave() -> None:
        for each in leases:
            each.release()

    for path in further:
        if (other := rundir.hold(Path(path))) is None:
            leave()
            return None
        leases.append(other)
    return RunningServer(dsn, version, plan.source, f"PostgreSQL {version} {plan.origin}", owned=True, _stop=leave)
