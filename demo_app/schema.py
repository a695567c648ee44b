"""The database schema of the service."""

import psycopg

VISITS = """
create table if not exists visits (
    id bigint generated always as identity primary key,
    timestamp timestamptz not null,
    referrer bigint references visits deferrable initially deferred
)
"""


def create_schema(dsn: str) -> None:
    """Create the service's table, unless it is there already.

    Args:
        dsn: The database to create it in.
    """
    with psycopg.connect(dsn) as conn:
        conn.execute(VISITS)
