import os
from contextlib import asynccontextmanager

import psycopg
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel

from shop.db import SCHEMA, get_pool, make_audit_pool


class Item(BaseModel):
    name: str
    price: int


@asynccontextmanager
async def lifespan(app):
    with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
        conn.execute(SCHEMA)
    async with make_audit_pool() as app.state.audit_pool:
        yield


app = FastAPI(lifespan=lifespan)


def get_conn():
    with get_pool().connection() as conn:
        yield conn


async def audit(request: Request):
    async with request.app.state.audit_pool.connection() as conn:
        await conn.execute("insert into audit values (%s)", [request.url.path])


@app.get("/items")
def items(conn=Depends(get_conn)):
    return [name for (name,) in conn.execute("select name from item order by name")]


@app.post("/items", status_code=201, dependencies=[Depends(audit)])
def add_item(item: Item, conn=Depends(get_conn)):
    try:
        conn.execute("insert into item (name, price) values (%s, %s)", [item.name, item.price])
    except psycopg.errors.UniqueViolation:
        raise HTTPException(409) from None


@app.get("/items/{name}")
def one_item(name: str, conn=Depends(get_conn)):
    row = conn.execute("select price from item where name = %s", [name]).fetchone()
    if row is None:
        raise HTTPException(404)
    return row[0]


def count_visit(name):
    with get_pool().connection() as conn:
        conn.execute("insert into audit values (%s)", [name])


@app.get("/visit/{name}")
async def visit(name: str, tasks: BackgroundTasks):
    tasks.add_task(count_visit, name)


@app.put("/items/{name}")
def change_price(name: str, price: int):
    pool = get_pool()
    conn = pool.getconn()
    # No commit: putconn() rolls back.
    conn.execute("update item set price = %s where name = %s", [price, name])
    pool.putconn(conn)


@app.get("/report")
def report():
    conn = get_pool().getconn()
    total = conn.execute("select coalesce(sum(price), 0) from item").fetchone()[0]
    if not total:
        return "nothing to report"
    get_pool().putconn(conn)
    return total


@app.post("/import")
async def import_items(item: Item):
    conn = await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"])
    await conn.execute("insert into item (name, price) values (%s, %s)", [item.name, item.price])
