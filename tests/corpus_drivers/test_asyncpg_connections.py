"""asyncpg: connections without a pool."""

import asyncio
import gc
import threading
import warnings

import asyncpg
import pytest

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect

KEPT = []


@expect("connection-dropped")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_dropped(dsn):
    await asyncpg.connect(dsn)


@expect("connection-dropped")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_dropped_after_use(dsn):
    conn = await asyncpg.connect(dsn)
    assert await conn.fetchval("select 1") == 1


@expect("connection-dropped")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_dropped_with_a_write_in_a_transaction(dsn):
    conn = await asyncpg.connect(dsn)
    await conn.transaction().start()
    await conn.execute("insert into item(name) values ('a')")


@expect("connection-dropped")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_dropped_in_a_cycle(dsn):
    class Holder:
        pass

    gc.disable()
    try:
        holder = Holder()
        holder.me, holder.conn = holder, await asyncpg.connect(dsn)
    finally:
        gc.enable()


@expect("connection-not-closed")
async def test_kept(dsn):
    KEPT.append(await asyncpg.connect(dsn))


@expect("connection-not-closed")
async def test_kept_with_a_transaction(dsn):
    conn = await asyncpg.connect(dsn)
    transaction = conn.transaction()
    await transaction.start()
    await conn.execute("insert into item(name) values ('a')")
    KEPT.append((conn, transaction))


async def test_closed(dsn):
    conn = await asyncpg.connect(dsn)
    await conn.execute("insert into item(name) values ('a')")
    await conn.close()


async def test_closed_with_a_timeout(dsn):
    conn = await asyncpg.connect(dsn)
    await conn.close(timeout=5)


async def test_terminated(dsn):
    conn = await asyncpg.connect(dsn)
    conn.terminate()


async def test_closed_twice(dsn):
    conn = await asyncpg.connect(dsn)
    await conn.close()
    await conn.close()
    conn.terminate()


async def test_closing(dsn):
    import contextlib

    async with contextlib.aclosing(Closing(await asyncpg.connect(dsn))) as closing:
        await closing.conn.execute("select 1")


class Closing:
    def __init__(self, conn):
        self.conn = conn

    async def aclose(self):
        await self.conn.close()


class MyConnection(asyncpg.Connection):
    """As people make it, for `connection_class=`."""

    async def hello(self):
        return await self.fetchval("select 'hello'")


@expect("connection-not-closed")
async def test_a_class_of_ones_own(dsn):
    conn = await asyncpg.connect(dsn, connection_class=MyConnection)
    assert type(conn) is MyConnection
    assert await conn.hello() == "hello"
    KEPT.append(conn)


async def test_a_class_of_ones_own_closed(dsn):
    conn = await asyncpg.connect(dsn, connection_class=MyConnection)
    assert await conn.hello() == "hello"
    await conn.close()


class WeighedConnection(asyncpg.Connection):
    """Comparable, and for that reason not hashable."""

    def __eq__(self, other):
        return self is other

    __hash__ = None


async def test_a_class_without_a_hash(dsn):
    conn = await asyncpg.connect(dsn, connection_class=WeighedConnection)
    async with conn.transaction():
        await conn.execute("insert into item(name) values ('a')")
        with pytest.raises(asyncpg.CheckViolationError):
            async with conn.transaction():
                await conn.execute("insert into item(name) values ('refused')")
    await conn.close()


async def test_refused(dsn):
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.connect(dsn, user="nobody_knows_this_role")


async def test_several_hosts_one_refused(dsn):
    with pytest.raises(OSError):
        await asyncpg.connect(
            host=["127.0.0.1", "127.0.0.1"], port=[1, 1], user="x", database="x", password="x", ssl=False
        )


def test_cancelled_while_connecting(dsn):
    async def work():
        task = asyncio.create_task(asyncpg.connect(dsn))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())  # in AnyIO's loop asyncpg 0.31 and before raise an error that nobody awaits


async def test_many(dsn):
    for _ in range(10):
        conn = await asyncpg.connect(dsn)
        await conn.close()


async def test_many_at_once(dsn):
    conns = await asyncio.gather(*(asyncpg.connect(dsn) for _ in range(5)))
    await asyncio.gather(*(conn.close() for conn in conns))


@expect("connection-not-closed")
async def test_one_of_many_at_once(dsn):
    conns = await asyncio.gather(*(asyncpg.connect(dsn) for _ in range(3)))
    await asyncio.gather(*(conn.close() for conn in conns[1:]))
    KEPT.append(conns[0])


async def test_ended_by_the_server_and_noticed(dsn):
    admin = await asyncpg.connect(dsn)
    conn = await asyncpg.connect(dsn)
    await admin.execute("select pg_terminate_backend($1)", conn.get_server_pid())
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        for _ in range(10):
            await conn.execute("select 1")
    await admin.close()


@expect("connection-not-closed")
async def test_a_task_goes_on(dsn):
    async def work():
        conn = await asyncpg.connect(dsn)
        try:
            await asyncio.Event().wait()
        finally:
            await conn.close()

    KEPT.append(asyncio.create_task(work()))
    await asyncio.sleep(0.1)


async def test_a_task_ends_during_settling(dsn):
    async def work():
        conn = await asyncpg.connect(dsn)
        try:
            await conn.execute("select pg_sleep(0.1)")
        finally:
            await conn.close()

    KEPT.append(asyncio.create_task(work()))
    await asyncio.sleep(0.05)


@expect("connection-not-closed")
async def test_a_cancellation_skips_the_close(dsn):
    async def work():
        conn = await asyncpg.connect(dsn)
        KEPT.append(conn)
        await conn.execute("select pg_sleep(10)")
        await conn.close()

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(work(), 0.5)


async def test_a_cancellation_with_finally(dsn):
    async def work():
        conn = await asyncpg.connect(dsn)
        try:
            await conn.execute("select pg_sleep(10)")
        finally:
            await conn.close()

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(work(), 0.5)


async def test_a_statement_that_times_out(dsn):
    conn = await asyncpg.connect(dsn)
    with pytest.raises(asyncio.TimeoutError):
        await conn.execute("select pg_sleep(10)", timeout=0.1)
    assert await conn.fetchval("select 1") == 1
    await conn.close()


def test_a_loop_of_its_own(dsn):
    async def work():
        conn = await asyncpg.connect(dsn)
        await conn.execute("select 1")
        await conn.close()

    asyncio.run(work())


@expect("connection-not-closed")
def test_a_loop_of_its_own_that_is_closed_before_the_connection(dsn):
    async def work():
        KEPT.append(await asyncpg.connect(dsn))

    asyncio.run(work())


@expect("connection-not-closed")
def test_a_loop_in_a_thread(dsn):
    def run():
        async def work():
            KEPT.append(await asyncpg.connect(dsn))

        asyncio.run(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


async def test_a_listener_removed(dsn):
    conn = await asyncpg.connect(dsn)
    seen = []

    def heard(*args):
        seen.append(args[-1])

    await conn.add_listener("news", heard)
    await conn.execute("notify news, 'a'")
    await conn.remove_listener("news", heard)
    await conn.close()
    assert seen == ["a"]


@expect("connection-not-closed")
async def test_what_a_listener_opens_is_the_tests(dsn):
    conn = await asyncpg.connect(dsn)

    async def heard(*_):
        KEPT.append(await asyncpg.connect(dsn))

    await conn.add_listener("news", heard)
    await conn.execute("notify news, 'a'")
    while not KEPT or not isinstance(KEPT[-1], asyncpg.Connection) or KEPT[-1].is_closed():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    await conn.remove_listener("news", heard)
    await conn.close()


async def test_termination_listener(dsn):
    conn = await asyncpg.connect(dsn)
    seen = []
    conn.add_termination_listener(seen.append)
    await conn.close()
    await asyncio.sleep(0)
    assert seen == [conn]


@pytest.mark.pgleak(allow=["connection-not-closed"])
async def test_allowed(dsn):
    KEPT.append(await asyncpg.connect(dsn))


async def test_a_resource_warning_as_ever(dsn):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        conn = await asyncpg.connect(dsn)
        await conn.close()
        del conn
        gc.collect()
    assert not [each for each in seen if issubclass(each.category, ResourceWarning)]


@pytest.fixture
async def conn_of_a_fixture(dsn):
    conn = await asyncpg.connect(dsn)
    yield conn
    await conn.close()


async def test_fixture(conn_of_a_fixture):
    await conn_of_a_fixture.execute("insert into item(name) values ('a')")


@pytest.fixture
async def leaking_fixture(dsn):
    conn = await asyncpg.connect(dsn)
    KEPT.append(conn)
    yield conn


@expect("connection-not-closed")
async def test_leaking_fixture(leaking_fixture):
    await leaking_fixture.execute("select 1")


@pytest.fixture
async def connect(dsn):
    conns = []

    async def connect():
        conns.append(await asyncpg.connect(dsn))
        return conns[-1]

    yield connect
    for conn in conns:
        await conn.close()


async def test_factory_fixture(connect):
    await (await connect()).execute("select 1")
    await (await connect()).execute("select 1")
