"""How many connections are open at once, against ``max_connections`` of the marker."""
