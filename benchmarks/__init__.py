"""The performance tables: one question a table, every ratio from one run on one machine.

``python -m benchmarks`` in the root of the repository prints them; ``make bench`` commits them as ``RESULTS.md``.
"""
