"""One connection for the whole application, opened and closed by the lifespan.

Missing in `create_visit`: `async with conn.transaction():`. The visit is not committed, the
connection stays idle in transaction and keeps its locks until another request happens to commit.
Twin: `demo_app.correct.connection_lifespan`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from psycopg import AsyncConnection

from demo_app.models import Visit
from demo_app.queries import insert_visit, select_visits


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one connection open while the application runs."""
    async with await AsyncConnection.connect(app.state.dsn) as conn:
        app.state.conn = conn
        yield


router = APIRouter()


async def get_conn(request: Request) -> AsyncIterator[AsyncConnection]:
    """Lend the application's connection to one request at a time."""
    async with request.app.state.lock:
        yield request.app.state.conn


Conn = Annotated[AsyncConnection, Depends(get_conn)]


@router.post("/visit/")
async def create_visit(conn: Conn) -> Visit:
    """Record a visit."""
    return await insert_visit(conn)


@router.get("/visit/")
async def list_visits(conn: Conn) -> list[Visit]:
    """List the visits."""
    async with conn.transaction():
        return await select_visits(conn)


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits", lifespan=lifespan)
    app.state.dsn = dsn
    app.state.lock = asyncio.Lock()
    app.include_router(router)
    return app
