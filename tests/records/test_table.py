"""Reports as tables; pandas and pyarrow are extras, so that their part is checked where they are installed."""

from __future__ import annotations

import io
import sys

import pytest

from nndiag.errors import UsageError
from nndiag.records.table import comparison_columns, parquet_bytes, report_columns
from tests.comparing.runs import along, compared
from tests.report.synthetic import cnn, dying


def test_one_row_a_node_and_checkpoint() -> None:
    report = dying()
    columns = report_columns(report)
    assert {len(values) for values in columns.values()} == {sum(len(one.nodes) for one in report.checkpoints)}
    assert columns["epoch"] == sorted(columns["epoch"])
    assert columns["findings"][0] == "ND201,ND204,ND301,ND401"
    assert set(columns["weight_norm"]) == {1.25}


def test_a_comparison_has_a_row_a_checkpoint() -> None:
    columns = comparison_columns(compared(*along(5, ["hd", "dd"])))
    assert columns["verdict"] == ["healthy", "healthy", "plateau", "plateau", "plateau"] + ["plateau"] * 5
    assert columns["rho"][0] is None


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    frame = cnn().to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.groupby("layer").size()["layer2.1.conv1"] == 16
    assert len(compared(*along(5, ["hd", "dd"])).to_dataframe()) == 10


def test_parquet() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = report_columns(cnn())
    content = parquet_bytes(columns)
    assert content == parquet_bytes(columns)
    assert parquet.read_table(io.BytesIO(content)).to_pydict() == columns


@pytest.mark.parametrize("name", ["pandas", "pyarrow"])
def test_what_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=f"{name} is not installed"):
        cnn().to_dataframe() if name == "pandas" else parquet_bytes(report_columns(cnn()))
