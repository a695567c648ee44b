"""The lifespan opens a sync pool, and never closes it.

Missing in `lifespan`: `pool.close()` after the `yield` (or `with` around it). Its connections and threads
outlive the application: in production until the process ends, in a test suite one more pool with each test.
Twin: `demo_app.correct.sync_endpoints`.
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
    pool = ConnectionPool(app.state.dsn, min_size=1, max_size=4, open=False)
    pool.open()
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
