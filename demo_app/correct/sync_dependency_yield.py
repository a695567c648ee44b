"""A dependency yields a sync connection and commits, rolls back and closes by hand.

What the path operation raises arrives at the `yield`; the `finally` closes in any case.
"""

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from psycopg import Connection

from demo_app.models import Visit
from demo_app.sync_queries import insert_visit, select_visit, select_visits

router = APIRouter()


def get_conn(request: Request) -> Iterator[Connection]:
    """Open a connection for one request."""
    conn = Connection.connect(request.app.state.dsn)
    try:
        yield conn
    except Exception:
        conn.rollback()
        raise
    else:
        conn.commit()
    finally:
        conn.close()


Conn = Annotated[Connection, Depends(get_conn)]


@router.post("/visit/")
def create_visit(conn: Conn) -> Visit:
    """Record a visit."""
    return insert_visit(conn)


@router.get("/visit/")
def list_visits(conn: Conn) -> list[Visit]:
    """List the visits."""
    return select_visits(conn)


@router.get("/visit/{visit_id}")
def read_visit(visit_id: int, conn: Conn) -> Visit:
    """Return one visit, or 404."""
    visit = select_visit(conn, visit_id)
    if visit is None:
        raise HTTPException(404)
    return visit


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits")
    app.state.dsn = dsn
    app.include_router(router)
    return app
