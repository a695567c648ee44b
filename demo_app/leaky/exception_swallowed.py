"""A mail is sent inside the transaction that records the visit, and its failure is only logged.

The exception leaves the `conn.transaction()` block before it is caught: the block rolls back. The
answer is 200, with an id, and there is no such visit.
Twin: `demo_app.correct.exception_after_commit`.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from demo_app.models import Visit
from demo_app.queries import insert_visit, select_visits

logger = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep a pool open while the application runs."""
    async with AsyncConnectionPool(app.state.dsn, min_size=1, max_size=4, open=False) as pool:
        app.state.pool = pool
        yield


router = APIRouter()


async def get_conn(request: Request) -> AsyncIterator[AsyncConnection]:
    """Lend a connection from the pool for one request."""
    pool: AsyncConnectionPool = request.app.state.pool
    async with pool.connection() as conn:
        yield conn


Conn = Annotated[AsyncConnection, Depends(get_conn)]


class MailError(Exception):
    """The mail could not be sent."""


async def send_mail(visit: Visit) -> None:
    """Tell somebody of a visit. The mail server is down today."""
    raise MailError(visit.id)


@router.post("/visit/")
async def create_visit(conn: Conn) -> Visit:
    """Record a visit."""
    try:
        async with conn.transaction():
            visit = await insert_visit(conn)
            await send_mail(visit)
    except MailError:
        logger.info("no mail today")
    return visit


@router.get("/visit/")
async def list_visits(conn: Conn) -> list[Visit]:
    """List the visits."""
    return await select_visits(conn)


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits", lifespan=lifespan)
    app.state.dsn = dsn
    app.include_router(router)
    return app
