import asyncio

import jobs


async def test_add_and_take(pool):
    await jobs.add(pool, "one")
    assert await jobs.take(pool) == "one"
    assert await jobs.take(pool) is None


async def test_many(pool):
    await asyncio.gather(*(jobs.add(pool, str(number)) for number in range(12)))
    assert len({await jobs.take(pool) for _ in range(12)}) == 12


async def test_isolated(isolated):
    await isolated.execute("insert into job (name) values ('one')")


async def test_isolated_from_it(isolated):
    cursor = await isolated.execute("select count(*) from job")
    assert await cursor.fetchone() == (0,)


async def test_listen(pool, dsn):
    ready = asyncio.Event()
    task = asyncio.create_task(jobs.wait_for_job(dsn, ready))
    await ready.wait()
    await jobs.notify(pool, "one")
    assert await task == "one"


def test_not_asynchronous(dsn):
    assert dsn


async def test_uncommitted(conn):
    await conn.execute("insert into job (name) values ('one')")


async def test_rolled_back(conn):
    await conn.rollback()


async def test_peek(pool):
    await jobs.add(pool, "one")
    assert await jobs.peek(pool) == ("one",)


async def test_peek_at_nothing(pool):
    assert await jobs.peek(pool) is None


async def test_unfinished(pool):
    task = asyncio.create_task(jobs.add(pool, "one"))
    await asyncio.sleep(0)
    assert not task.done()
