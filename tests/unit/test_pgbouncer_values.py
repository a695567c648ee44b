from __future__ import annotations

import pytest

from pytest_pgleak.pgbouncer.values import is_another, values_in


@pytest.mark.parametrize(
    ("statement", "parameters", "values"),
    [
        ("set work_mem = '77MB'", None, {"work_mem": "'77MB'"}),
        ("SET SESSION Work_Mem TO 1000;", None, {"work_mem": "1000"}),
        ("set app.tenant to seven", None, {"app.tenant": "seven"}),
        ("select set_config('a.b', 'it''s', false)", None, {"a.b": "it's"}),
        ("select %s, set_config('a.b', %s, false)", ["x", "y"], {"a.b": "y"}),
        ("select set_config($1, $2, false)", ["a.b", "y"], {"a.b": "y"}),
        ("select set_config('a.b', %s, false)", [object()], {}),
        ("set role monitor", None, {}),
        ("set session authorization monitor", None, {}),
        ("select 1", None, {}),
    ],
)
def test_values_that_a_statement_gives(statement, parameters, values):
    assert values_in(statement, parameters) == values


@pytest.mark.parametrize(
    ("written", "found", "is_it"),
    [
        ("'77MB'", "78848kB", False),
        ("78848", "78848kB", False),
        ("4MB", "78848kB", True),
        ("'3s'", "3000ms", False),
        ("'1min'", "60s", False),
        ("0", "3000ms", True),
        ("on", "on", False),
        ("true", "on", False),
        ("off", "on", True),
        ("'4GB'", "524288", False),  # in blocks: nobody can tell
        ("1.1", "1.1", False),
        ("1.1", "4", True),
        ("public", "tenant_7", True),
        ("tenant_7, public", '"tenant_7", public', False),
        ("Serializable", "serializable", False),
    ],
)
def test_whether_a_value_is_another_one(written, found, is_it):
    assert is_another(written, found) is is_it
