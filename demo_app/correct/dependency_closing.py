"""A plain dependency returns a connection; the path operation that gets it closes it.

`async with conn:` commits or rolls back, and closes. Right, as long as every path operation remembers it.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from psycopg import AsyncConnection

from demo_app.models import Visit
from demo_app.queries import insert_visit, select_visits

router = APIRouter()


async def get_conn(request: Request) -> AsyncConnection:
    """Open a connection; who asks for it closes it."""
    return await AsyncConnection.connect(request.app.state.dsn)


Conn = Annotated[AsyncConnection, Depends(get_conn)]


@router.post("/visit/")
async def create_visit(conn: Conn) -> Visit:
    """Record a visit."""
    async with conn:
        return await insert_visit(conn)


@router.get("/visit/")
async def list_visits(conn: Conn) -> list[Visit]:
    """List the visits."""
    async with conn:
        return await select_visits(conn)


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits")
    app.state.dsn = dsn
    app.include_router(router)
    return app
