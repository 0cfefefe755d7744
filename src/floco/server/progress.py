"""What the training loop starts from and yields: the federation after a round, its failures, and the plan of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from floco.core.mixing import CENTER, CENTER_TENSOR, Mixing
from floco.core.values import Row, ServerState
from floco.server.evaluation import Counts, Evaluation
from floco.storage.memories import Memories

FAILURE = ("round", "client", "reason")
"""Columns of failures.csv."""


@dataclass(frozen=True)
class Failure:
    """A client that failed in a round, and why."""

    round: int
    client: str
    reason: str
    trace: str = field(default="", repr=False, compare=False)

    @property
    def row(self) -> Row:
        """The failure as a line of failures.csv."""
        return {name: getattr(self, name) for name in FAILURE}

    def __str__(self) -> str:
        """Return the failure as shown to users."""
        return f'round {self.round}, client "{self.client}": {self.reason}'


@dataclass(frozen=True)
class Progress:
    """The federation after `state.round` rounds: what the next round needs, and results of the last one."""

    state: ServerState
    memories: Memories = field(default_factory=Memories)
    """The clients' memories; clients that never trained are absent."""
    participated: Mapping[str, int] = field(default_factory=dict)
    """Number of rounds in which a client's update was averaged."""
    last_trained: Mapping[str, int] = field(default_factory=dict)
    """The last round in which a client's update was averaged."""
    counts: Counts = field(default_factory=Counts)
    """Counts since the last evaluation."""
    changed: tuple[str, ...] = ()
    """Clients whose memory changed in this round."""
    failures: tuple[Failure, ...] = ()
    """Clients that failed in this round."""
    evaluation: Evaluation | None = None

    @property
    def round(self) -> int:
        """Rounds completed."""
        return self.state.round

    def center(self, mixing: Mixing, client: str) -> torch.Tensor | None:
        """Return a client's center (M,), the server's or the one that the client keeps; None if it has none."""
        if not mixing.own_centers:
            return self.state.by_client.get(client, {}).get(CENTER)
        memory = self.memories.of(client)
        return None if memory is None else memory.tensors.get(CENTER_TENSOR)

    def centers(self, mixing: Mixing) -> dict[str, torch.Tensor]:
        """Return the centers of all clients that have one."""
        found = {c: self.center(mixing, c) for c in (self.participated if mixing.own_centers else self.state.by_client)}
        return {c: center for c, center in found.items() if center is not None}


@dataclass(frozen=True)
class Plan:
    """When the loop evaluates, and how many failures it tolerates."""

    evaluate_every: int = 5
    max_failed: int = 5
