"""Run directories on disk: bytes that depend on the run alone, put in place in one move."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from _run import Run
from safetensors.torch import save
from torch import Tensor


def safetensors_bytes(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> bytes:
    """A safetensors file with sorted metadata: the library's own order changes from call to call."""
    raw = save(tensors)
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    if metadata:
        header = {"__metadata__": {k: str(metadata[k]) for k in sorted(metadata)}, **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def toml_value(value: Any) -> str:
    """A value of nndiag.toml: number, truth value, text, list or inline table."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    return json.dumps(value)


def toml_text(run: Run) -> str:
    """The run's nndiag.toml."""
    layers = "".join(f"  {toml_value(layer)},\n" for layer in run.spec)
    parts = [f"[model]\nsequential = [\n{layers}]\n"]
    tables = {
        "checkpoints": {"include": run.include},
        "probe": {"data": "probe.safetensors", "loss": run.loss},
        "optimizer": run.optimizer,
        "policy": run.policy,
    }
    for name, table in tables.items():
        if table:
            parts.append(f"[{name}]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in table.items()))
    return "\n".join(parts)


def readme_text(run: Run) -> str:
    """First what is wrong and how one knows, then how the run was made."""
    return (
        f"{run.verdict}\n\n{run.story}\n\nNetwork: {run.network}. Probe: {run.probe_source}. The counts, "
        "made without nndiag, are in `facts.json`; `sample_checkpoints/make.py` makes everything.\n"
    )


def write_run(run: Run, folder: Path) -> None:
    """Write a run into an empty folder."""
    for checkpoint in run.checkpoints:
        path = folder / f"{checkpoint.file}.safetensors"
        path.write_bytes(safetensors_bytes(checkpoint.state, checkpoint.place))
    (folder / "probe.safetensors").write_bytes(safetensors_bytes(run.probe, {}))
    head = {"run": run.name, "probe": {"samples": len(run.probe["x"]), "source": run.probe_source}}
    facts = json.dumps({**head, **run.facts}, indent=1, ensure_ascii=False)
    (folder / "facts.json").write_text(facts + "\n", encoding="utf-8")
    (folder / "nndiag.toml").write_text(toml_text(run), encoding="utf-8")
    (folder / "README.md").write_text(readme_text(run), encoding="utf-8")


def put_in_place(run: Run, root: Path) -> None:
    """Write beside the old directory and swap, so that an interrupted call leaves the old one whole."""
    new, old, final = (root / name for name in (f".{run.name}.new", f".{run.name}.old", run.name))
    for stale in (new, old):
        shutil.rmtree(stale, ignore_errors=True)
    new.mkdir(parents=True)
    write_run(run, new)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def overview(runs: list[Run]) -> str:
    """The table of all runs."""
    rows = "".join(
        f"| [`{run.name}`]({run.name}/README.md) | {run.network} | {len(run.checkpoints)} | {run.verdict} |\n"
        for run in runs
    )
    return (
        "# Sample checkpoints\n\nSmall real runs on scikit-learn's digits, and toys of two or three "
        "parameters. Each is a run directory:\n`nndiag scan sample_checkpoints/dying_mlp`.\n\n| run | "
        "network | checkpoints | what is wrong, and how one knows "
        f"|\n|---|---|---|---|\n{rows}\n`facts.json` in each directory holds counts made with plain "
        "PyTorch, without nndiag; the tests count again and compare.\n`python sample_checkpoints/make.py` "
        "trains and writes everything anew: the same bytes on one machine and PyTorch version,\nwhile "
        "another may round differently and then tell a slightly different story.\n"
    )
