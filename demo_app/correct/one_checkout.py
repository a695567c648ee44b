"""The path operation has a connection, and hands it on to the function that it calls.

One connection a request, however deep the calls.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from demo_app.models import Visit
from demo_app.queries import insert_visit, select_visits


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep a pool open while the application runs."""
    async with AsyncConnectionPool(app.state.dsn, min_size=1, max_size=4, open=False) as pool:
        app.state.pool = pool
        yield


router = APIRouter()


async def get_conn(request: Request) -> AsyncIterator[AsyncConnection]:
    """Lend a connection from the pool for one request."""
    pool: AsyncConnectionPool = request.app.state.pool
    async with pool.connection() as conn:
        yield conn


Conn = Annotated[AsyncConnection, Depends(get_conn)]


async def count_visits(conn: AsyncConnection) -> int:
    """Count the visits."""
    return len(await select_visits(conn))


@router.post("/visit/")
async def create_visit(conn: Conn) -> Visit:
    """Record a visit."""
    if await count_visits(conn) > 1000:
        raise HTTPException(429)
    return await insert_visit(conn)


@router.get("/visit/")
async def list_visits(conn: Conn) -> list[Visit]:
    """List the visits."""
    return await select_visits(conn)


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits", lifespan=lifespan)
    app.state.dsn = dsn
    app.include_router(router)
    return app
