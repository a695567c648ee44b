"""A dependency opens a pool, and lends a connection of it.

Missing in `get_conn`: `async with` around the pool, which belongs in the lifespan. Each request opens
one more pool, its connection goes back to it in good order, and nobody ever closes the pool.
Twin: `demo_app.correct.pool_lifespan`.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from demo_app.models import Visit
from demo_app.queries import insert_visit, select_visits

router = APIRouter()


async def get_conn(request: Request) -> AsyncIterator[AsyncConnection]:
    """Lend a connection of a pool for one request."""
    pool = AsyncConnectionPool(request.app.state.dsn, min_size=1, max_size=4, open=False)
    await pool.open()
    async with pool.connection() as conn:
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


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits")
    app.state.dsn = dsn
    app.include_router(router)
    return app
