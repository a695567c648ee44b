"""Every path operation opens a connection in `async with`, which commits or rolls back, and closes.

However the path operation is left, by an early return too, the context manager sees to the rest.
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
    async with await AsyncConnection.connect(request.app.state.dsn) as conn:
        visit = await select_visit(conn, visit_id)
        if visit is None:
            return Response(status_code=404)
    return visit


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits")
    app.state.dsn = dsn
    app.include_router(router)
    return app
