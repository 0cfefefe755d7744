"""Mixtures of the endpoints of named parameters: a function from tensors to tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from floco.core.adapters import require_lora
from floco.core.errors import FlocoError, nearest
from floco.core.values import Layout, Tensors, fast_copy, strip_prefix

CENTER = "center"
"""Name of a client's center in the server's state and in messages."""
CENTER_TENSOR = "at/center"
"""Its name among working tensors and in memories: a network may have a parameter called `center`."""


@dataclass(frozen=True)
class Mixing:
    """The mixed parameters; in working tensors each of them is a stack of M endpoints."""

    names: tuple[str, ...]
    endpoints: int
    """M."""
    radius: float
    """L1 radius of the clients' subregions."""
    prefix: str = ""
    """Where a client's own simplex is among its working tensors; "": the shared one is its own."""
    own_centers: bool = False
    """Whether clients find their centers themselves, and keep them: the server has none, and no map to new ones."""

    @staticmethod
    def chosen(layout: Layout, mix: str | tuple[str, ...]) -> tuple[str, ...]:
        """Return the parameters that `algorithm.mix` asks for: "last", "lora", "all", or names of parameters."""
        if mix == "last":
            if layout.last is None:
                raise FlocoError(
                    'algorithm.mix = "last" mixes the weight of the nn.Linear that gives the logits, and the model has '
                    'none that is trained; set algorithm.mix to the names of the parameters to mix, or to "all"'
                )
            return (layout.last,)
        if mix == "all":
            return layout.parameters
        if mix == "lora":
            return require_lora('algorithm.mix = "lora"', layout)[1]
        names = (mix,) if isinstance(mix, str) else mix
        if not names or len(set(names)) < len(names):
            raise FlocoError(f"algorithm.mix must name one parameter at least, and none twice, got {list(names)}")
        for name in names:
            if name not in layout.parameters:
                hint = nearest(name, layout.parameters)
                raise FlocoError(f"algorithm.mix names {name!r}, which is no trained parameter of the model{hint}")
        return names

    def __call__(self, tensors: Mapping[str, torch.Tensor], alpha: torch.Tensor) -> Tensors:
        """Return the tensors with the endpoints W (M, ...) replaced by W(alpha) = sum_m alpha_m W_m (...).

        By linearity dL/dW_m = alpha_m dL/dW, so one backward pass reaches all endpoints.
        """
        return {**tensors, **self.mixed(tensors, alpha)}

    def mixed(self, tensors: Mapping[str, torch.Tensor], alpha: torch.Tensor) -> Tensors:
        """Return W(alpha) of the mixed parameters alone."""
        made = {n: torch.einsum("m,m...->...", alpha.to(tensors[n].dtype), tensors[n]) for n in self.names}
        return {n: fast_copy(t) if t.ndim == 4 else t for n, t in made.items()}

    def stepping(self, tensors: Mapping[str, torch.Tensor], alpha: torch.Tensor, step: str) -> Tensors:
        """Return the same values with gradients for `algorithm.step`.

        "endpoint": those of the endpoints. As dL/dW_m = alpha_m dL/dW, an SGD step moves W(alpha) by |alpha|^2 lr dL/dW
        then, at random mixtures by 2 / (M + 1) of a plain layer's step on average, and W(1/M) by 1/M of it. "mixture":
        divided by |alpha|^2, so that W(alpha) moves by lr dL/dW. "middle": times M, so that W(1/M) does at any mixture;
        W(alpha) moves by M |alpha|^2 times that, by M times at an endpoint. With M = 1 they are equal, to the bit.
        """
        mixed = self(tensors, alpha)
        if step == "endpoint":
            return mixed
        size = 1 / self.endpoints if step == "middle" else alpha.square().sum()
        return {**mixed, **{n: mixed[n].detach() + (mixed[n] - mixed[n].detach()) / size for n in self.names}}

    @property
    def middle(self) -> torch.Tensor:
        """1/M, (M,) float64."""
        return torch.full((self.endpoints,), 1 / self.endpoints, dtype=torch.float64)

    def point(self, tensors: Tensors) -> tuple[Tensors, torch.Tensor]:
        """Return a client's own simplex and its center (M,) on it, 1/M if it has none, from its working tensors."""
        return strip_prefix(tensors, self.prefix), tensors.get(CENTER_TENSOR, self.middle)

    def signal(self, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return a client's gradient signal: the flattened pseudo-gradient `before - after` of all endpoints, (P,)."""
        return torch.cat([(before[n].double() - after[n].double()).flatten() for n in self.names])
