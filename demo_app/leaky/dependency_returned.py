"""A plain dependency returns a connection, and nobody closes it.

Missing in the path operations: `async with conn:`. The visit is never committed and the connection never
closed; the answer is 200, and the garbage collector then closes the socket and the INSERT is lost.
Twin: `demo_app.correct.dependency_closing`.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from psycopg import AsyncConnection

from demo_app.models import Visit
from demo_app.queries import insert_visit, select_visits

router = APIRouter()


async def get_conn(request: Request) -> AsyncConnection:
    """Open a connection for a path operation."""
    return await AsyncConnection.connect(request.app.state.dsn)


Conn = Annotated[AsyncConnection, Depends(get_conn)]


@router.post("/visit/")
async def create_visit(conn: Conn) -> Visit:
    """Record a visit."""
    return await insert_visit(conn)


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
