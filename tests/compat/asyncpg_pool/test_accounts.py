import asyncio

import asyncpg
import pytest
from app import app, backup, slow_copy


async def test_rolled_back(conn):
    await conn.execute("insert into account values ('anna', 1)")
    assert await conn.fetchval("select count(*) from account") == 1


async def test_nothing_is_left(conn):
    assert await conn.fetchval("select count(*) from account") == 0
    async with conn.transaction():
        await conn.execute("insert into account values ('anna', 1)")


async def test_error_in_a_savepoint(conn):
    with pytest.raises(asyncpg.CheckViolationError):
        async with conn.transaction():
            await conn.execute("insert into account values ('anna', -1)")
    assert await conn.fetchval("select count(*) from account") == 0


async def test_transfer(client):
    await client.post("/accounts/anna")
    await client.post("/accounts/bert")
    assert (await client.post("/accounts/bert")).status_code == 409
    assert (await client.post("/transfer/anna/bert/30")).status_code == 200
    assert (await client.post("/transfer/anna/bert/300")).status_code == 422
    assert (await client.get("/accounts/bert")).json() == 130
    assert (await client.get("/names")).json() == ["anna", "bert"]


async def test_many_at_once(client):
    answers = await asyncio.gather(*(client.post(f"/accounts/{number}") for number in range(12)))
    assert {answer.status_code for answer in answers} == {201}


async def test_total(client):
    await client.post("/accounts/anna")
    assert (await client.get("/total")).json() == 100


async def test_set_amount(client):
    await client.post("/accounts/anna")
    assert (await client.put("/accounts/anna/5")).status_code == 200


async def test_backup(client):
    assert await backup() == []


async def test_timeout(client):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slow_copy(app.state.pool, 10), 0.05)


async def test_pool(pool):
    async with pool.acquire() as one, pool.acquire() as two:
        assert await one.fetchval("select 1") + await two.fetchval("select 1") == 2
    assert await pool.fetchval("select 1") == 1
