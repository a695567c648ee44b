from __future__ import annotations

from pathlib import Path

from builders import CALL, SERVER, connection_facts, finding, frame

from pytest_pgleak import rendering
from pytest_pgleak.findings import Finding
from pytest_pgleak.prepared import sentences as prepared_sentences
from pytest_pgleak.prepared.left import LeftPrepared, PreparedRow, Waiter
from pytest_pgleak.reporting import reported
from pytest_pgleak.views import Ending

ROOT = Path("/project")
ROW = PreparedRow("it's", "739", 0.34, "shop", "orders")


def left(is_async=False, **more):
    state = LeftPrepared("it's", SERVER, "orders", **{"row": ROW, **more})
    facts = connection_facts(is_async=is_async)
    return finding(
        "prepared-transaction", "prepared transaction", Ending.OPEN, prepared=state, connection=facts, origin=frame()
    )


def shown(found):
    return [line.text for line in rendering.failure([found], ROOT)]


def test_all_lines():
    found = left(locks=(("visits", "RowExclusiveLock"),), waiters=(Waiter(4712, "update visits set a = 'x'"),))
    assert shown(found) == [
        "[prepared-transaction] prepared transaction left behind",
        "  prepared  app/db.py:14 in get_conn",
        (
            "  server    gid 'it''s', prepared 0.3 s ago in database orders by role shop, xid 739,"
            " locks visits RowExclusiveLock"
        ),
        "  blocks    pid 4712, that waits for it: update visits set a = '…'",
        "  ended     the test ended; nothing called tpc_commit() or tpc_rollback()",
        "  fix       call `conn.tpc_commit()` when all have prepared, `conn.tpc_rollback()` when one has failed",
        '  allow     @pytest.mark.pgleak(allow=["prepared-transaction"])',
    ]


def test_what_stays_comes_with_the_statement_that_removes_it():
    assert "  undo      in database orders: ROLLBACK PREPARED 'it''s';" in shown(left(stays=True))
    assert not any("ROLLBACK PREPARED" in line for line in shown(left(stays=False)))


def test_async_code_is_told_to_wait():
    assert "`await conn.tpc_commit()`" in prepared_sentences.fix(left(is_async=True))


def test_what_was_prepared_by_sql_is_finished_by_sql():
    found = left(by_sql=True)
    assert prepared_sentences.ended(found) == "the test ended; nothing ran COMMIT PREPARED or ROLLBACK PREPARED"
    assert "COMMIT PREPARED 'it''s'" in prepared_sentences.fix(found)


def test_without_the_server():
    expected = "gid 'it''s' by the client's account; the server could not be asked"
    assert prepared_sentences.server(left(row=None)) == expected


def test_many_tables_and_many_waiters_are_counted():
    locks = tuple((f"t{number}", "RowExclusiveLock") for number in range(7))
    found = left(locks=locks, waiters=tuple(Waiter(pid) for pid in range(5)))
    assert prepared_sentences.server(found).endswith("t4 RowExclusiveLock and 2 more")
    assert prepared_sentences.blocks(found)[-2:] == [("blocks", "pid 2, that waits for it"), ("", "and 2 more")]


def test_a_stranger_has_no_line_and_is_known_by_its_gid():
    state = LeftPrepared("it's", SERVER, "orders", ROW, is_known=False)
    found = Finding(
        "prepared-transaction", CALL, None, Ending.OPEN, "prepared transaction", 739, server_known=True, prepared=state
    )
    assert shown(found)[1].startswith("  server    gid 'it''s'")
    assert "another process or another driver prepared it" in shown(found)[2]
    assert reported(found, "test_a.py::test_it", True, ROOT).place == "gid 'it''s'"
