"""The rule for prepared transactions: which ones their owner has left. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pytest_pgleak.find import Question, finding_at
from pytest_pgleak.findings import Finding
from pytest_pgleak.kinds import PREPARED_TRANSACTION
from pytest_pgleak.prepared.left import LeftPrepared, Prepared, PreparedRow, Server
from pytest_pgleak.views import Ending

Rows = Mapping[Server, tuple[PreparedRow, ...]]


def find_prepared(
    prepared: Iterable[Prepared],
    rows: Rows,
    question: Question,
    strangers: Iterable[tuple[Server, PreparedRow]] = (),
) -> tuple[Finding, ...]:
    """Judge what was prepared.

    Args:
        prepared: What this process has prepared and not finished.
        rows: What the servers list that could be asked. One that is missing there could not: the client's account
            stands alone. One that has finished it by now, on whosever behalf, has nothing to show for it.
        question: Whose end is being judged.
        strangers: Rows that are charged to the asker, though nothing in this process has prepared them.

    Returns:
        The findings in the order in which they were prepared; strangers last.
    """
    found = []
    for entry in prepared:
        if entry.moment.owner.serial not in question.ended:
            continue
        listed = rows.get(entry.facts.server)
        row = next((row for row in listed or () if row.gid == entry.gid), None)
        if listed is None or row is not None:
            found.append(_of_entry(entry, row))
    return (*found, *(_of_stranger(server, row, question) for server, row in strangers))


def strangers_among(
    rows: Rows,
    own: Iterable[tuple[Server, str]],
    before: frozenset[tuple[Server, tuple[str, str]]],
    prepared: Iterable[Prepared],
) -> tuple[tuple[Server, PreparedRow], ...]:
    """Pick the rows that have come since a test began, by another process or another driver.

    Args:
        rows: What the servers list.
        own: Server and name of the databases that nobody else uses. In any other it may be somebody else's.
        before: The identities of those that were there when the test began.
        prepared: What this process has prepared, on whosever account.
    """
    databases = set(own)
    explained = {(entry.facts.server, entry.gid) for entry in prepared}
    return tuple(
        (server, row)
        for server, listed in rows.items()
        for row in listed
        if (server, row.database) in databases
        and (server, row.identity) not in before
        and (server, row.gid) not in explained
    )


def _of_entry(entry: Prepared, row: PreparedRow | None) -> Finding:
    database = entry.facts.dbname if row is None else row.database
    return finding_at(
        PREPARED_TRANSACTION,
        "prepared transaction",
        0 if row is None else int(row.transaction),
        entry.moment.owner,
        entry.moment,
        Ending.OPEN,
        connection=entry.facts,
        server_known=row is not None,
        prepared=LeftPrepared(entry.gid, entry.facts.server, database, row, by_sql=entry.by_sql),
    )


def _of_stranger(server: Server, row: PreparedRow, question: Question) -> Finding:
    return Finding(
        PREPARED_TRANSACTION,
        question.asker,
        None,
        Ending.OPEN,
        "prepared transaction",
        int(row.transaction),
        server_known=True,
        prepared=LeftPrepared(row.gid, server, row.database, row, is_known=False),
    )
