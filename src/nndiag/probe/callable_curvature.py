"""The factor of a callable loss, from double backward passes through the loss alone.

With few outputs a sample, ``B_n`` is formed and split into eigenvectors. With many, products ``B_n v`` are all there
is: a diagonal ``B`` shows itself in them; of any other the leading eigenvectors ``V`` are found by subspace iteration
until they hold the coverage wanted, and the rest is drawn, ``(I − V Vᵀ) B^{1/2} ε``, the root by Lanczos.

Source: Halko, Martinsson and Tropp 2011, section 5 (subspace iteration); Higham 2008, Functions of Matrices, section
13.2 (``f(B) ε`` from a Krylov space); Hutchinson 1990 (the trace).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nndiag.errors import InputError
from nndiag.probe.factor import ColumnFactor, DiagonalFactor, Draw, Factor
from nndiag.probe.loss import Loss

AUTOGRAD_LIMIT = 256
"""Up to this many outputs per sample the matrix itself is formed."""
LEADING = 64
"""At most so many leading eigenvectors of every sample are looked for."""
MATRICES = 5
"""Matrices of all samples, in double precision, that are there at once where they are split into eigenvectors."""
KEPT_BYTES = 2**28
"""What vectors kept at once may take, where these few do."""
COPIES = 4
"""Copies of the leading eigenvectors that are there at once while they are found."""
SWEEPS = 6
"""Sweeps of subspace iteration."""
CONVERGED = 1e-4
"""Largest residual of an eigenvector that is taken by itself, relative to the largest eigenvalue of its sample."""
NEGLIGIBLE = 1e-6
"""Share of the trace below which the rest is nothing but rounding."""
ROOT_STEPS, LEAST_STEPS = 24, 8
"""Products for one draw of ``B^{1/2} ε``, and how few they may be where memory is short."""
TRACE_DRAWS = 16
"""Products for an estimate of the trace."""
DRAWS = 32
"""How many draws the rest is divided into at most."""
TINY = torch.finfo(torch.float64).tiny

Product = Callable[[Tensor], Tensor]


def callable_factor(loss: Loss, output: Tensor, targets: Tensor | None, coverage: float = 0.99) -> Factor:
    """Return the factor of ``∂²ℓ_n/∂f_n²``.

    Args:
        loss: twice differentiable in the output by autograd.
        output: ``(batch, ...)``.
        targets: as ``loss.per_sample`` takes them.
        coverage: share of the trace that leading eigenvectors are looked for to hold, where outputs are many.

    Raises:
        InputError: there are no targets.
    """
    if targets is None:
        raise InputError(f"--loss {loss.name}", "its curvature needs targets", "give y with the probe")
    product = _product(loss, output, targets)
    like = _rows(output.detach())
    if product is None:
        return DiagonalFactor(torch.zeros_like(like), output)
    if like.shape[1] <= AUTOGRAD_LIMIT:
        return _eigen_factor(_matrix(product, like), output)
    generator = torch.Generator(device=output.device).manual_seed(0)
    diagonal = _diagonal(product, like, generator)
    if diagonal is not None:
        return DiagonalFactor(diagonal, output)
    return OperatorFactor(product, output, coverage, generator)


def _product(loss: Loss, output: Tensor, targets: Tensor) -> Product | None:
    """Return ``v ↦ B_n v`` on ``(batch, outputs)``, or ``None`` where the gradient does not depend on the output."""
    leaf = output.detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(loss.per_sample(leaf, targets).sum(), leaf, create_graph=True)
    if not grad.requires_grad:
        return None

    def product(vectors: Tensor) -> Tensor:
        seed = vectors.to(grad).reshape(grad.shape)
        (found,) = torch.autograd.grad(grad, leaf, seed, retain_graph=True, allow_unused=True)
        return torch.zeros_like(vectors) if found is None else _rows(found.detach()).to(vectors)

    return product


def _rows(output: Tensor) -> Tensor:
    """Return an output as ``(batch, outputs)``, also where a sample is one number."""
    return output.reshape(len(output), -1)


def _matrix(product: Product, like: Tensor) -> Tensor:
    """Return ``B_n`` as ``(batch, m, m)`` float64, a product a column."""
    rows = []
    for place in range(like.shape[1]):
        unit = torch.zeros_like(like)
        unit[:, place] = 1
        rows.append(product(unit))
    return torch.stack(rows, dim=1).double()


def _eigen_factor(matrices: Tensor, output: Tensor) -> ColumnFactor:
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    columns = (vectors * values.clamp_min(0).sqrt()[:, None, :]).flip(2).permute(2, 0, 1)
    negative = float(-values.clamp_max(0).sum(dim=1).mean())
    return ColumnFactor(columns, output, negative, MATRICES)


def _diagonal(product: Product, like: Tensor, generator: torch.Generator) -> Tensor | None:
    """Return the diagonal of ``B_n`` where there is nothing beside it: then ``B x / x`` is the same for every ``x``."""
    found = []
    for _ in range(3):
        x = torch.rand(like.shape, generator=generator, dtype=torch.float64, device=like.device).add_(0.5)
        x = x.to(like.dtype)
        found.append(product(x) / x)
    one, *others = found
    scale = one.abs().amax(dim=1, keepdim=True)
    allowed = 100 * torch.finfo(like.dtype).eps * scale
    return one if all(bool(((one - other).abs() <= allowed).all()) for other in others) else None


class OperatorFactor:
    """``B_n`` known by its products: leading eigenvectors, and draws of the rest.

    The rest is one mixture, divided into equal draws, so that more passes make it less noisy. Where ``B`` has negative
    eigenvalues the root is that of its positive part, and ``negative`` what the leading ones show of them.

    Args:
        product: ``v ↦ B_n v``.
        output: gives shape and dtype of the seeds.
        coverage: share of the trace that the leading eigenvectors are to hold.
        generator: source of the start vectors and of the estimate of the trace.
    """

    def __init__(self, product: Product, output: Tensor, coverage: float, generator: torch.Generator) -> None:
        self._product, self._like = product, output.detach()
        flat = _rows(self._like)
        self.entries = flat.shape[1]
        values, self._vectors, rest = _leading(product, flat, coverage, generator)
        leading = values.clamp_min(0)
        self._lead = leading.sqrt()
        draws = 0 if float(rest.sum()) <= NEGLIGIBLE * float(leading.sum()) else DRAWS
        divided = (rest / max(draws, 1))[:, None].expand(-1, draws)
        self.weights = torch.cat([leading, divided], dim=1)
        self.ranks = torch.ones(self.weights.shape[1], dtype=torch.long, device=flat.device)
        self.ranks[leading.shape[1] :] = flat.shape[1] - leading.shape[1]
        self.total = float(self.weights.sum(dim=1).mean())
        self.negative = float(-values.clamp_max(0).sum(dim=1).mean())

    def held(self, batch: int) -> int:
        """The leading eigenvectors as they are found, then beside them a draw's Krylov vectors and their images."""
        leading, steps = _leading_allowed(batch, self.entries), _root_steps(batch, self.entries)
        return 8 * batch * self.entries * max(COPIES * leading, leading + 2 * steps + COPIES)

    def combine(self, signs: Tensor, samples: Tensor, draw: Draw) -> Tensor:
        """``Σ ± √λ v``, and ``√(d/D) (I − V Vᵀ) B^{1/2} ε`` where ``d`` of the ``D`` draws are in it."""
        count = self._lead.shape[1]
        lead = signs[:, :count].double() * self._lead[samples]
        seed = torch.einsum("rk,rmk->rm", lead, self._vectors[samples].double())
        draws = signs[:, count:].abs().sum(dim=1).double()
        if bool(draws.any()):
            rows = torch.arange(len(samples), device=samples.device)
            noise = draw(rows, self._vectors.shape[1]).double()
            rest = self._root(noise, samples)
            seed += rest * (draws / signs[:, count:].shape[1]).sqrt()[:, None]
        return seed.to(self._like.dtype).reshape(-1, *self._like.shape[1:])

    def _root(self, noise: Tensor, samples: Tensor) -> Tensor:
        """``B^{1/2} (I − V Vᵀ) ε`` by Lanczos: ``‖x‖ Q f(T) e₁`` with ``x`` the start and ``f(λ) = √max(λ, 0)``."""
        vectors = self._vectors[samples].double()
        start = _without(noise, vectors)
        length = torch.linalg.vector_norm(start, dim=1, keepdim=True)
        steps = _root_steps(len(self._like), self.entries)
        q, images = (noise.new_zeros(*noise.shape, steps) for _ in range(2))
        following = start / length.clamp_min(TINY)
        scale = torch.zeros_like(length)
        for step in range(steps):
            q[:, :, step] = following
            images[:, :, step] = image = self._among(following, samples)
            known = q[:, :, : step + 1]
            following = _without(_without(image, vectors), known)
            following = _without(_without(following, vectors), known)  # once leaves rounding behind
            norm = torch.linalg.vector_norm(following, dim=1, keepdim=True)
            scale = scale.maximum(torch.linalg.vector_norm(image, dim=1, keepdim=True))
            more = norm > torch.finfo(self._like.dtype).eps * scale * 10
            following = torch.where(more, following / norm.clamp_min(TINY), 0)
        values, turns = torch.linalg.eigh(_symmetric(q.mT @ images))
        coefficients: Tensor = turns @ (values.clamp_min(0).sqrt() * turns[:, 0])[:, :, None]
        root: Tensor = (q @ coefficients).squeeze(2) * length
        return root

    def _among(self, vectors: Tensor, samples: Tensor) -> Tensor:
        """Return the products of these samples, which the loss takes among all of its batch.

        A sample that is named several times is taken in as many rounds.
        """
        found = torch.empty_like(vectors)
        turn = (samples[:, None] == samples).tril(-1).sum(dim=1)
        for place in range(int(turn.max()) + 1):
            rows = torch.nonzero(turn == place).flatten()
            whole = vectors.new_zeros(len(self._like), vectors.shape[1])
            found[rows] = self._product(whole.index_copy(0, samples[rows], vectors[rows]))[samples[rows]]
        return found


def _leading(
    product: Product, like: Tensor, coverage: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return leading eigenvalues ``(batch, k)``, largest magnitude first, vectors ``(batch, m, k)``, and the trace of
    the rest ``(batch,)``, float64.

    Only as many as hold the coverage; those that have not converged are left to the rest, with value and vector 0.
    """
    batch, outputs = like.shape
    most = _leading_allowed(batch, outputs)
    count = min(8, most)
    while True:
        start = torch.randn(
            batch, outputs, count, generator=generator, dtype=torch.float64, device=like.device
        )
        values, vectors = _subspace(product, torch.linalg.qr(start).Q)
        rest = _rest(product, vectors, generator)
        held = float(values.clamp_min(0).sum())
        if count == most or held >= coverage * (held + float(rest.sum())):
            return values, vectors, rest
        count = min(2 * count, most)


def _leading_allowed(batch: int, outputs: int) -> int:
    """Return how many leading eigenvectors of every sample may be kept."""
    return max(1, min(LEADING, KEPT_BYTES // (8 * batch * outputs)))


def _root_steps(batch: int, outputs: int) -> int:
    """Return how many products a draw takes: by the whole batch, so that seeds are the same however it is divided."""
    return min(outputs, max(LEAST_STEPS, min(ROOT_STEPS, KEPT_BYTES // (16 * batch * outputs))))


def _rest(product: Product, vectors: Tensor, generator: torch.Generator) -> Tensor:
    """Estimate ``tr (I − V Vᵀ) B = E εᵀ (I − V Vᵀ) B (I − V Vᵀ) ε``, ``(batch,)``: nothing where ``V`` holds it all."""
    total = vectors.new_zeros(len(vectors))
    for _ in range(TRACE_DRAWS):
        signs = torch.randint(0, 2, vectors.shape[:2], generator=generator, device=vectors.device)
        noise = _without(signs.to(vectors) * 2 - 1, vectors)
        total += (noise * product(noise)).sum(dim=1)
    return (total / TRACE_DRAWS).clamp_min(0)


def _subspace(product: Product, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return Ritz values and vectors of the space that ``SWEEPS`` sweeps turn the basis to."""
    for _ in range(SWEEPS):
        basis = torch.linalg.qr(_each(product, basis)).Q
    images = _each(product, basis)
    values, turns = torch.linalg.eigh(_symmetric(basis.mT @ images))
    order = values.abs().argsort(dim=1, descending=True)
    values, turns = values.gather(1, order), turns.gather(2, order[:, None, :].expand_as(turns))
    vectors = basis @ turns
    residuals = torch.linalg.vector_norm(images @ turns - vectors * values[:, None, :], dim=1)
    good = residuals <= CONVERGED * values.abs().amax(dim=1, keepdim=True)
    return torch.where(good, values, 0), torch.where(good[:, None, :], vectors, 0)


def _each(product: Product, vectors: Tensor) -> Tensor:
    found = torch.empty_like(vectors)
    for place in range(vectors.shape[2]):
        found[:, :, place] = product(vectors[:, :, place])
    return found


def _without(vectors: Tensor, basis: Tensor) -> Tensor:
    return vectors - (basis @ (basis.mT @ vectors[:, :, None])).squeeze(2)


def _symmetric(matrices: Tensor) -> Tensor:
    return (matrices + matrices.mT) / 2
