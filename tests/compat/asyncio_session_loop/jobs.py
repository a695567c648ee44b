import asyncio

import psycopg


async def add(pool, name):
    async with pool.connection() as conn:
        await conn.execute("insert into job (name) values (%s)", [name])


async def take(pool):
    async with pool.connection() as conn:
        cursor = await conn.execute(
            "delete from job where id = (select min(id) from job) returning name",
        )
        row = await cursor.fetchone()
    return row and row[0]


async def peek(pool):
    conn = await pool.getconn()
    cursor = await conn.execute("select name from job order by id limit 1")
    row = await cursor.fetchone()
    if row is not None:
        await conn.commit()
        await pool.putconn(conn)
    return row


async def wait_for_job(dsn, ready):
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("listen job")
        ready.set()
        async for note in conn.notifies(timeout=5, stop_after=1):
            return note.payload


async def notify(pool, name):
    async with pool.connection() as conn:
        await conn.execute("select pg_notify('job', %s)", [name])


async def work_forever(pool):
    while True:
        await take(pool)
        await asyncio.sleep(0.01)
