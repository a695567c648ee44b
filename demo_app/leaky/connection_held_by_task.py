"""A visit is forgotten after a day, by a task that outlives the request and keeps its connection.

Missing in `forget_visit`: a connection of its own, opened after the wait. The task closes the one
that it was given, but a day later: until then each visit holds a connection that does nothing.
Twin: `demo_app.correct.connection_in_task`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from psycopg import AsyncConnection

from demo_app.models import Visit
from demo_app.queries import delete_visit, insert_visit, select_visits

A_DAY = 24 * 60 * 60.0


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """End the tasks that still wait when the application shuts down."""
    app.state.tasks = set()
    yield
    for task in app.state.tasks:
        task.cancel()
    await asyncio.gather(*app.state.tasks, return_exceptions=True)


router = APIRouter()


async def forget_visit(conn: AsyncConnection, visit_id: int) -> None:
    """Delete a visit when its time has come, and close the connection."""
    async with conn:
        await asyncio.sleep(A_DAY)
        await delete_visit(conn, visit_id)


@router.post("/visit/")
async def create_visit(request: Request) -> Visit:
    """Record a visit, for a day."""
    state = request.app.state
    conn = await AsyncConnection.connect(state.dsn)
    async with conn.transaction():
        visit = await insert_visit(conn)
    state.tasks.add(asyncio.create_task(forget_visit(conn, visit.id)))
    return visit


@router.get("/visit/")
async def list_visits(request: Request) -> list[Visit]:
    """List the visits."""
    async with await AsyncConnection.connect(request.app.state.dsn) as conn:
        return await select_visits(conn)


def create_app(dsn: str) -> FastAPI:
    """Build the application on the database at `dsn`."""
    app = FastAPI(title="visits", lifespan=lifespan)
    app.state.dsn = dsn
    app.include_router(router)
    return app
