"""The visits service, each time with the one line missing that gives the connection back."""
