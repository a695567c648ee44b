"""pytest-pgleak: fails the test that leaks a PostgreSQL connection, and names the line that did it."""

from __future__ import annotations

__version__ = "0.1.0"
