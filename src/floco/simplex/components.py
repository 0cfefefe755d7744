"""Leading principal directions of many long vectors, by block Lanczos instead of a full decomposition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

_PART = 2**19  # elements converted to float64 at a time
_MORE = 10  # extra directions in a block (oversampling)
_BLOCKS = 20  # maximum number of blocks; with 100 clients and M = 10, 5 span all rows and the result is exact
_CLOSE = 1e-7  # residual at which a direction has converged, relative to its eigenvalue
_SMALL = 1e-7  # lower bound of that eigenvalue, relative to the largest: one signal may be 1,000 times the others
_NOISE = 1e-7  # singular values below it, relative to the largest, are rounding errors (eigenvalues are squares)


def lengths(rows: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean length of each row, (K,) float64; 1 for a row of zeros, so that division is safe."""
    sizes = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, dtype=torch.float64)
    sizes = sizes.clamp_min(torch.finfo(torch.float64).tiny)  # divided by, since squares of tiny numbers underflow
    parts = zip(rows.split(_height(rows)), sizes.split(_height(rows)), strict=True)
    found = torch.cat([(part.double() / size[:, None]).norm(dim=1) * size for part, size in parts])
    return torch.where(found > 0, found, 1.0)


@dataclass(frozen=True)
class Centered:
    """A = rows / divisors - mean, (K, P) in float64, computed in parts: the rows may be gigabytes of float32."""

    rows: torch.Tensor
    divisors: torch.Tensor
    """(K,)."""
    mean: torch.Tensor

    @staticmethod
    def of(rows: torch.Tensor, divisors: torch.Tensor | None = None) -> Centered:
        """Return rows (K, P), each divided by its divisor (None: 1), minus their mean."""
        divisors = torch.ones(len(rows), dtype=torch.float64) if divisors is None else divisors
        parts = zip(rows.split(_height(rows)), divisors.split(_height(rows)), strict=True)
        total = sum((part.double() / by[:, None]).sum(dim=0) for part, by in parts)
        return Centered(rows, divisors, torch.as_tensor(total) / len(rows))

    def __matmul__(self, right: torch.Tensor) -> torch.Tensor:
        """Return A @ right, (K, m), for right (P, m)."""
        product = right.new_empty(len(self.rows), right.shape[1])
        for part, own in zip(self._parts(), product.split(_height(self.rows)), strict=True):
            torch.mm(part, right, out=own)
        return product

    def transposed_times(self, left: torch.Tensor) -> torch.Tensor:
        """Return A^T @ left, (P, m), for left (K, m)."""
        total = left.new_zeros(len(self.mean), left.shape[1])
        for part, own in zip(self._parts(), left.split(_height(self.rows)), strict=True):
            total.addmm_(part.T, own)
        return total

    def largest(self) -> float:
        """Return max |A|."""
        return max(float(torch.linalg.vector_norm(part, ord=torch.inf)) for part in self._parts())

    def _parts(self) -> Iterator[torch.Tensor]:
        """Yield A in blocks of rows, all in the same buffer."""
        height = _height(self.rows)
        place = self.mean.new_empty(min(height, len(self.rows)), len(self.mean))
        for part, by in zip(self.rows.split(height), self.divisors.split(height), strict=True):
            yield torch.div(part, by[:, None], out=place[: len(part)]).sub_(self.mean)


def _height(rows: torch.Tensor) -> int:
    return max(1, _PART // rows.shape[1])


def principal(centered: Centered, number: int) -> torch.Tensor:
    """Return the first r = min(number, K, P) principal directions of A, (r, P), their largest |loading| positive.

    Block Lanczos (Golub, Underwood 1977) on A A^T with full orthogonalisation and a fixed start. It takes a few
    products with A, O(K P) each, where a singular value decomposition takes O(K^2 P). Both agree up to rounding, unless
    singular values nearly coincide after `_BLOCKS` blocks; their directions may then be any that explain about as much.

    The sign convention is scikit-learn's; it matters, since the projection that follows is not invariant to signs.
    Directions beyond the rank, which are arbitrary, are zero: all scores along them are zero, also a newcomer's.

    Args:
        centered: A.
        number: wanted directions, >= 1.
    """
    rows, columns = centered.rows.shape
    number = min(number, rows, columns)
    width = number + _MORE
    start = torch.randn(columns, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    most = min(rows, _BLOCKS * width)
    basis, images = start.new_empty(rows, most), start.new_empty(rows, most)  # images under A A^T; m columns are in use
    block, m = centered @ start, 0
    for _ in range(_BLOCKS):
        block = _orthonormal(block, basis[:, :m])[:, : basis.shape[1] - m]
        if block.shape[1] == 0:  # the basis spans all rows
            break
        basis[:, m : m + block.shape[1]] = block
        block = centered @ centered.transposed_times(block)
        images[:, m : m + block.shape[1]] = block
        m += block.shape[1]
        values, mixes = torch.linalg.eigh(basis[:, :m].T @ images[:, :m])  # ascending
        values, mixes = values[-number:], mixes[:, -number:]
        left = basis[:, :m] @ mixes  # (K, r)
        residuals = (images[:, :m] @ mixes - left * values).norm(dim=0)
        if bool((residuals <= _CLOSE * values.clamp_min(_SMALL * values[-1])).all()):
            break
    _, values, directions = torch.linalg.svd(centered.transposed_times(left).T, full_matrices=False)
    directions = torch.where((values > _NOISE * values[0])[:, None], directions, 0)
    directions = torch.cat([directions, directions.new_zeros(number - len(directions), columns)])
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return directions * largest.sign()


def _orthonormal(block: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Return orthonormal columns that span the part of the block outside the basis."""
    size = block.norm()
    for _ in range(2):  # twice: once leaves rounding errors of the subtracted part
        block = block - basis @ (basis.T @ block)
    q, r = torch.linalg.qr(block)
    columns: torch.Tensor = q[:, r.diagonal().abs() > 1e-12 * size]
    return columns
