"""Each tenant has a schema, and a request chooses it with `search_path`.

Missing: `set local` instead of `set`. The setting stays on the connection, and whoever takes it
from the pool next reads another tenant's tables.
Twin: `demo_app.correct.search_path_local`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
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


@router.post("/visit/")
async def create_visit(conn: Conn) -> Visit:
    """Record a visit."""
    await conn.execute("set search_path to tenant_a, public")
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
