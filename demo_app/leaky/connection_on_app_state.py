"""One connection for the whole application, opened by the first request and kept on `app.state`.

Missing: a lifespan that closes it with `await app.state.conn.close()`. The connection of the
first request stays open for as long as the application object lives.
Twin: `demo_app.correct.connection_lifespan`.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from psycopg import AsyncConnection

from demo_app.models import Visit
from demo_app.queries import insert_visit, select_visits

router = APIRouter()


async def get_conn(request: Request) -> AsyncIterator[AsyncConnection]:
    """Lend the application's connection to one request at a time; the first request opens it."""
    state = request.app.state
    async with state.lock:
        if not hasattr(state, "conn"):
            state.conn = await AsyncConnection.connect(state.dsn)
        yield state.conn


Conn = Annotated[AsyncConnection, Depends(get_conn)]


@router.post("/visit/")
async def create_visit(conn: Conn) -> Visit:
    """Record a visit."""
    async with conn.transaction():
        return await insert_visit(conn)


@router.get("/visit/")
async def list_visits(conn: Conn) -> list[Visit]:
    """List the visits."""
    async with conn.transaction():
        return await select_visits(conn)


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits")
    app.state.dsn = dsn
    app.state.lock = asyncio.Lock()
    app.include_router(router)
    return app
