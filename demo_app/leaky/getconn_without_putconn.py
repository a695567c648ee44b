"""A dependency takes a connection from the pool with `getconn()`.

Missing in `get_conn`: `await pool.putconn(conn)`. Every request commits, answers 200 and costs
the pool a slot, for ever; after `max_size` of them all requests wait and fail with `PoolTimeout`.
Twin: `demo_app.correct.pool_getconn_putconn`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from demo_app.models import Visit
from demo_app.queries import insert_visit, select_visit, select_visits


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep a pool open while the application runs."""
    async with AsyncConnectionPool(app.state.dsn, min_size=1, max_size=4, open=False) as pool:
        app.state.pool = pool
        yield


router = APIRouter()


async def get_conn(request: Request) -> AsyncIterator[AsyncConnection]:
    """Take a connection from the pool for one request."""
    pool: AsyncConnectionPool = request.app.state.pool
    conn = await pool.getconn()
    async with conn.transaction():
        yield conn


Conn = Annotated[AsyncConnection, Depends(get_conn)]


@router.post("/visit/")
async def create_visit(conn: Conn) -> Visit:
    """Record a visit."""
    return await insert_visit(conn)


@router.get("/visit/")
async def list_visits(conn: Conn) -> list[Visit]:
    """List the visits."""
    return await select_visits(conn)


@router.get("/visit/{visit_id}")
async def read_visit(visit_id: int, conn: Conn) -> Visit:
    """Return one visit, or 404."""
    visit = await select_visit(conn, visit_id)
    if visit is None:
        raise HTTPException(404)
    return visit


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits", lifespan=lifespan)
    app.state.dsn = dsn
    app.include_router(router)
    return app
