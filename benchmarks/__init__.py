"""What a check costs, and how fast a server is there: measured beside its peer, in the same run.

``make bench`` runs it, prints a table, and writes ``benchmarks/results.json`` and the table of docs/performance.md.
"""
