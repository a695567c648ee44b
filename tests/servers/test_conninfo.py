from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from pytest_pgleak.servers import conninfo
from pytest_pgleak.servers.databases import redacted, with_dbname

READABLE = [
    "",
    "host=h",
    "host=h dbname=db user=me password=s3cret",
    "  host = h  dbname = 'two words'  ",
    r"password='a\'b\\c' host=h",
    r"password=a\ b host=h",
    "host=one host=two",
    "host='' dbname=db",
    "password=it's host=h",
    "postgresql://",
    "postgres://h",
    "postgresql:///db",
    "postgresql://me@h:5433/db",
    "postgresql://me:s3cret@h/db?connect_timeout=3&application_name=a%20b",
    "postgresql://me:p%40ss%2Fw@h/db",
    "postgresql://me:p?ss@h/db",
    "postgresql://me:p:ss@h/db",
    "postgresql://one:1,two:2/db",
    "postgresql://[::1]:5433/db",
    "postgresql://me@/db?host=/var/run/postgresql&port=5433",
    "postgresql://%2Fvar%2Frun/db",
    "postgresql://h/db?dbname=other",
    "postgresql://h?dbname=other",
]


@pytest.mark.parametrize("dsn", READABLE)
def test_parse_agrees_with_libpq(dsn):
    assert conninfo.parse(dsn) == {key: str(value) for key, value in conninfo_to_dict(dsn).items()}


@pytest.mark.parametrize("dsn", READABLE)
def test_with_dbname_changes_nothing_else(dsn):
    changed = with_dbname(dsn, "an other's/db?")

    assert conninfo_to_dict(changed) == conninfo_to_dict(dsn) | {"dbname": "an other's/db?"}
    assert changed.partition("://")[0] == dsn.partition("://")[0] or "://" not in dsn


@pytest.mark.parametrize("dsn", READABLE)
def test_with_default_adds_or_keeps(dsn):
    before = conninfo_to_dict(dsn)

    after = conninfo_to_dict(conninfo.with_default(dsn, "connect_timeout", "5"))

    assert after == {"connect_timeout": before.get("connect_timeout", "5"), **before}


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://me:s3cret@h:5433/db?sslmode=require", "host=h port=5433 user=me dbname=db"),
        ("host=h password=s3cret dbname='my db'", "host=h dbname='my db'"),
        ("host=h sslpassword=s3cret passfile=s3cret", "host=h"),
        ("service=mine password=s3cret", "service=mine"),
        ("postgresql://h/db?password=s3cret", "host=h dbname=db"),
        ("", ""),
    ],
)
def test_redacted_shows_where_and_who(dsn, shown):
    assert redacted(dsn) == shown


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:s3@cret@h/db",
        "postgresql://me:s3/cret@h/db",
        "postgresql://me:123/cret@h/db",
        "postgresql://me:s3cret",
        "password=my s3cret",
        "password='my s3cret",
        "s3cret",
        "host=h password=a@s3cret host=b@s3cret",
    ],
)
def test_redacted_shows_nothing_of_what_it_cannot_read(dsn):
    assert redacted(dsn) == ""
