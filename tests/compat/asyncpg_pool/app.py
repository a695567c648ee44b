import asyncio
import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import Depends, FastAPI, HTTPException, Request

SCHEMA = "create table if not exists account (name text primary key, amount int check (amount >= 0))"


@asynccontextmanager
async def lifespan(app):
    pool = app.state.pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=5)
    yield
    try:
        await asyncio.wait_for(pool.close(), 0.2)
    except TimeoutError:
        pool.terminate()


app = FastAPI(lifespan=lifespan)


async def get_conn(request: Request):
    async with request.app.state.pool.acquire() as conn:
        yield conn


@app.post("/accounts/{name}", status_code=201)
async def open_account(name: str, conn=Depends(get_conn)):
    try:
        await conn.execute("insert into account values ($1, 100)", name)
    except asyncpg.UniqueViolationError:
        raise HTTPException(409) from None


@app.get("/accounts/{name}")
async def amount(name: str, conn=Depends(get_conn)):
    return await conn.fetchval("select amount from account where name = $1", name)


@app.post("/transfer/{giver}/{taker}/{amount}")
async def transfer(giver: str, taker: str, amount: int, conn=Depends(get_conn)):
    try:
        async with conn.transaction():
            await conn.execute("update account set amount = amount + $2 where name = $1", taker, amount)
            await conn.execute("update account set amount = amount - $2 where name = $1", giver, amount)
    except asyncpg.CheckViolationError:
        raise HTTPException(422) from None


@app.get("/names")
async def names(request: Request):
    async with request.app.state.pool.acquire() as conn, conn.transaction():
        return [record["name"] async for record in conn.cursor("select name from account order by name")]


@app.get("/total")
async def total(request: Request):
    conn = await request.app.state.pool.acquire()
    return await conn.fetchval("select sum(amount) from account")


@app.put("/accounts/{name}/{amount}")
async def set_amount(name: str, amount: int, request: Request):
    pool = request.app.state.pool
    conn = await pool.acquire()
    transaction = conn.transaction()
    await transaction.start()
    await conn.execute("update account set amount = $2 where name = $1", name, amount)
    # No commit.
    await pool.release(conn)


async def backup():
    """Forgets its connection."""
    conn = await asyncpg.connect(os.environ["DATABASE_URL"])
    return await conn.fetch("select * from account")


async def slow_copy(pool, seconds):
    async with pool.acquire() as conn:
        await asyncio.sleep(seconds)
        await conn.copy_records_to_table("account", records=[("copied", 1)])
