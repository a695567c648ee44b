"""Known findings: a file of leaks that do not fail, until they are fixed."""
