from contextlib import asynccontextmanager

import asyncpg
import psycopg
import psycopg2
from fastapi import Depends, FastAPI, Request
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine, text

DSN = "postgresql://shop@database.invalid:5432/shop"
pool = AsyncConnectionPool(DSN, open=False)
engine = create_engine(DSN.replace("postgresql:", "postgresql+psycopg:"))


@asynccontextmanager
async def lifespan(app):
    await pool.open()
    app.state.asyncpg_pool = await asyncpg.create_pool(DSN)
    yield
    await app.state.asyncpg_pool.close()
    await pool.close()


app = FastAPI(lifespan=lifespan)


async def get_conn():
    async with pool.connection() as conn:
        yield conn


@app.get("/names")
async def names(conn=Depends(get_conn)):
    cursor = await conn.execute("select name from item")
    return [name for (name,) in await cursor.fetchall()]


@app.get("/total")
async def total(request: Request):
    async with request.app.state.asyncpg_pool.acquire() as conn:
        return await conn.fetchval("select count(*) from item")


def save(name):
    conn = psycopg.connect(DSN)
    with conn, conn.cursor() as cursor:
        cursor.execute("insert into item (name) values (%s)", [name])


def forgetful(name):
    """Were it not for the mock, this would leak."""
    conn = psycopg2.connect(DSN)
    conn.cursor().execute("insert into item (name) values (%s)", [name])
    other = ConnectionPool(DSN, min_size=1).getconn()
    other.execute("select 1")


def version():
    with engine.connect() as conn:
        return conn.execute(text("show server_version")).scalar()
