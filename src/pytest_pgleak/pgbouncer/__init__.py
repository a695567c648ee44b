"""PgBouncer between the application and PostgreSQL: what its console says of who has which server connection."""
