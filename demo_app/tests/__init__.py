"""The tests of both halves: what a user of pytest-pgleak writes."""
