"""The settings of training, and its step size in each round."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from floco.core.errors import FlocoError
from floco.core.settings import Settings, setting


@dataclass(frozen=True)
class Training(Settings):
    """How clients train, and for how many rounds; the same for every algorithm."""

    rounds: int = setting(100, "communication rounds", low=1)
    fraction: float = setting(0.5, "share of the clients that train in a round", above=0, high=1)
    epochs: int = setting(1, "local epochs a round", low=1)
    steps: int | None = setting(
        None, "batches that each client takes a round, in place of epochs (empty: epochs count)", low=1
    )
    batch_size: int = setting(16, "samples a step", low=1)
    optimizer: str = setting(
        "sgd",
        "sgd, or adamw: torch's betas and eps, moments fresh each round, decay apart from the gradient",
        choices=("sgd", "adamw"),
    )
    lr: float = setting(0.05, "step size; adamw needs a smaller one, about 0.001", above=0)
    head_lr: float | None = setting(
        None, "step size of the head, the linear layer that gives the logits (empty: lr)", above=0
    )
    schedule: str = setting(
        "constant",
        "step size over the rounds t = 1..T: lr times 1, (1 + cos(pi (t-1)/T)) / 2, or 1 - (t-1)/T",
        choices=("constant", "cosine", "linear"),
    )
    warmup: int = setting(0, "W: in the first W rounds the step size is also multiplied by t / (W + 1)", low=0)
    momentum: float = setting(0.5, "momentum of SGD, fresh each round", low=0, below=1)
    weight_decay: float = setting(
        0.0005, "L2 decay of every trained tensor, added to the gradient (adamw: lr times it is taken off)", low=0
    )
    clip: float | None = setting(
        None, "largest norm of the gradient of all tensors that a step trains but mixing weights (empty: any)", above=0
    )
    precision: str = setting("float32", "arithmetic of the network; tensors stay float32", choices=("float32", "bf16"))
    buffers: str = setting(
        "average", "floating buffers (BatchNorm): averaged, or kept on each client", choices=("average", "local")
    )

    def __post_init__(self) -> None:
        """Check the fields that depend on each other."""
        Settings.__post_init__(self)
        if self.warmup >= self.rounds:
            raise FlocoError(
                f"warmup must be below training.rounds ({self.rounds}), else lr is never reached; got {self.warmup}"
            )

    def rate(self, number: int) -> float:
        """Return the factor of the step size in round `number`, counted from 1: in (0, 1]."""
        done = (number - 1) / self.rounds
        decayed = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done}[self.schedule]
        return decayed * min(1.0, number / (self.warmup + 1))

    def require_sgd(self, name: str, why: str) -> None:
        """Raise if the method `name`, whose rule is of plain SGD, would be trained otherwise."""
        others = {"clip": self.clip, "head_lr": self.head_lr}
        given = [f"{n} = {v:g}" for n, v in others.items() if v is not None]
        if self.optimizer != "sgd" or given:
            given = given or [f"optimizer = {self.optimizer!r}"]
            raise FlocoError(f"{name} needs training.optimizer = 'sgd' without clip and head_lr, got {given[0]}: {why}")

    def at(self, number: int) -> Self:
        """Return the settings with the step size of round `number`, counted from 1."""
        rate = self.rate(number)
        return self if rate == 1 else replace(self, lr=self.lr * rate)
