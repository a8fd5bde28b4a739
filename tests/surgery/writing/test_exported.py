"""Archives of torch.export: other weights of the same shapes, the program as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nndiag.checkpoint import Permission
from nndiag.errors import InputError
from tests.surgery.writing.networks import expected, healed, pruned, trained, written

TRUSTED = Permission(trust=True)


def test_the_program_runs_with_the_new_weights_and_is_not_made_smaller(tmp_path: Path) -> None:
    model, _ = trained()
    model.eval()
    shape = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (torch.ones(5, 4),), dynamic_shapes=shape)
    torch.export.save(program, tmp_path / "a.pt2")
    edits = healed(model)
    assert written(tmp_path / "a.pt2", edits, tmp_path / "b.pt2", model, TRUSTED).notes == ()
    with pytest.raises(InputError, match="shapes are fixed"):
        written(tmp_path / "a.pt2", pruned(model), tmp_path / "c.pt2", model, TRUSTED)
    found = torch.export.load(tmp_path / "b.pt2").module()
    inputs = torch.randn(7, 4)
    model.load_state_dict(dict(expected(model, edits)))
    assert torch.equal(found(inputs), model(inputs))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt2", "b.pt2"]
