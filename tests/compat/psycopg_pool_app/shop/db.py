"""Pools: one for the whole process, made when somebody first asks for it, and one of the application's lifespan."""

import os
from functools import lru_cache

from psycopg_pool import AsyncConnectionPool, ConnectionPool


@lru_cache
def get_pool():
    pool = ConnectionPool(os.environ["DATABASE_URL"], min_size=1, max_size=6, open=False, timeout=5)
    pool.open()
    return pool


def make_audit_pool():
    return AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=1, max_size=2, open=False, timeout=5)


SCHEMA = """
create table if not exists item (id int primary key generated always as identity, name text unique, price int);
create table if not exists audit (what text);
"""
