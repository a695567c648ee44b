"""Every path operation opens a connection and closes it when it has succeeded.

Missing in `read_visit`: the `finally:` around `await conn.close()`. The 404 of a visit that does
not exist jumps over the close, and the connection stays open until the garbage collector finds it.
Twin: `demo_app.correct.endpoint_try_finally`.
"""

from fastapi import APIRouter, FastAPI, HTTPException, Request
from psycopg import AsyncConnection

from demo_app.models import Visit
from demo_app.queries import insert_visit, select_visit, select_visits

router = APIRouter()


@router.post("/visit/")
async def create_visit(request: Request) -> Visit:
    """Record a visit."""
    conn = await AsyncConnection.connect(request.app.state.dsn)
    try:
        visit = await insert_visit(conn)
        await conn.commit()
    finally:
        await conn.close()
    return visit


@router.get("/visit/")
async def list_visits(request: Request) -> list[Visit]:
    """List the visits."""
    conn = await AsyncConnection.connect(request.app.state.dsn)
    try:
        visits = await select_visits(conn)
    finally:
        await conn.close()
    return visits


@router.get("/visit/{visit_id}")
async def read_visit(visit_id: int, request: Request) -> Visit:
    """Return one visit, or 404."""
    conn = await AsyncConnection.connect(request.app.state.dsn)
    visit = await select_visit(conn, visit_id)
    if visit is None:
        raise HTTPException(404)
    await conn.close()
    return visit


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits")
    app.state.dsn = dsn
    app.include_router(router)
    return app
