"""Mixtures of one simplex on given samples: logits, the mixture of lowest loss, and mean probabilities."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch.nn.functional import cross_entropy

from floco.client.predict import logits_of_each
from floco.client.setup import Setup
from floco.client.trial import CHUNK
from floco.core.values import Tensors
from floco.simplex import Mixing
from floco.simplex.optimum import lowest


class Mixtures:
    """The models W(alpha) of one simplex on n raw samples.

    If logits are linear in the mixture (only the last layer is mixed; verified numerically), the endpoints are
    evaluated once, and every mixture is a weighted sum of their logits: the body does not run again.
    """

    def __init__(self, setup: Setup, mixing: Mixing, simplex: Tensors, x: torch.Tensor) -> None:
        """Take a simplex (network tensors; the mixed ones hold endpoints, (M, ...)) and raw samples x (n, C, ...)."""
        self._setup = replace(
            setup, training=replace(setup.training, precision="float32")
        )  # coarser rounding is not convex
        self._mixing, self._simplex, self._x = mixing, simplex, x
        self.endpoints = len(simplex[mixing.names[0]])

    @property
    def middle(self) -> torch.Tensor:
        """1/M, (M,) float64."""
        return torch.full((self.endpoints,), 1 / self.endpoints, dtype=torch.float64)

    @cached_property
    def _corners(self) -> torch.Tensor | None:
        """Logits of the endpoints, (M, n, C) float64, if those of any mixture are their weighted mean, else None."""
        if len(self._mixing.names) > 1:
            return None
        trial = torch.arange(1, self.endpoints + 1, dtype=torch.float64) / (self.endpoints * (self.endpoints + 1) / 2)
        models = [self._mixing(self._simplex, alpha.float()) for alpha in (*torch.eye(self.endpoints), trial)]
        *found, mixed = (logits.double() for logits in logits_of_each(self._setup, models, self._x))
        corners = torch.stack(found)
        return corners if torch.allclose(torch.einsum("m,mnc->nc", trial, corners), mixed, atol=1e-3) else None

    @property
    def linear(self) -> bool:
        """Whether logits are linear in the mixture; the loss is then convex in it."""
        return self._corners is not None

    def logits(self, alpha: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits (n, C) float64 at alpha (M,), differentiable in it, for all samples or for `rows`."""
        if self._corners is not None:
            corners = self._corners if rows is None else self._corners[:, rows]
            return torch.einsum("m,mnc->nc", alpha.double(), corners)
        device, predict = self._setup.device, self._setup.predictor(train=False)
        tensors = {n: t.to(device) for n, t in self._mixing(self._simplex, alpha.float()).items()}
        x = self._x if rows is None else self._x[rows]
        parts = [predict(tensors, self._setup.inputs(raw)).cpu() for raw in x.split(CHUNK)]
        return torch.cat(parts).double()

    def best(
        self, y: torch.Tensor, *, near: torch.Tensor | None = None, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the mixture (M,) of lowest loss on the samples with labels y (n,), or on `rows` of them.

        alpha = argmin sum_i CE(f(x_i; alpha), y_i) + |alpha - near|^2, a convex problem if only the last layer is
        mixed. The second term is a Gaussian prior around `near` (None: 1/M): it dominates if there are few samples, and
        loses its influence as their number grows.
        """
        chosen = y if rows is None else y[rows]
        prior = self.middle if near is None else near.double()

        def objective(alpha: torch.Tensor) -> torch.Tensor:
            return cross_entropy(self.logits(alpha, rows), chosen) + (alpha - prior).square().sum() / len(chosen)

        return lowest(objective, prior, convex=self.linear)

    @torch.no_grad()
    def mean_probabilities(self, alphas: torch.Tensor) -> torch.Tensor:
        """Return the probabilities (n, C) float64 averaged over the mixtures alphas (S, M)."""
        total = torch.zeros(())
        for alpha in alphas:
            total = total + self.logits(alpha).softmax(dim=1)
        return total / len(alphas)
