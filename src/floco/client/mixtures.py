"""Mixtures of one simplex on given samples: outputs, the mixture of lowest loss, and mean predictions."""

from __future__ import annotations

from functools import cached_property

import torch

from floco.client.predict import compute_outputs_of_each
from floco.client.setup import Setup
from floco.client.trial import CHUNK
from floco.core.inputs import Inputs, chunks
from floco.core.inputs import rows as some
from floco.core.mixing import Mixing
from floco.core.values import Tensors
from floco.simplex.optimum import lowest, with_prior


class Mixtures:
    """The models W(alpha) of one simplex on n raw samples.

    If outputs are linear in the mixture (only the last layer is mixed; verified numerically), the endpoints are
    evaluated once, and every mixture is a weighted sum of theirs: the body does not run again.
    """

    def __init__(self, setup: Setup, mixing: Mixing, simplex: Tensors, x: Inputs) -> None:
        """Take a simplex (network tensors; the mixed ones hold endpoints, (M, ...)) and raw samples x (n, C, ...)."""
        self._setup = setup.float32  # coarser rounding is not convex
        self._mixing, self._simplex, self._x = mixing, simplex, x
        self.endpoints, self.middle = mixing.endpoints, mixing.middle

    @cached_property
    def _corners(self) -> torch.Tensor | None:
        """Outputs of the endpoints, (M, n, ...) float64, if those of any mixture are their weighted mean, else None."""
        if len(names := {*self._mixing.names}) > 1 and not names <= {*self._setup.network.layout.head}:
            return None
        trial = torch.arange(1, self.endpoints + 1, dtype=torch.float64) / (self.endpoints * (self.endpoints + 1) / 2)
        models = [self._mixing(self._simplex, alpha.float()) for alpha in (*torch.eye(self.endpoints), trial)]
        *found, mixed = (made.double() for made in compute_outputs_of_each(self._setup, models, self._x))
        corners = torch.stack(found)
        return corners if torch.allclose(torch.einsum("m,m...->...", trial, corners), mixed, atol=1e-3) else None

    @property
    def linear(self) -> bool:
        """Whether outputs are linear in the mixture."""
        return self._corners is not None

    @property
    def convex(self) -> bool:
        """Whether the loss is convex in the mixture."""
        return self.linear and self._setup.task.convex

    def outputs(self, alpha: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the outputs (n, ...) float64 at alpha (M,), differentiable in it, for all samples or for `rows`."""
        if self._corners is not None:
            corners = self._corners if rows is None else self._corners[:, rows]
            return torch.einsum("m,m...->...", alpha.double(), corners)
        device, predict = self._setup.device, self._setup.predictor(train=False)
        tensors = {n: t.to(device) for n, t in self._mixing(self._simplex, alpha.float()).items()}
        x = self._x if rows is None else some(self._x, rows)
        parts = [predict(tensors, self._setup.inputs(raw)).cpu() for raw in chunks(x, CHUNK)]
        return torch.cat(parts).double()

    def best(
        self, y: torch.Tensor, *, near: torch.Tensor | None = None, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the mixture (M,) of lowest loss on the samples with targets y (n, ...), or on `rows` of them.

        alpha = argmin sum_i loss(f(x_i; alpha), y_i) + |alpha - near|^2 (`near` None: 1/M), a convex problem if only
        the last layer is mixed.
        """
        chosen = y if rows is None else y[rows]
        prior = self.middle if near is None else near.double()
        objective = with_prior(lambda a: self._setup.task.loss(self.outputs(a, rows), chosen), prior, len(chosen))
        return lowest(objective, prior, convex=self.convex)

    @torch.no_grad()
    def mean_predictions(self, alphas: torch.Tensor) -> torch.Tensor:
        """Return the predictions (n, ...) float64, e.g. probabilities, averaged over the mixtures alphas (S, M)."""
        total = torch.zeros(())
        for alpha in alphas:
            total = total + self._setup.task.activate(self.outputs(alpha))
        return total / len(alphas)


def find_best(setup: Setup, client: str, mixing: Mixing, simplex: Tensors, center: torch.Tensor) -> torch.Tensor:
    """Return the mixture (M,) of lowest loss on a client's training samples, near its center (M,)."""
    train = setup.divide(client)[0]
    mixtures = Mixtures(setup, mixing, simplex, some(setup.federation.x, train))
    return mixtures.best(setup.federation.y[train], near=center)
