"""A dependency with `yield` opens a connection and closes it; the path operation commits.

Explicit: what is written is there before the response is sent.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from psycopg import AsyncConnection

from demo_app.models import Visit
from demo_app.queries import insert_visit, select_visits

router = APIRouter()


async def get_conn(request: Request) -> AsyncIterator[AsyncConnection]:
    """Open a connection for one request."""
    conn = await AsyncConnection.connect(request.app.state.dsn)
    try:
        yield conn
    finally:
        await conn.close()


Conn = Annotated[AsyncConnection, Depends(get_conn)]


@router.post("/visit/")
async def create_visit(conn: Conn) -> Visit:
    """Record a visit."""
    visit = await insert_visit(conn)
    await conn.commit()
    return visit


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
