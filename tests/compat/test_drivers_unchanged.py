"""What asyncpg and psycopg2 are and do is the same with the patches as without them; afterwards they are as before."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import inspect
import pickle
import re
import traceback
import warnings
import weakref

import pytest

from pytest_pgleak.background import Background
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.tasks import EventLoops
from pytest_pgleak.tracking import Tracker

REASON = "is not installed; make compat runs this where it is"
asyncpg = pytest.importorskip("asyncpg", reason=f"asyncpg {REASON}")
pytest.importorskip("psycopg2", reason=f"psycopg2 {REASON}")

import psycopg2  # noqa: E402 - after the question whether it is there
import psycopg2.extensions  # noqa: E402
import psycopg2.extras  # noqa: E402
import psycopg2.pool  # noqa: E402

from pytest_pgleak.libraries.asyncpg import asyncpg_patches  # noqa: E402
from pytest_pgleak.libraries.psycopg2 import connection_patches  # noqa: E402
from pytest_pgleak.libraries.psycopg2_pools import pool_patches  # noqa: E402
from pytest_pgleak.plugin import get_state  # noqa: E402

ASYNCPG_CLASSES = (
    asyncpg.connection.Connection,
    asyncpg.pool.Pool,
    asyncpg.pool.PoolConnectionHolder,
    asyncpg.pool.PoolConnectionProxy,
    asyncpg.pool.PoolAcquireContext,
    asyncpg.prepared_stmt.PreparedStatement,
    asyncpg.cursor.BaseCursor,
    asyncpg.cursor.Cursor,
    asyncpg.cursor.CursorIterator,
    asyncpg.transaction.Transaction,
)


class MyConnection(psycopg2.extensions.connection):
    """Somebody's own."""


class MyCursor(psycopg2.extensions.cursor):
    """Somebody's own."""


PSYCOPG2_PLACES = (
    psycopg2,
    psycopg2.pool.AbstractConnectionPool,
    psycopg2.pool.SimpleConnectionPool,
    psycopg2.pool.ThreadedConnectionPool,
    psycopg2.extras.RealDictConnection,
    psycopg2.extras.RealDictCursor,
    psycopg2.extras.DictCursorBase,
    MyConnection,
    MyCursor,
)


@pytest.fixture(autouse=True, scope="module")
def _without_the_plugin_of_this_run(pytestconfig):
    patches = get_state(pytestconfig)._patches
    for patch in reversed(patches):
        patch.off()
    yield
    for patch in patches:
        patch.on()


def attributes(places):
    return {(place, name): value for place in places for name, value in vars(place).items()}


@contextlib.contextmanager
def watched(checking=True):
    faults = []
    watching = Tracker(
        Ledger().record,
        Ownership(Background(EventLoops())),
        lambda *_: None,
        lambda: checking,
        lambda where: faults.append(f"{where}: {traceback.format_exc()}"),
    )
    patches = [
        asyncpg_patches(asyncpg, watching),
        connection_patches(psycopg2, watching),
        pool_patches(psycopg2.pool, watching),
    ]
    for patch in patches:
        patch.on()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.off()
    assert faults == []


def same(action):
    """Do something without the patches and with them; addresses and the like may differ."""
    seen = []
    for surroundings in (contextlib.nullcontext(), watched(), watched(checking=False)):
        with surroundings:
            seen.append(readable(action()))
    plain, checked, unchecked = seen
    assert checked == plain
    assert unchecked == plain
    return plain


def readable(value):
    return re.sub(r"0x[0-9a-f]+|pid \d+|line \d+", "…", repr(value))


def outcome(action):
    try:
        return action()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it has to be the same
        return type(error), str(error)


async def outcome_of(awaitable):
    try:
        return await awaitable
    except BaseException as error:  # noqa: BLE001 - as above
        return (
            type(error),
            str(error),
            [frame.name for frame in traceback.extract_tb(error.__traceback__) if own(frame)],
        )


def own(frame):
    return "pytest_pgleak" not in frame.filename


# asyncpg.


def test_asyncpg_is_as_before():
    before = attributes(ASYNCPG_CLASSES)
    with watched():
        assert attributes(ASYNCPG_CLASSES) != before
    assert attributes(ASYNCPG_CLASSES) == before


def test_coroutine_functions_stay_what_they_are():
    def kinds():
        return {
            (place.__name__, name): (
                inspect.iscoroutinefunction(value),
                inspect.isfunction(value),
                str(inspect.signature(value)),
                value.__qualname__,
                value.__doc__,
                value.__module__,
            )
            for (place, name), value in sorted(attributes(ASYNCPG_CLASSES).items(), key=lambda item: str(item[0]))
            if inspect.isfunction(value)
        }

    before = kinds()
    assert any(is_coroutine for is_coroutine, *_ in before.values())
    with watched():
        assert kinds() == before


def test_objects_of_asyncpg(server_dsn):
    class Mine(asyncpg.Connection):
        made = 0

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            type(self).made += 1

    async def look():
        conn = await asyncpg.connect(server_dsn)
        mine = await asyncpg.connect(server_dsn, connection_class=Mine)
        seen = [
            *(type(each) in (asyncpg.Connection, Mine) for each in (conn, mine)),
            *(isinstance(each, asyncpg.Connection) for each in (conn, mine)),
            repr(conn),
            weakref.ref(conn)() is conn,
            outcome(lambda: pickle.dumps(conn)),
            outcome(lambda: setattr(conn, "label", 1)),
            sorted(name for name in dir(conn)),
            conn.is_closed(),
            hash(conn) == hash(conn),
        ]
        await mine.close()
        await conn.close()
        async with asyncpg.create_pool(server_dsn, min_size=1, max_size=2) as pool:
            async with pool.acquire() as proxy:
                seen += [
                    repr(proxy),
                    isinstance(proxy, asyncpg.Connection),
                    type(proxy) is asyncpg.pool.PoolConnectionProxy,
                    await proxy.fetchval("select 1"),
                    outcome(lambda: proxy.no_such_thing),
                    proxy.is_in_transaction(),
                ]
            seen += [repr(proxy), await outcome_of(call_later(proxy))]
            seen += [sorted(name for name in dir(pool)), pool.get_size(), pool.get_idle_size()]
        return [*seen, pool.is_closing(), conn.is_closed()]

    async def call_later(proxy):
        return await proxy.execute("select 1")

    same(lambda: asyncio.run(look()))


def test_errors_of_asyncpg(server_dsn):
    async def fail():
        conn = await asyncpg.connect(server_dsn)
        seen = [
            await outcome_of(conn.execute("select 1/0")),
            await outcome_of(conn.fetch("select $1::int", "no number")),
            await outcome_of(conn.execute("nonsense")),
            await outcome_of(conn.execute("select 1", 2)),
            await outcome_of(conn.prepare("nonsense")),
            await outcome_of(conn.copy_records_to_table("no_such_table", records=[])),
            await outcome_of(conn.copy_from_query("nonsense", output=bytes)),
            await outcome_of(conn.execute("select pg_sleep(5)", timeout=0.05)),
            await outcome_of(conn.fetchval("select 1")),
        ]
        seen += [outcome(conn.execute), outcome(conn.copy_records_to_table)]
        await conn.close()
        seen += [
            await outcome_of(conn.execute("select 1")),
            await outcome_of(asyncpg.connect(server_dsn, database="no_such_database")),
            await outcome_of(asyncpg.create_pool(server_dsn, database="no_such_database", min_size=1)),
        ]
        async with asyncpg.create_pool(server_dsn, min_size=1, max_size=1) as pool:
            seen += [
                await outcome_of(pool.release(None)),
                outcome(pool.release),
                await outcome_of(pool.execute("nonsense")),
            ]
            async with pool.acquire():
                seen.append(await outcome_of(pool.acquire(timeout=0.05)))
        seen += [await outcome_of(pool.fetch("select 1")), outcome(pool.terminate)]
        return seen

    same(lambda: asyncio.run(fail()))


@pytest.mark.parametrize("debug", [False, True])
def test_the_warning_of_a_connection_that_is_dropped(server_dsn, debug):
    async def drop():
        await asyncpg.connect(server_dsn)
        gc.collect()

    def told():
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            asyncio.run(drop(), debug=debug)
            gc.collect()
        return [(each.category, str(each.message)) for each in seen]

    warned = same(told)
    assert "ResourceWarning" in warned
    assert ("created at" in warned) is debug


def test_work_of_asyncpg_in_debug_mode(server_dsn):
    async def work():
        async with asyncpg.create_pool(server_dsn, min_size=1, max_size=2) as pool:
            async with pool.acquire() as conn, conn.transaction():
                cursor = conn.cursor("select * from generate_series(1, 3)")
                rows = [tuple(row) async for row in cursor]
            return rows, await pool.fetchval("select 2")

    same(lambda: asyncio.run(work(), debug=True))


def test_no_reference_is_kept_to_what_asyncpg_makes(server_dsn):
    async def make():
        conn = await asyncpg.connect(server_dsn)
        await conn.execute("begin")
        with contextlib.suppress(asyncpg.PostgresError):
            await conn.execute("select 1/0")
        await conn.close()
        pool = await asyncpg.create_pool(server_dsn, min_size=1, max_size=2)
        await pool.fetch("select 1")
        await pool.close()
        return weakref.ref(conn), weakref.ref(pool._queue)

    with watched():
        references = asyncio.run(make())
        gc.collect()
        assert [reference() for reference in references] == [None, None]


# psycopg2.


def test_psycopg2_is_as_before(server_dsn):
    before = attributes(PSYCOPG2_PLACES)
    with watched():
        for factory in (None, MyConnection, psycopg2.extras.RealDictConnection):
            conn = psycopg2.connect(server_dsn, connection_factory=factory)
            for cursor_factory in (None, MyCursor, psycopg2.extras.RealDictCursor):
                conn.cursor(cursor_factory=cursor_factory).execute("select 1")
            conn.close()
        assert attributes(PSYCOPG2_PLACES) != before
    assert attributes(PSYCOPG2_PLACES) == before


def test_a_connection_that_outlives_the_session(server_dsn):
    with watched():
        conn = psycopg2.connect(server_dsn)
        mine = psycopg2.connect(server_dsn, connection_factory=MyConnection)
    for each in (conn, mine):
        with each, each.cursor() as cursor:
            cursor.execute("select 1")
            assert cursor.fetchone() == (1,)
        each.close()


FACTORIES = [None, psycopg2.extensions.connection, MyConnection, psycopg2.extras.DictConnection]
CURSOR_FACTORIES = [None, psycopg2.extensions.cursor, MyCursor, psycopg2.extras.NamedTupleCursor]


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("cursor_factory", CURSOR_FACTORIES)
def test_objects_of_psycopg2(server_dsn, factory, cursor_factory):
    def look():
        conn = psycopg2.connect(server_dsn, connection_factory=factory, cursor_factory=cursor_factory)
        cursor = conn.cursor()
        seen = [conn.cursor_factory]
        for thing in (conn, cursor):
            seen += [
                thing.__class__,
                type(thing).__name__,
                type(thing).__module__,
                type(thing).__qualname__,
                str(type(thing)),
                repr(thing),
                sorted(name for name in dir(thing) if not name.startswith("__")),
                hasattr(thing, "__dict__"),
                weakref.ref(thing)() is thing,
                hash(thing) == hash(thing),
                outcome(lambda thing=thing: pickle.dumps(thing, 0)),
                outcome(lambda thing=thing: copy.deepcopy(thing))[0],
                outcome(lambda thing=thing: setattr(thing, "no_such_thing", 1)) is None,
                thing.__doc__,
            ]
        if factory in (MyConnection, psycopg2.extras.DictConnection):
            seen.append(type(conn))
        if cursor_factory in (MyCursor, psycopg2.extras.NamedTupleCursor):
            seen.append(type(cursor))
        conn.close()
        return seen

    same(look)


def test_errors_of_psycopg2(server_dsn):
    def fail():
        conn = psycopg2.connect(server_dsn)
        cursor = conn.cursor()
        seen = [
            outcome(lambda: cursor.execute("select 1/0")),
            outcome(lambda: cursor.execute("select 1")),
            outcome(conn.rollback),
            outcome(lambda: cursor.execute("select %s", [])),
            outcome(cursor.execute),
            outcome(lambda: cursor.execute("select 1", 1, 2, 3)),
            outcome(lambda: cursor.executemany("select 1", 1)),
            outcome(lambda: cursor.callproc("no_such_function")),
            outcome(conn.rollback),
            outcome(lambda: cursor.copy_expert("nonsense", None)),
            outcome(lambda: conn.cursor("a", "b", "c", "d", "e")),
            outcome(lambda: conn.cursor(cursor_factory=int)),
            outcome(lambda: conn.commit(1)),
            outcome(lambda: conn.close(1)),
            outcome(lambda: conn.tpc_begin()),
            outcome(lambda: conn.tpc_commit(1, 2)),
            outcome(lambda: conn.set_isolation_level(77)),
            outcome(lambda: setattr(conn, "autocommit", True)),
            outcome(lambda: cursor.connection is conn),
        ]
        conn.close()
        seen += [
            outcome(conn.cursor),
            outcome(conn.commit),
            outcome(lambda: cursor.execute("select 1")),
            outcome(lambda: psycopg2.connect(server_dsn, dbname="no_such_database")),
            outcome(lambda: psycopg2.connect(server_dsn, connection_factory=int)),
            outcome(psycopg2.connect),
        ]
        pool = psycopg2.pool.SimpleConnectionPool(1, 1, server_dsn)
        taken = pool.getconn()
        seen += [
            outcome(pool.getconn),
            outcome(pool.putconn),
            outcome(lambda: pool.putconn(None)),
            outcome(lambda: pool.getconn(1, 2)),
            outcome(lambda: pool.putconn(taken)),
            outcome(pool.closeall),
            outcome(pool.closeall),
            outcome(lambda: psycopg2.pool.SimpleConnectionPool(1)),
        ]
        return seen

    same(fail)


def test_nobody_is_warned(server_dsn):
    def told():
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            psycopg2.connect(server_dsn)
            psycopg2.connect(server_dsn, connection_factory=MyConnection)
            gc.collect()
        return [str(each.message) for each in seen]

    assert same(told) == "[]"


def test_no_reference_is_kept_to_what_psycopg2_makes(server_dsn):
    with watched():
        conn = psycopg2.connect(server_dsn)
        cursor = conn.cursor()
        cursor.execute("select 1")
        pool = psycopg2.pool.SimpleConnectionPool(1, 1, server_dsn)
        references = [weakref.ref(each) for each in (conn, cursor, pool)]
        pool.closeall()
        del conn, cursor, pool
        assert [reference() for reference in references] == [None, None, None]


def test_classes_of_users_are_patched_once(server_dsn):
    with watched():
        for _ in range(3):
            psycopg2.connect(server_dsn, connection_factory=MyConnection).close()
        wrapper = vars(MyConnection)["close"]
        assert not hasattr(wrapper.__wrapped__, "__wrapped__")
        assert MyConnection.__subclasses__() == []
