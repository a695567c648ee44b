import asyncio
import contextlib
import os
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, HTTPException, Request
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

SCHEMA = """
create table if not exists ticket (id int primary key generated always as identity, title text not null, done bool);
"""


async def clean_up(pool):
    """Works in the background as long as the application runs."""
    while True:
        async with pool.connection() as conn:
            await conn.execute("delete from ticket where done")
        await asyncio.sleep(0.05)


@asynccontextmanager
async def lifespan(app):
    async with AsyncConnectionPool(
        os.environ["DATABASE_URL"], min_size=2, max_size=5, open=False, kwargs={"row_factory": dict_row}, timeout=5
    ) as pool:
        async with pool.connection() as conn:
            await conn.execute(SCHEMA)
        app.state.pool = pool
        task = asyncio.create_task(clean_up(pool))
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


app = FastAPI(lifespan=lifespan)


async def get_conn(request: Request):
    async with request.app.state.pool.connection() as conn:
        yield conn


async def current_user(request: Request):
    # On a connection of its own, before the endpoint takes one.
    async with request.app.state.pool.connection() as conn:
        cursor = await conn.execute("select 'lem' as name")
        return (await cursor.fetchone())["name"]


@app.post("/tickets/{title}", status_code=201)
async def add(title: str, user=Depends(current_user), conn=Depends(get_conn)):
    cursor = await conn.execute("insert into ticket (title) values (%s) returning id", [title])
    return (await cursor.fetchone())["id"]


@app.get("/tickets/{number}")
async def one(number: int, conn=Depends(get_conn)):
    cursor = await conn.execute("select title from ticket where id = %s", [number])
    if (row := await cursor.fetchone()) is None:
        raise HTTPException(404)
    return row["title"]


@app.put("/tickets/{number}/done")
async def done(number: int, conn=Depends(get_conn)):
    async with conn.transaction():
        await conn.execute("update ticket set done = true where id = %s", [number])


@app.get("/tickets/{number}/copy")
async def copy(number: int, request: Request, conn=Depends(get_conn)):
    cursor = await conn.execute("select title from ticket where id = %s", [number])
    row = await cursor.fetchone()
    async with request.app.state.pool.connection() as second:
        cursor = await second.execute("insert into ticket (title) values (%s) returning id", [row["title"]])
        return (await cursor.fetchone())["id"]


@app.get("/search")
async def search(title: str, request: Request):
    conn = await request.app.state.pool.getconn()
    cursor = await conn.execute("select id from ticket where title = %s", [title])
    row = await cursor.fetchone()
    if row is None:
        raise HTTPException(404)
    await conn.commit()
    await request.app.state.pool.putconn(conn)
    return row["id"]


@app.put("/timeout")
async def timeout(request: Request, conn=Depends(get_conn)):
    await conn.execute("set statement_timeout = '10s'")
