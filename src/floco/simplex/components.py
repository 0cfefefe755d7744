"""The leading principal directions of many long vectors, without decomposing them all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

_PART = 2**19  # elements that are turned to float64 at once
_MORE = 10  # directions in a block beyond those wanted
_BLOCKS = 20  # at most; 100 clients and M = 10 are spanned by 5, and the result is exact
_CLOSE = 1e-7  # residual at which a direction counts as found, relative to its eigenvalue
_SMALL = 1e-7  # eigenvalues below it, relative to the largest, count as it: one client may send a thousand times the others' signal
_NOISE = 1e-7  # singular values below it, relative to the largest, are rounding: eigenvalues are their squares


def lengths(rows: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean length of each row, (K,) float64; 1 for a row of zeros, so that it can be divided by."""
    sizes = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, dtype=torch.float64).clamp_min(torch.finfo(torch.float64).tiny)
    parts = zip(rows.split(_height(rows)), sizes.split(_height(rows)), strict=True)
    found = torch.cat([(part.double() / size[:, None]).norm(dim=1) * size for part, size in parts])  # squares of tiny numbers would vanish
    return torch.where(found > 0, found, 1.0)


@dataclass(frozen=True)
class Centered:
    """A = rows / divisors - mean (K, P) in float64, never held as a whole: rows may be gigabytes of float32."""

    rows: torch.Tensor
    divisors: torch.Tensor
    """(K,)."""
    mean: torch.Tensor

    @staticmethod
    def of(rows: torch.Tensor, divisors: torch.Tensor | None = None) -> Centered:
        """Return rows (K, P), each divided by its divisor (none: 1), less their mean."""
        divisors = torch.ones(len(rows), dtype=torch.float64) if divisors is None else divisors
        parts = zip(rows.split(_height(rows)), divisors.split(_height(rows)), strict=True)
        total = sum((part.double() / by[:, None]).sum(dim=0) for part, by in parts)
        return Centered(rows, divisors, torch.as_tensor(total) / len(rows))

    def __matmul__(self, right: torch.Tensor) -> torch.Tensor:
        """Return A right, for right (P, m)."""
        product = right.new_empty(len(self.rows), right.shape[1])
        for part, own in zip(self._parts(), product.split(_height(self.rows)), strict=True):
            torch.mm(part, right, out=own)
        return product

    def transposed_times(self, left: torch.Tensor) -> torch.Tensor:
        """Return A^T left, for left (K, m)."""
        total = left.new_zeros(len(self.mean), left.shape[1])
        for part, own in zip(self._parts(), left.split(_height(self.rows)), strict=True):
            total.addmm_(part.T, own)
        return total

    def largest(self) -> float:
        """Return max |A|."""
        return max(float(torch.linalg.vector_norm(part, ord=torch.inf)) for part in self._parts())

    def _parts(self) -> Iterator[torch.Tensor]:
        """Yield some rows of A at a time, all in the same place."""
        height = _height(self.rows)
        place = self.mean.new_empty(min(height, len(self.rows)), len(self.mean))
        for part, by in zip(self.rows.split(height), self.divisors.split(height), strict=True):
            yield torch.div(part, by[:, None], out=place[: len(part)]).sub_(self.mean)


def _height(rows: torch.Tensor) -> int:
    return max(1, _PART // rows.shape[1])


def principal(centered: Centered, number: int) -> torch.Tensor:
    """Return the first r = min(number, K, P) principal directions of centered rows, (r, P), the largest |loading| positive.

    A block Lanczos process (Golub, Underwood 1977) on A A^T with full orthogonalisation, from a fixed start: its cost is a few products
    with A, O(K P) each, where a singular value decomposition takes O(K^2 P). The same up to rounding, unless singular values
    nearly coincide after `_BLOCKS` blocks; then the directions belonging to them may be any that do about as well.

    The rule for the sign is scikit-learn's. It matters: the projection that follows is not sign-blind. Directions beyond the
    rank are arbitrary, and zero here: all scores along them are zero, also those of a newcomer.

    Args:
        centered: A.
        number: directions wanted, at least 1.
    """
    rows, columns = centered.rows.shape
    number = min(number, rows, columns)
    width = number + _MORE
    start = torch.randn(columns, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis, images = (start.new_empty(rows, min(rows, _BLOCKS * width)) for _ in range(2))  # of A A^T; the first m columns are in use
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
        if bool(((images[:, :m] @ mixes - left * values).norm(dim=0) <= _CLOSE * values.clamp_min(_SMALL * values[-1])).all()):
            break
    _, values, directions = torch.linalg.svd(centered.transposed_times(left).T, full_matrices=False)
    directions = torch.where((values > _NOISE * values[0])[:, None], directions, 0)
    directions = torch.cat([directions, directions.new_zeros(number - len(directions), columns)])
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return directions * largest.sign()


def _orthonormal(block: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Return orthonormal columns that span what the block adds to the basis: as many as there are."""
    size = block.norm()
    for _ in range(2):  # once leaves rounding of the part that is taken away
        block = block - basis @ (basis.T @ block)
    q, r = torch.linalg.qr(block)
    columns: torch.Tensor = q[:, r.diagonal().abs() > 1e-12 * size]
    return columns
