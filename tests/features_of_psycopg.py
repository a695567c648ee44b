"""What psycopg does, operation by operation; `test_psycopg_features.py` runs it with and without the plugin.

Each test writes down all that a user can see: rows, exceptions, statuses, notices, notifications, the log.
"""

import asyncio
import json
import logging
import os
import re
import threading
from contextlib import closing
from pathlib import Path

import psycopg
import psycopg_pool
import pytest
from psycopg import sql
from psycopg.rows import dict_row, namedtuple_row

DSN = os.environ["FEATURES_DSN"]
SEEN = {}


class Diary:
    """Takes down what is seen, without what differs from run to run."""

    def __init__(self):
        self.lines = []

    def see(self, what, *values):
        self.lines.append(f"{what}: " + ", ".join(_plain(value) for value in values))

    def state(self, conn):
        names = [name for name in ("closed", "broken") if getattr(conn, name)]
        self.see("state", conn.info.transaction_status.name, conn.pgconn.status, conn.pgconn.pipeline_status, *names)

    def cursor(self, cur):
        description = [column.name for column in cur.description or ()]
        self.see("cursor", cur.statusmessage, cur.rowcount, cur.rownumber, description, cur._query and cur._query.query)

    def error(self, error):
        self.see("error", type(error).__name__, getattr(error, "sqlstate", None), error)
        self.see("context", *(type(each).__name__ for each in (error.__cause__, error.__context__) if each))
        diagnostic = getattr(error, "diag", None)
        if diagnostic is not None:
            self.see("diag", diagnostic.severity, diagnostic.message_primary, diagnostic.constraint_name)


def _plain(value):
    text = repr(value) if not isinstance(value, BaseException) else str(value)
    text = re.sub(r"0x[0-9a-f]+", "0x…", text)
    text = re.sub(r"pid=\d+|PID \d+|process \d+", "pid", text)
    return re.sub(r"_pg3_\d+", "_pg3", text)


@pytest.fixture
def diary(request, caplog):
    caplog.set_level(logging.INFO, logger="psycopg")
    diary = Diary()
    yield diary
    for record in caplog.records:
        if record.name.startswith("psycopg") and record.levelno >= logging.WARNING:
            diary.see("log", record.levelname, re.sub(r"pool-\d+", "pool", record.getMessage()))
    SEEN[request.node.nodeid.replace("[", " ").replace("]", "")] = diary.lines


@pytest.fixture(scope="session", autouse=True)
def database():
    with psycopg.connect(DSN) as conn:
        conn.execute(
            """
            drop table if exists child, thing, late;
            create table thing (id int primary key generated always as identity, name text unique, amount int);
            create table child (thing int references thing);
            create table late (id int primary key deferrable initially deferred);
            insert into thing (name, amount) select 'thing ' || n, n from generate_series(1, 20) n;
            create or replace function speak(text) returns text language plpgsql as
                'begin raise notice ''heard %'', $1; raise warning ''still %'', $1; return upper($1); end'
            """
        )
    yield
    Path(os.environ["FEATURES_RESULT"]).write_text(json.dumps(SEEN, indent=1), encoding="utf-8")


@pytest.fixture
def conn(diary):
    conn = psycopg.connect(DSN)
    yield conn
    diary.state(conn)
    conn.close()


@pytest.fixture
def anyio_backend():
    return "asyncio"


def tried(diary, conn, function, *args, **kwargs):
    """Call, and take down what came of it."""
    try:
        result = function(*args, **kwargs)
        diary.see("result", None if result is conn or isinstance(result, psycopg.Cursor) else result)
    except Exception as error:  # noqa: BLE001 - whichever it is, it is to be the same
        diary.error(error)
    diary.state(conn)


async def tried_async(diary, conn, function, *args, **kwargs):
    try:
        result = await function(*args, **kwargs)
        diary.see("result", None if isinstance(result, psycopg.AsyncCursor) else result)
    except Exception as error:  # noqa: BLE001 - as above
        diary.error(error)
    diary.state(conn)


# -- statements -------------------------------------------------------------------------------------------------------

STATEMENTS = [
    "select 1",
    "select * from thing order by id limit 2",
    "insert into thing(name) values ('new') returning name",
    "insert into thing(name) values ('thing 1')",
    "insert into thing(name) values ('thing 1') on conflict do nothing",
    "update thing set amount = amount + 1 where id < 3",
    "update thing set amount = 1 where false",
    "delete from thing where id = 20",
    "select 1; select 2; select 3",
    "select 1; select 1 / 0; select 3",
    "select no_such_column",
    "syntax error",
    "",
    "-- a comment",
    "select speak('hello')",
    "create temporary table scratch (a int)",
    "create table made (a int)",
    "set local work_mem = '8MB'",
    "show transaction_isolation",
    "begin",
    "commit",
    "rollback",
    "savepoint a",
    "rollback to savepoint a",
    "prepare p as select 1",
    "declare c cursor for select 1",
    "notify a_channel",
    "lock table thing",
    "explain select 1",
    "do 'begin raise exception ''no''; end'",
    "vacuum thing",
]


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("autocommit", [False, True])
def test_statement(diary, conn, statement, autocommit):
    conn.add_notice_handler(lambda notice: diary.see("notice", notice.severity, notice.message_primary))
    conn.autocommit = autocommit
    cur = conn.cursor()
    tried(diary, conn, cur.execute, statement)
    diary.cursor(cur)
    try:
        while True:
            diary.see("rows", cur.fetchall() if cur.description else None)
            if not cur.nextset():
                break
    except psycopg.Error as error:
        diary.error(error)
    tried(diary, conn, conn.execute, "select 2")
    tried(diary, conn, conn.rollback)


@pytest.mark.anyio
@pytest.mark.parametrize("statement", STATEMENTS)
async def test_statement_async(diary, statement):
    async with await psycopg.AsyncConnection.connect(DSN) as conn:
        conn.add_notice_handler(lambda notice: diary.see("notice", notice.severity, notice.message_primary))
        cur = conn.cursor()
        await tried_async(diary, conn, cur.execute, statement)
        diary.cursor(cur)
        diary.see("rows", await cur.fetchall() if cur.description else None)
        await tried_async(diary, conn, conn.execute, "select 2")
        await tried_async(diary, conn, conn.rollback)


def test_kinds_of_queries(diary, conn):
    for query in (b"select 1", sql.SQL("select {}").format(1), sql.SQL("select {}").format(sql.Identifier("a"))):
        tried(diary, conn, lambda query=query: conn.execute(query).fetchall())
        conn.rollback()
    for query, parameters in (
        ("select %s, %s", (1, "a")),
        ("select %(a)s", {"a": 1}),
        ("select %s", ()),
        ("select %s, %s", (1,)),
        ("select %(a)s", {}),
        ("select %s", 1),
        ("select %%", None),
        ("select %s", [object()]),
        (1, None),
        (None, None),
    ):
        tried(diary, conn, lambda query=query, parameters=parameters: conn.execute(query, parameters).fetchall())
        conn.rollback()


@pytest.mark.parametrize("factory", [psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor])
def test_cursors(diary, conn, factory):
    cur = factory(conn)
    placeholder = "$1" if factory is psycopg.RawCursor else "%s"
    tried(diary, conn, cur.execute, f"select {placeholder}::int as a", [1])
    diary.cursor(cur)
    diary.see("rows", cur.fetchone(), cur.fetchone())
    cur.row_factory = dict_row
    tried(diary, conn, lambda: cur.execute("select 1 as a").fetchall())
    tried(diary, conn, lambda: list(cur.execute("select generate_series(1, 4) as a")))
    tried(diary, conn, cur.scroll, 1, "absolute")
    tried(diary, conn, lambda: cur.fetchmany(2))
    cur.close()
    tried(diary, conn, cur.execute, "select 1")
    conn.row_factory = namedtuple_row
    tried(diary, conn, lambda: conn.execute("select 1 as a").fetchone()._asdict())


def test_prepared_statements(diary, conn):
    names = "select name ~ '^_pg3', statement, prepare_time <= now() from pg_prepared_statements order by statement"
    for _ in range(7):
        conn.execute("select %s::int", [1])
    conn.execute("select 'once'::text", prepare=True)
    diary.see("prepared", conn.execute(names, prepare=False).fetchall())
    diary.see("thresholds", conn.prepare_threshold, conn.prepared_max)
    conn.rollback()
    diary.see("prepared", conn.execute(names, prepare=False).fetchall())
    conn.prepared_max = 1
    for number in range(3):
        conn.execute(f"select {number}::int", prepare=True)
    diary.see("prepared", conn.execute(names, prepare=False).fetchall())
    conn.commit()
    conn.execute("deallocate all")
    tried(diary, conn, conn.execute, "select %s::int", [1])


@pytest.mark.parametrize("returning", [False, True])
def test_executemany(diary, conn, returning):
    cur = conn.cursor()
    for rows in ([["a"], ["b"]], [], [["c"], ["c"]], [["d"]]):
        tail = " returning name" if returning else ""
        tried(
            diary,
            conn,
            cur.executemany,
            f"insert into thing(name) values (%s){tail}",
            rows,
            returning=returning,
        )
        diary.cursor(cur)
        try:
            while returning and rows:
                diary.see("rows", cur.fetchall())
                if not cur.nextset():
                    break
        except psycopg.Error as error:
            diary.error(error)
        if conn.info.transaction_status.name == "INERROR":
            conn.rollback()


@pytest.mark.anyio
async def test_executemany_async(diary):
    async with await psycopg.AsyncConnection.connect(DSN) as conn:
        cur = conn.cursor()
        await tried_async(
            diary,
            conn,
            cur.executemany,
            "insert into thing(name) values (%s) returning name",
            [["x"], ["y"]],
            returning=True,
        )
        async for results in cur.results():
            diary.see("rows", await results.fetchall())
        await tried_async(diary, conn, cur.executemany, "insert into thing(name) values (%s)", [["z"], ["z"]])
        await conn.rollback()


# -- COPY -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocommit", [False, True])
def test_copy_in(diary, conn, autocommit):
    conn.autocommit = autocommit
    cur = conn.cursor()

    def copy(statement, *rows, fails=False):
        with cur.copy(statement) as copy:
            for row in rows:
                copy.write(row) if isinstance(row, (str, bytes)) else copy.write_row(row)
            if fails:
                raise LookupError("in the middle")

    tried(diary, conn, copy, "copy thing(name) from stdin", ["copied"], ["again"])
    diary.cursor(cur)
    tried(diary, conn, copy, "copy thing(name) from stdin", "text\nlines\n")
    tried(diary, conn, copy, "copy thing(name) from stdin", ["copied"])
    conn.rollback()
    tried(diary, conn, copy, "copy thing(amount) from stdin", ["no number"])
    conn.rollback()
    tried(diary, conn, copy, "copy thing(name) from stdin", ["lost"], fails=True)
    conn.rollback()
    tried(diary, conn, copy, "copy no_such_table from stdin", [1])
    conn.rollback()
    tried(diary, conn, copy, "select 1")
    conn.rollback()
    tried(diary, conn, lambda: conn.execute("select count(*) from thing where name = 'lost'").fetchone())
    conn.execute("delete from thing where name in ('copied', 'again', 'text', 'lines')")


def test_copy_out(diary, conn):
    cur = conn.cursor()
    with cur.copy("copy (select id, name from thing order by id limit 3) to stdout") as copy:
        diary.see("data", b"".join(bytes(block) for block in copy))
    diary.state(conn)
    with cur.copy("copy (select id, amount from thing order by id limit 3) to stdout (format binary)") as copy:
        copy.set_types(["int4", "int4"])
        diary.see("rows", list(copy.rows()))
    with cur.copy("copy (select generate_series(1, 100000)) to stdout") as copy:
        diary.see("first", bytes(copy.read())[:2])
        diary.see("second", copy.read_row())
    tried(diary, conn, conn.execute, "select 1")

    def left():
        with cur.copy("copy (select generate_series(1, 100000)) to stdout") as copy:
            copy.read()
            raise LookupError("in the middle")

    tried(diary, conn, left)
    tried(diary, conn, cur.copy("copy (select 1 / 0) to stdout").__enter__)


@pytest.mark.anyio
async def test_copy_async(diary):
    async with await psycopg.AsyncConnection.connect(DSN) as conn:
        cur = conn.cursor()
        async with cur.copy("copy thing(name) from stdin") as copy:
            await copy.write_row(["async"])
        diary.cursor(cur)
        async with cur.copy("copy (select name from thing where name = 'async') to stdout") as copy:
            async for block in copy:
                diary.see("data", bytes(block))
        diary.state(conn)
        await conn.rollback()


# -- pipelines --------------------------------------------------------------------------------------------------------


def test_pipeline(diary, conn):
    with conn.pipeline() as pipeline:
        first, second = conn.execute("select 1"), conn.execute("select %s", ["a"])
        diary.see("pipeline", pipeline.status)
        diary.state(conn)
        diary.see("rows", second.fetchone())
        pipeline.sync()
        diary.state(conn)
        diary.see("rows", first.fetchone())
        conn.execute("insert into thing(name) values ('piped')")
    diary.state(conn)
    conn.rollback()
    diary.see("left", conn.execute("select count(*) from thing where name = 'piped'").fetchone())


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("way", ["error", "raised", "block", "block-error", "commit", "rollback", "nested", "many"])
def test_pipeline_ends(diary, conn, autocommit, way):
    conn.autocommit = autocommit

    def work():
        with conn.pipeline():
            if way == "error":
                conn.execute("select 1")
                conn.execute("select 1 / 0")
                conn.execute("insert into thing(name) values ('never')")
            elif way == "raised":
                conn.execute("insert into thing(name) values ('never')")
                raise LookupError("in the middle")
            elif way in ("block", "block-error"):
                with conn.transaction():
                    conn.execute("select 1")
                    if way == "block-error":
                        conn.execute("select 1 / 0")
            elif way == "commit":
                conn.execute("update thing set amount = amount")
                conn.commit()
                conn.execute("select 1")
            elif way == "rollback":
                conn.execute("update thing set amount = 0")
                conn.rollback()
                conn.execute("select 1")
            elif way == "nested":
                with conn.pipeline():
                    conn.execute("select 1")
                with conn.transaction(), conn.transaction():
                    conn.execute("select 2")
            else:
                conn.cursor().executemany("update thing set amount = %s where id = 1", [[1], [2]])

    tried(diary, conn, work)
    tried(diary, conn, conn.rollback)
    tried(diary, conn, lambda: conn.execute("select count(*) from thing where name = 'never'").fetchone())
    tried(diary, conn, lambda: conn.execute("select amount from thing where id = 1").fetchone())


@pytest.mark.anyio
async def test_pipeline_async(diary):
    async with await psycopg.AsyncConnection.connect(DSN, autocommit=True) as conn:
        async with conn.pipeline() as pipeline:
            cur = await conn.execute("select 1")
            await pipeline.sync()
            diary.see("rows", await cur.fetchone())
            diary.state(conn)

        async def work():
            async with conn.pipeline(), conn.transaction():
                await conn.execute("select 1 / 0")

        await tried_async(diary, conn, work)


# -- transactions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    "end", ["well", "error", "statement", "rollback", "rollback-outer", "forced", "commit", "named"]
)
def test_transaction_blocks(diary, conn, autocommit, begun, end):
    conn.autocommit = autocommit
    if begun:
        conn.execute("begin" if autocommit else "select 1")

    def work():
        with conn.transaction("a" if end == "named" else None, force_rollback=end == "forced") as outer:
            diary.see("block", _plain(outer).partition("(")[2][:20], outer.savepoint_name)
            conn.execute("insert into thing(name) values ('in a block')")
            with conn.transaction() as inner:
                if end == "error":
                    raise LookupError("in the middle")
                if end == "statement":
                    conn.execute("select 1 / 0")
                if end == "rollback":
                    raise psycopg.Rollback
                if end == "rollback-outer":
                    raise psycopg.Rollback(outer)
                if end == "commit":
                    conn.commit()
            diary.see("inner", inner.status)
        diary.see("outer", outer.status)

    tried(diary, conn, work)
    tried(diary, conn, lambda: conn.execute("select count(*) from thing where name = 'in a block'").fetchone())
    conn.rollback()
    tried(diary, conn, lambda: conn.execute("delete from thing where name = 'in a block'").rowcount)
    conn.commit()


def test_out_of_order_blocks(diary, conn):
    first, second = conn.transaction(), conn.transaction()
    first.__enter__()
    second.__enter__()
    tried(diary, conn, first.__exit__, None, None, None)
    tried(diary, conn, second.__exit__, None, None, None)
    tried(diary, conn, conn.rollback)
    used = conn.transaction()
    with used:
        pass
    tried(diary, conn, used.__enter__)


def test_commit_of_a_failed_transaction(diary, conn):
    for end in (conn.commit, lambda: conn.execute("commit").statusmessage):
        conn.execute("update thing set amount = 0 where id = 2")
        tried(diary, conn, conn.execute, "select 1 / 0")
        tried(diary, conn, conn.execute, "select 1")
        tried(diary, conn, end)
    tried(diary, conn, lambda: conn.execute("select amount from thing where id = 2").fetchone())


def test_commit_that_fails(diary):
    def work():
        with psycopg.connect(DSN) as conn:
            work.conn = conn
            conn.execute("insert into late values (1), (1)")

    try:
        work()
    except psycopg.Error as error:
        diary.error(error)
    diary.state(work.conn)
    work.conn.close()
    with closing(psycopg.connect(DSN)) as conn:
        conn.execute("insert into late values (1), (1)")
        tried(diary, conn, conn.commit)
        tried(diary, conn, conn.commit)


@pytest.mark.parametrize("attribute", ["autocommit", "isolation_level", "read_only", "deferrable"])
def test_attributes(diary, conn, attribute):
    value = 4 if attribute == "isolation_level" else True
    tried(diary, conn, setattr, conn, attribute, value)
    tried(diary, conn, lambda: conn.execute("show transaction_isolation").fetchone())
    tried(diary, conn, conn.execute, "update thing set amount = amount where false")
    tried(diary, conn, setattr, conn, attribute, None)
    conn.rollback()
    tried(diary, conn, setattr, conn, attribute, None)
    diary.see("now", getattr(conn, attribute))


@pytest.mark.parametrize("end", ["commit", "rollback", "prepared-commit", "prepared-rollback", "elsewhere", "close"])
def test_two_phases(diary, conn, end):
    xid = conn.xid(7, f"features {end}", "branch")
    diary.see("xid", str(xid))
    tried(diary, conn, conn.tpc_begin, xid)
    tried(diary, conn, conn.execute, "update thing set amount = 3 where id = 3")
    for forbidden in (conn.commit, conn.rollback, lambda: conn.tpc_begin(xid)):
        tried(diary, conn, forbidden)
    if end.startswith("prepared") or end == "elsewhere":
        tried(diary, conn, conn.tpc_prepare)
        diary.see("prepared", recovered())
        tried(diary, conn, conn.cancel)
    if end == "elsewhere":
        conn.close()
        with psycopg.connect(DSN) as other:
            tried(diary, other, other.tpc_rollback, xid)
            tried(diary, other, other.tpc_rollback, xid)
    elif end != "close":
        tried(diary, conn, conn.tpc_commit if end.endswith("commit") else conn.tpc_rollback)
    conn.close()


def recovered():
    with psycopg.connect(DSN) as conn:
        return sorted((xid.gtrid, xid.bqual, xid.owner, xid.database == conn.info.dbname) for xid in conn.tpc_recover())


# -- reading row by row -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"withhold": True}, {"scrollable": True}, {"scrollable": False}])
@pytest.mark.parametrize("autocommit", [False, True])
def test_server_cursor(diary, conn, options, autocommit):
    conn.autocommit = autocommit

    def work():
        with conn.cursor("rows", **options) as cur:
            cur.execute("select generate_series(1, %s) as n", [10])
            diary.cursor(cur)
            diary.see("rows", cur.fetchone(), cur.fetchmany(2))
            cur.itersize = 3
            diary.see("rows", list(cur)[:4])
            tried(diary, conn, cur.scroll, -2)
            if options.get("withhold"):
                conn.commit()
                tried(diary, conn, cur.fetchall)

    tried(diary, conn, work)
    tried(diary, conn, conn.rollback)
    cur = conn.cursor("rows")
    tried(diary, conn, cur.execute, "update thing set amount = 1")
    tried(diary, conn, cur.executemany, "select 1", [])
    tried(diary, conn, cur.close)


@pytest.mark.anyio
async def test_server_cursor_async(diary):
    async with await psycopg.AsyncConnection.connect(DSN) as conn:
        async with conn.cursor("rows") as cur:
            await cur.execute("select generate_series(1, 10) as n")
            diary.see("rows", await cur.fetchone(), [row async for row in cur])
        diary.state(conn)


def test_stream(diary, conn):
    cur = conn.cursor()
    tried(diary, conn, lambda: list(cur.stream("select generate_series(1, 3) as n")))
    diary.cursor(cur)
    tried(diary, conn, lambda: list(cur.stream("insert into thing(name) values ('streamed') returning name")))
    conn.rollback()
    tried(diary, conn, lambda: list(cur.stream("select 1 / (3 - n) from generate_series(1, 5) n")))
    conn.rollback()
    rows = cur.stream("select generate_series(1, 100000)")
    diary.see("first", next(rows))
    diary.state(conn)
    rows.close()
    diary.state(conn)
    tried(diary, conn, lambda: list(cur.stream("update thing set amount = 1 where false")))


@pytest.mark.anyio
async def test_stream_async(diary):
    async with await psycopg.AsyncConnection.connect(DSN) as conn:
        cur = conn.cursor()
        diary.see("rows", [row async for row in cur.stream("select generate_series(1, 3)")])
        rows = cur.stream("select generate_series(1, 100000)")
        diary.see("first", await anext(rows))
        await rows.aclose()
        diary.state(conn)


# -- notifications, notices, cancelling -------------------------------------------------------------------------------


@pytest.mark.parametrize("autocommit", [False, True])
def test_notifications(diary, conn, autocommit):
    conn.autocommit = autocommit
    conn.execute("listen features")
    conn.commit()
    with psycopg.connect(DSN, autocommit=True) as other:
        for number in range(4):
            other.execute("select pg_notify('features', %s)", [str(number)])
    diary.see("generator", [(n.channel, n.payload) for n in conn.notifies(timeout=20, stop_after=4)])
    diary.state(conn)
    diary.see("none", list(conn.notifies(timeout=0)))
    heard = []
    conn.add_notify_handler(lambda notification: heard.append(notification.payload))
    with psycopg.connect(DSN, autocommit=True) as other:
        other.execute("notify features, 'handled'")
    conn.execute("select 1")
    conn.rollback()
    conn.execute("select 1")
    diary.see("handler", heard)
    diary.state(conn)


def test_notifications_that_wait_for_the_generator(diary, conn):
    conn.autocommit = True
    conn.execute("listen features")
    with psycopg.connect(DSN, autocommit=True) as other:
        other.execute("notify features, 'backlog'")
    conn.execute("select 1")
    conn.execute("select 2")
    diary.see("backlog", [n.payload for n in conn.notifies(timeout=20, stop_after=1)])
    generator = conn.notifies(timeout=20)
    with psycopg.connect(DSN, autocommit=True) as other:
        other.execute("notify features, 'once'")
    diary.see("next", next(generator).payload)
    generator.close()
    tried(diary, conn, conn.execute, "unlisten *")


@pytest.mark.anyio
async def test_notifications_async(diary):
    async with await psycopg.AsyncConnection.connect(DSN, autocommit=True) as conn:
        await conn.execute("listen features")
        await conn.execute("notify features, 'async'")
        diary.see("generator", [n.payload async for n in conn.notifies(timeout=20, stop_after=1)])
        diary.state(conn)


def test_notices(diary, conn):
    def fails(notice):
        raise LookupError("in a handler")

    handler = lambda notice: diary.see("notice", notice.severity, notice.message_primary)  # noqa: E731
    conn.add_notice_handler(fails)
    conn.add_notice_handler(handler)
    tried(diary, conn, lambda: conn.execute("select speak('a'), speak('b')").fetchall())
    conn.remove_notice_handler(handler)
    tried(diary, conn, lambda: conn.execute("select speak('c')").fetchall())
    tried(diary, conn, conn.remove_notice_handler, handler)


@pytest.mark.parametrize("how", ["cancel", "cancel_safe"])
def test_cancel(diary, conn, how):
    timer = threading.Timer(0.2, getattr(conn, how))
    timer.start()
    tried(diary, conn, conn.execute, "select pg_sleep(30)")
    timer.join()
    tried(diary, conn, conn.rollback)
    tried(diary, conn, getattr(conn, how))


@pytest.mark.anyio
async def test_cancel_async(diary):
    async with await psycopg.AsyncConnection.connect(DSN) as conn:
        await conn.execute("select 1")
        task = asyncio.create_task(conn.execute("select pg_sleep(30)"))
        await asyncio.sleep(0.2)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError as error:
            diary.error(error)
        diary.state(conn)
        await tried_async(diary, conn, conn.rollback)

        async def work():
            async with asyncio.timeout(0.2), conn.transaction():
                await conn.execute("select pg_sleep(30)")

        await tried_async(diary, conn, work)


def test_statement_timeout(diary, conn):
    conn.execute("set statement_timeout = 100")
    conn.commit()
    tried(diary, conn, conn.execute, "select pg_sleep(30)")
    tried(diary, conn, conn.rollback)


# -- connections and pools --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["well", "error", "closed", "statement"])
def test_connection_as_a_block(diary, end):
    conn = psycopg.connect(DSN)

    def work():
        with conn as same:
            diary.see("same", same is conn)
            conn.execute("update thing set amount = 5 where id = 5")
            if end == "error":
                raise LookupError("in the middle")
            if end == "statement":
                conn.execute("select 1 / 0")
            if end == "closed":
                conn.close()

    tried(diary, conn, work)
    tried(diary, conn, conn.execute, "select 1")
    tried(diary, conn, conn.commit)
    tried(diary, conn, conn.close)


def test_terminated(diary, conn):
    with psycopg.connect(DSN, autocommit=True) as admin:
        admin.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
        tried(diary, conn, conn.execute, "select 1")
        tried(diary, conn, conn.execute, "select 1")
        tried(diary, conn, conn.rollback)
        tried(diary, conn, conn.close)


def test_connect_that_fails(diary):
    for options in ({"user": "nobody_of_that_name"}, {"dbname": "no_such_database"}, {"no_such_option": 1}):
        try:
            psycopg.connect(DSN, **options)
        except psycopg.Error as error:
            diary.see("error", type(error).__name__, "does not exist" in str(error), error.sqlstate)


@pytest.mark.parametrize("options", [{}, {"close_returns": True}, {"reset": True}, {"check": True}])
def test_pool(diary, options):
    calls = []
    if "reset" in options:
        options = {"reset": lambda conn: calls.append(conn.info.transaction_status.name)}
    if "check" in options:
        options = {"check": psycopg_pool.ConnectionPool.check_connection}
    with psycopg_pool.ConnectionPool(DSN, min_size=1, max_size=2, open=False, **options) as pool:
        with pool.connection() as conn:
            conn.execute("update thing set amount = 7 where id = 7")
        conn = pool.getconn()
        conn.execute("update thing set amount = 0 where id = 7")
        pool.putconn(conn)
        conn = pool.getconn()
        tried(diary, conn, lambda: conn.execute("select amount from thing where id = 7").fetchone())
        tried(diary, conn, conn.execute, "select 1 / 0")
        pool.putconn(conn)
        conn = pool.getconn()
        conn.close()
        if not conn.closed:
            diary.see("returned", conn._pool)
        else:
            pool.putconn(conn)
        first, second = pool.getconn(), pool.getconn()
        try:
            pool.getconn(timeout=0.05)
        except psycopg_pool.PoolTimeout as error:
            diary.see("error", error)
        for each in (first, second):
            pool.putconn(each)
        if "reset" not in options:  # else a worker takes it back, now or a moment later
            try:
                pool.putconn(first)
            except ValueError:
                diary.see("error", "given back already")
        pool.wait()
        stats = pool.get_stats()
        diary.see("stats", {name: stats.get(name, 0) for name in ("pool_max", "requests_num", "returns_bad")})
    diary.see("calls", sorted(set(calls)))
    try:
        pool.getconn()
    except psycopg_pool.PoolClosed as error:
        diary.see("error", type(error))


@pytest.mark.anyio
async def test_pool_async(diary):
    async with psycopg_pool.AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False) as pool:
        async with pool.connection() as conn:
            await conn.execute("update thing set amount = 8 where id = 8")
        conn = await pool.getconn()
        await conn.execute("update thing set amount = 0 where id = 8")
        await pool.putconn(conn)
        async with pool.connection() as conn:
            cur = await conn.execute("select amount from thing where id = 8")
            diary.see("rows", await cur.fetchone())
        stats = pool.get_stats()
        diary.see("stats", {name: stats.get(name, 0) for name in ("pool_max", "requests_num", "returns_bad")})


def test_subclasses_and_factories(diary):
    class MyCursor(psycopg.Cursor):
        def execute(self, *args, **kwargs):
            diary.see("execute", args[0])
            return super().execute(*args, **kwargs)

    class MyConnection(psycopg.Connection):
        def wait(self, gen, *args, **kwargs):
            diary.see("wait", gen.__name__)
            return super().wait(gen, *args, **kwargs)

        def commit(self):
            diary.see("commit")
            super().commit()

    with MyConnection.connect(DSN, cursor_factory=MyCursor) as conn:
        diary.see("class", type(conn).__name__, type(conn.cursor()).__name__)
        conn.execute("select 1")
        with conn.transaction():
            conn.execute("select 2")


def test_threads(diary, conn):
    def work(number):
        results.append(conn.execute("select %s::int", [number]).fetchone()[0])

    results = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    diary.see("results", sorted(results))
