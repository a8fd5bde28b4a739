"""A report as a table, one row a node and checkpoint: for pandas, and as a Parquet file.

pandas and pyarrow are extras; they are imported when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nndiag.errors import UsageError

if TYPE_CHECKING:
    from nndiag.records.comparison import Comparison
    from nndiag.records.report import Report

Columns = dict[str, list[Any]]

_INSTALL = "install it with `pip install nndiag[parquet]`"


def report_columns(report: Report) -> Columns:
    """Return the nodes of all checkpoints by column; a measure that was not taken is ``None``.

    ``findings`` are the codes, joined by commas; ``random_probe`` says that the numbers rest on noise and no data. All
    nodes are there where the scan listed all.
    """
    rows = []
    for found in report.checkpoints:
        facts = found.checkpoint
        for node in found.nodes:
            fixed = {
                "checkpoint": facts.path, "step": facts.step, "epoch": facts.epoch,
                "random_probe": found.probe is not None and found.probe.random, "layer": node.layer,
                "index": node.index, "verdict": node.verdict, "steady": node.steady,
                "curvature_kind": node.curvature_kind, "findings": ",".join(one.code for one in node.findings),
                "action": node.action.kind,
            }  # fmt: skip
            rows.append((fixed, node.measures))
    return _columns(rows)


def comparison_columns(comparison: Comparison) -> Columns:
    """Return the nodes of a comparison at every checkpoint by column, as :func:`report_columns` does."""
    rows = []
    for node in comparison.nodes:
        for place, mark in enumerate(comparison.checkpoints):
            fixed = {
                "checkpoint": mark.path, "step": mark.step, "epoch": mark.epoch,
                "random_probe": mark.random_probe, "layer": node.layer,
                "index": node.index, "verdict": node.verdicts[place],
                "findings": ",".join(one.code for one in node.findings),
            }  # fmt: skip
            rows.append((fixed, {name: values[place] for name, values in node.measures.items()}))
    return _columns(rows)


def _columns(rows: list[tuple[dict[str, Any], dict[str, float | None]]]) -> Columns:
    names = dict.fromkeys(name for fixed, _ in rows for name in fixed)
    measures = sorted({name for _, taken in rows for name in taken})
    found: Columns = {name: [fixed[name] for fixed, _ in rows] for name in names}
    return found | {name: [taken.get(name) for _, taken in rows] for name in measures}


def dataframe(columns: Columns) -> Any:
    """Return columns as a ``pandas.DataFrame``.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UsageError(
            "to_dataframe", "pandas is not installed", "install it with `pip install pandas`"
        ) from error
    return pandas.DataFrame(columns)


def parquet_bytes(columns: Columns, caution: str = "") -> bytes:
    """Return columns as a Parquet file, the same bytes for the same table.

    Args:
        columns: the table.
        caution: a sentence on what the numbers rest on, for the metadata of its schema; it stands there too where the
            table has no row.

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError("--output parquet", "pyarrow is not installed", _INSTALL) from error
    sink = pyarrow.BufferOutputStream()
    metadata = {"nndiag.caution": caution} if caution else None
    table = pyarrow.table(columns, metadata=metadata)
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content
