"""Of what a transaction has written: what is lost with it, and what it is called."""

from __future__ import annotations

import pytest
from builders import backend

from pytest_pgleak.activity import Relations

TABLE, OTHER, INDEX, SEQUENCE, TEMPORARY, GONE = 1, 2, 3, 4, 5, 6
PUBLIC, PG_TEMP = 2200, 9000
FOUND = {
    TABLE: ("visits", "r"),
    OTHER: ("audit", "p"),
    INDEX: ("visits_pkey", "i"),
    SEQUENCE: ("visits_id_seq", "S"),
    TEMPORARY: ("scratch", "t"),
}
RELATIONS = Relations(FOUND, frozenset({PUBLIC}))


@pytest.mark.parametrize(
    ("written", "schemas", "expected"),
    [
        ((TABLE,), (), True),
        ((OTHER,), (), True),
        ((INDEX,), (), True),
        ((SEQUENCE,), (), False),
        ((TEMPORARY,), (), False),
        ((SEQUENCE, TEMPORARY), (), False),
        ((SEQUENCE, TABLE), (), True),
        ((TEMPORARY, TABLE), (), True),
        # Not in the catalog any more: dropped since, or made by this very transaction.
        ((GONE,), (), True),
        ((GONE,), (PUBLIC,), True),
        ((GONE,), (PG_TEMP,), False),
        ((GONE,), (PG_TEMP, PUBLIC), True),
        ((GONE, TABLE), (PG_TEMP,), True),
        ((GONE, SEQUENCE), (PG_TEMP,), False),
    ],
)
def test_what_a_rollback_loses(written, schemas, expected):
    assert RELATIONS.may_lose(backend(written=written, schemas=schemas)) is expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ((TABLE, SEQUENCE, INDEX), ("visits",)),
        ((TABLE, OTHER), ("audit", "visits")),
        ((GONE,), ()),
        ((TEMPORARY,), ()),
    ],
)
def test_what_it_is_called(written, expected):
    assert RELATIONS.tables(backend(written=written)) == expected


def test_where_nobody_could_be_asked_all_of_it_counts():
    nothing_known = Relations(schemas=frozenset({PG_TEMP}))
    assert nothing_known.may_lose(backend(written=(TABLE,)))
    assert nothing_known.may_lose(backend(written=(GONE,), schemas=(PG_TEMP,)))
