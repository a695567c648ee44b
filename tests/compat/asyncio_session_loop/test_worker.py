import asyncio

import jobs


async def test_worker(pool, worker):
    await jobs.add(pool, "one")
    await asyncio.sleep(0.1)
    assert await jobs.peek(pool) is None


async def test_still_at_work(worker):
    await asyncio.sleep(0.05)
    assert not worker.done()


async def test_forgotten(forgotten):
    cursor = await forgotten.execute("select count(*) from job")
    assert await cursor.fetchone() == (0,)


async def test_forgotten_again(forgotten):
    await forgotten.execute("select 1")
