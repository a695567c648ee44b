"""Every path operation opens a connection; the last one closes it by hand, after an early return.

Missing in `read_visit`: the `async with` around the connection. The `return` for a
visit that does not exist comes before `await conn.close()`, so that a 404 never closes.
Twin: `demo_app.correct.endpoint_context_manager`.
"""

from fastapi import APIRouter, FastAPI, Request, Response
from psycopg import AsyncConnection

from demo_app.models import Visit
from demo_app.queries import insert_visit, select_visit, select_visits

router = APIRouter()


@router.post("/visit/")
async def create_visit(request: Request) -> Visit:
    """Record a visit."""
    async with await AsyncConnection.connect(request.app.state.dsn) as conn:
        return await insert_visit(conn)


@router.get("/visit/")
async def list_visits(request: Request) -> list[Visit]:
    """List the visits."""
    async with await AsyncConnection.connect(request.app.state.dsn) as conn:
        return await select_visits(conn)


@router.get("/visit/{visit_id}", response_model=Visit)
async def read_visit(visit_id: int, request: Request) -> Visit | Response:
    """Return one visit, or 404."""
    conn = await AsyncConnection.connect(request.app.state.dsn)
    visit = await select_visit(conn, visit_id)
    if visit is None:
        return Response(status_code=404)
    await conn.close()
    return visit


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits")
    app.state.dsn = dsn
    app.include_router(router)
    return app
