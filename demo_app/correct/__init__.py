"""The visits service, written in ways that give every connection back."""
