"""A plain dependency returns a sync connection; the path operation that gets it closes it.

`with conn:` commits or rolls back, and closes. Right, as long as every path operation remembers it.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from psycopg import Connection

from demo_app.models import Visit
from demo_app.sync_queries import insert_visit, select_visits

router = APIRouter()


def get_conn(request: Request) -> Connection:
    """Open a connection; who asks for it closes it."""
    return Connection.connect(request.app.state.dsn)


Conn = Annotated[Connection, Depends(get_conn)]


@router.post("/visit/")
def create_visit(conn: Conn) -> Visit:
    """Record a visit."""
    with conn:
        return insert_visit(conn)


@router.get("/visit/")
def list_visits(conn: Conn) -> list[Visit]:
    """List the visits."""
    with conn:
        return select_visits(conn)


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits")
    app.state.dsn = dsn
    app.include_router(router)
    return app
