"""Prepared transactions: what was left in ``pg_prepared_xacts``."""
