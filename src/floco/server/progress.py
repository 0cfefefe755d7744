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

    def centers(self, mixing: Mixing) -> dict[str, torch.Tensor]:
        """Return the centers (M,) of the clients that have one: the server's, or those that clients keep."""
        if not mixing.own_centers:
            return {c: own[CENTER] for c, own in self.state.by_client.items() if CENTER in own}
        kept = {c: self.memories.of(c) for c in self.participated}
        memories = {c: m.tensors for c, m in kept.items() if m is not None}
        return {c: m[CENTER_TENSOR] for c, m in memories.items() if CENTER_TENSOR in m}


@dataclass(frozen=True)
class Plan:
    """When the loop evaluates, and how many failures it tolerates."""

    evaluate_every: int = 5
    max_failed: int = 5
