"""A dependency yields a connection and closes it after the `yield`.

Missing in `get_conn`: `try:` and `finally:` around the `yield`. What a path operation raises,
even a 404, is raised again at the `yield`, and `await conn.close()` is never reached.
Twin: `demo_app.correct.dependency_yield_by_hand`.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from psycopg import AsyncConnection

from demo_app.models import Visit
from demo_app.queries import insert_visit, select_visit, select_visits

router = APIRouter()


async def get_conn(request: Request) -> AsyncIterator[AsyncConnection]:
    """Open a connection for one request."""
    conn = await AsyncConnection.connect(request.app.state.dsn)
    yield conn
    await conn.commit()
    await conn.close()


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
    app = FastAPI(title="visits")
    app.state.dsn = dsn
    app.include_router(router)
    return app
