from __future__ import annotations

from pathlib import Path

import pytest

from pytest_pgleak.reports.portable import portable, portable_line, portable_note

ROOT = Path("/home/ada/shop/backend")


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("/home/ada/shop/backend/app/db.py", "app/db.py"),
        ("/home/ada/shop/library/db.py", "../library/db.py"),
        ("/home/ada/shop/backend/.venv/site-packages/app/db.py", "site-packages/app/db.py"),
        ("/opt/venv/lib/python3.11/site-packages/app/db.py", "site-packages/app/db.py"),
        ("/usr/lib/python3/dist-packages/app.py", "dist-packages/app.py"),
        ("/srv/secret/db.py", "db.py"),
        ("app/db.py", "app/db.py"),
        ("<string>", "<string>"),
    ],
)
def test_a_path(filename, expected):
    assert portable(filename, ROOT) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  opened    app/db.py:14 in get_conn", "  opened    app/db.py:14 in get_conn"),
        ("  opened    /srv/secret/db.py:14 in get_conn", "  opened    db.py:14 in get_conn"),
        ("  opened    /srv/my secret/db.py:14 in get_conn", "  opened    db.py:14 in get_conn"),
        (
            "  called by /srv/secret/a.py:1 in f, app/b.py:2 in g, /srv/c.py:3 in h",
            "  called by a.py:1 in f, app/b.py:2 in g, c.py:3 in h",
        ),
        ("  opened    app/db.py:14 in f    dependency of GET /visit/ (f)",) * 2,
        ("  last sql  select '/tmp/x:1'",) * 2,
    ],
)
def test_a_line_of_a_failure(line, expected):
    assert portable_line(line, ROOT) == expected


def test_a_note_without_its_traceback():
    note = (
        'internal error of pytest-pgleak in x. Please report it:\nTraceback (most recent call last):\n  File "/srv/a"'
    )
    assert portable_note(note, ROOT) == "internal error of pytest-pgleak in x. Please report it:"
    assert portable_note(f"could not clean up: {ROOT}/data is gone, {ROOT} too", ROOT) == (
        "could not clean up: data is gone, . too"
    )
