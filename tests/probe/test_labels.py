"""Losses on labels: the mean over the labels that count, whatever the batches and masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nndiag.errors import InputError
from nndiag.probe.curvature import loss_factor
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe

SAMPLES, POSITIONS, TOKENS = 7, 5, 11


def logits() -> Tensor:
    return torch.randn(SAMPLES, POSITIONS, TOKENS, generator=torch.Generator().manual_seed(0)).double()


def masked_tokens() -> Tensor:
    """Labels of which each sample leaves out another number; one sample leaves out all."""
    labels = torch.randint(0, TOKENS, (SAMPLES, POSITIONS), generator=torch.Generator().manual_seed(1))
    for sample in range(SAMPLES):
        labels[sample, : sample % (POSITIONS + 1)] = -100
    return labels


def mean_loss(name: str, output: Tensor, targets: Tensor, batch_size: int) -> float:
    """Return the probe loss as a scan adds it up, a batch at a time."""
    probe = Probe((torch.zeros(len(output), 1),), targets, named_loss(name), batch_size)
    assert probe.loss is not None
    total = 0.0
    for batch in probe.batches():
        assert batch.targets is not None
        part = output[batch.start : batch.start + len(batch)]
        total += float(probe.loss.per_sample(part, probe.loss.prepare(part, batch.targets)).sum())
    return total / len(probe)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_causal_lm_is_the_mean_over_next_tokens_that_count(batch_size: int) -> None:
    output, labels = logits(), masked_tokens()
    truth = F.cross_entropy(output[:, :-1].reshape(-1, TOKENS), labels[:, 1:].reshape(-1), ignore_index=-100)
    assert mean_loss("causal_lm", output, labels, batch_size) == pytest.approx(float(truth), rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_masked_lm_is_the_mean_over_tokens_that_count(batch_size: int) -> None:
    output, labels = logits(), masked_tokens()
    truth = F.cross_entropy(output.reshape(-1, TOKENS), labels.reshape(-1), ignore_index=-100)
    assert mean_loss("masked_lm", output, labels, batch_size) == pytest.approx(float(truth), rel=1e-12)


@pytest.mark.parametrize("batch_size", [2, 7])
@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
@pytest.mark.parametrize("ignoring", [False, True])
def test_labels_a_position_as_torch_has_them(name: str, ignoring: bool, batch_size: int) -> None:
    output = logits().transpose(1, 2)
    output = output.log_softmax(dim=1) if name == "nll" else output
    labels = masked_tokens() if ignoring else masked_tokens().clamp_min(0)
    truth = (F.nll_loss if name == "nll" else F.cross_entropy)(output, labels)
    assert mean_loss(name, output, labels, batch_size) == pytest.approx(float(truth), rel=1e-12)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_labels_a_sample_of_which_some_are_left_out(batch_size: int) -> None:
    output, labels = logits()[:, 0], masked_tokens()[:, 1]
    assert 0 < int((labels == -100).sum()) < SAMPLES
    truth = float(F.cross_entropy(output, labels))
    assert mean_loss("cross_entropy", output, labels, batch_size) == pytest.approx(truth, rel=1e-12)


def test_probabilities_for_targets() -> None:
    output = logits()[:, 0]
    targets = torch.rand_like(output).softmax(dim=1)
    truth = float(F.cross_entropy(output, targets))
    assert mean_loss("cross_entropy", output, targets, 3) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("shape", [(SAMPLES, TOKENS), (SAMPLES, TOKENS, POSITIONS)], ids=["one", "several"])
def test_the_curvature_of_probabilities_that_do_not_add_up_to_one(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    output, targets = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    loss = named_loss("cross_entropy")
    one, own = output[0], targets[0]
    hessian = torch.autograd.functional.hessian(lambda f: loss.per_sample(f[None], own[None]).sum(), one)
    factor = loss_factor(loss, output, targets)
    assert float(factor.weights[0].sum()) == pytest.approx(
        float(hessian.reshape(one.numel(), -1).diagonal().sum()), rel=1e-12
    )


@pytest.mark.parametrize(("name", "factor"), [("cross_entropy", -1.0), ("nll", 1.0)])
def test_targets_that_are_no_probabilities(name: str, factor: float) -> None:
    output = logits()[:, 0].log_softmax(dim=1)
    with pytest.raises(InputError, match="integer labels"):
        named_loss(name).prepare(output, factor * torch.rand_like(output))


def test_a_loss_that_no_probe_has_bound_takes_the_batch_for_all() -> None:
    output, labels = logits(), masked_tokens()
    loss = named_loss("masked_lm")
    truth = F.cross_entropy(output.reshape(-1, TOKENS), labels.reshape(-1))
    found = loss.per_sample(output, loss.prepare(output, labels)).mean()
    torch.testing.assert_close(found, truth)


def test_a_batch_without_a_label_that_counts_costs_nothing() -> None:
    output = logits()
    labels = masked_tokens()
    assert (labels[POSITIONS] == -100).all()
    loss = named_loss("masked_lm").over(labels)
    one = slice(POSITIONS, POSITIONS + 1)
    assert float(loss.per_sample(output[one], loss.prepare(output[one], labels[one]))) == 0


def test_without_targets_all_positions_count_but_those_with_no_next_one() -> None:
    output = logits()
    causal, masked = named_loss("causal_lm").labels, named_loss("masked_lm").labels
    assert causal is not None
    assert masked is not None
    assert causal.weights(output, None)[0].tolist() == [0.25, 0.25, 0.25, 0.25, 0]
    assert masked.weights(output, None)[0].tolist() == pytest.approx([0.2] * 5)


@pytest.mark.parametrize(
    ("name", "output", "targets", "words"),
    [
        (
            "cross_entropy",
            (7, 5, 11),
            torch.zeros(7, 5, dtype=torch.long),
            "use --loss masked_lm, or causal_lm",
        ),
        (
            "masked_lm",
            (7, 11),
            torch.zeros(7, dtype=torch.long),
            r"\(7, 11\), not a row \(positions, tokens\)",
        ),
        ("causal_lm", (7, 5, 11), torch.zeros(7, 5), r"y is float32 of shape \(7, 5\)"),
        ("causal_lm", (7, 5, 11), torch.zeros(7, 4, dtype=torch.long), r"integer labels of shape \(7, 5\)"),
        (
            "masked_lm",
            (7, 5, 11),
            torch.full((7, 5), 11),
            "label 11 is out of range for a model with 11 outputs",
        ),
        (
            "cross_entropy",
            (7, 11),
            torch.full((7,), -1),
            "label -1 is out of range.*or -100 to leave one out",
        ),
        ("cross_entropy", (7,), torch.zeros(7, dtype=torch.long), "not one score a class"),
        ("nll", (7, 11), torch.zeros(7, dtype=torch.long), "not log-probabilities"),
    ],
)
def test_targets_that_do_not_fit_are_refused_in_one_line(
    name: str, output: tuple[int, ...], targets: Tensor, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        named_loss(name).prepare(torch.ones(output), targets)


def test_curvature_of_an_output_without_positions_is_refused() -> None:
    labels = named_loss("causal_lm").labels
    assert labels is not None
    with pytest.raises(InputError, match="choose another --loss"):
        labels.weights(torch.zeros(3, 4), None)


def test_labels_of_which_none_counts_are_refused_when_the_probe_is_made() -> None:
    labels = torch.zeros(3, 1, dtype=torch.long)
    for name, none in (
        ("masked_lm", labels - 100),
        ("causal_lm", labels),
        ("cross_entropy", labels[:, 0] - 100),
    ):
        with pytest.raises(InputError, match="no label counts"):
            Probe((torch.zeros(3, 2),), none, named_loss(name))
