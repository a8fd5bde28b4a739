"""One question a file; ``table`` gives its part of the page."""

from __future__ import annotations

from benchmarks.setting import Table
from benchmarks.tables import cost, edge, error, exact, growth, memory, peers, reading, reports, solvers

TABLES: dict[str, Table] = {
    "cost": cost.table,
    "error": error.table,
    "peers": peers.table,
    "growth": growth.table,
    "memory": memory.table,
    "reading": reading.table,
    "solvers": solvers.table,
    "exact": exact.table,
    "edge": edge.table,
    "reports": reports.table,
}
