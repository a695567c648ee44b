"""The inner suite of tests/test_stateful.py: a database with a table, and how many examples Hypothesis is to try."""

import os

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings

FUZZ = "PGLEAK_FUZZ"

settings.register_profile(
    "ci",
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "fuzz",
    settings.get_profile("ci"),
    max_examples=int(os.environ.get(FUZZ) or 1),
    derandomize=False,
    print_blob=True,
    phases=[Phase.generate, Phase.shrink, Phase.explain],
)
settings.load_profile("fuzz" if os.environ.get(FUZZ) else "ci")


@pytest.fixture(scope="session")
def dsn(pgleak_dsn):
    with psycopg.connect(pgleak_dsn) as conn:
        conn.execute("create table if not exists written (token int primary key)")
    return str(pgleak_dsn)


@pytest.fixture
def rows(dsn):
    """The judge: which tokens are really there."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield lambda: {token for (token,) in conn.execute("select token from written")}
