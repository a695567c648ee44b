"""Sync path operations, which FastAPI runs in its thread pool, on a sync connection pool.

The lifespan opens and closes the pool; `pool.connection()` commits or rolls back, and gives the connection back.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from psycopg import Connection
from psycopg_pool import ConnectionPool

from demo_app.models import Visit
from demo_app.sync_queries import insert_visit, select_visits


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep a pool open while the application runs."""
    with ConnectionPool(app.state.dsn, min_size=1, max_size=4, open=False) as pool:
        app.state.pool = pool
        yield


router = APIRouter()


def get_conn(request: Request) -> Iterator[Connection]:
    """Lend a connection from the pool for one request."""
    pool: ConnectionPool = request.app.state.pool
    with pool.connection() as conn:
        yield conn


Conn = Annotated[Connection, Depends(get_conn)]


@router.post("/visit/")
def create_visit(conn: Conn) -> Visit:
    """Record a visit."""
    return insert_visit(conn)


@router.get("/visit/")
def list_visits(conn: Conn) -> list[Visit]:
    """List the visits."""
    return select_visits(conn)


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits", lifespan=lifespan)
    app.state.dsn = dsn
    app.include_router(router)
    return app
