from __future__ import annotations

import subprocess
import sys


def test_reports_need_no_torch() -> None:
    code = "import sys, nndiag.report; print([m for m in ('torch', 'numpy', 'typer') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "[]"
