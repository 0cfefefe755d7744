"""What is learned: a loss, metrics with their directions, and how targets and predictions look."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
import torch

from floco.core.errors import FlocoError
from floco.core.inputs import array, by_name
from floco.core.intervals import Statistic
from floco.core.metrics import Metric, Metrics, Score, resample_scores
from floco.core.settings import Settings


class Labels(NamedTuple):
    """What class numbers, or the columns of vector targets, mean; empty for tasks without names."""

    names: tuple[str, ...] = ()
    """Names to show, by class number."""
    values: tuple[str, ...] = ()
    """Labels as the source has them, as text, by class number."""


class Guess(Protocol):
    """How well some samples can be predicted without a model, from each other's targets."""

    @property
    def loss(self) -> float:
        """Mean loss of the guess."""

    def beats(self, value: float, loss: float) -> bool:
        """Return whether to refuse a model with this primary metric and mean loss on the same samples."""

    def doubts(self, value: float, loss: float) -> bool:
        """Return whether the samples do not show that such a model is better than the guess."""

    def compare(self, value: float, loss: float) -> str:
        """Return model and guess in numbers, as text."""


class Task(Settings, ABC):
    """What a model is trained for and judged by; subclasses are frozen dataclasses.

    Outputs are what a network returns for n samples, (n, ...) float; targets are (n, ...), as `targets` returns them.
    """

    name: ClassVar[str]
    """The word by which users choose it."""
    metrics: ClassVar[Metrics]
    """The attributes of a score that are reported, with their directions. The first is the primary one; `loss` is
    added if it is missing."""
    further: ClassVar[Metrics] = Metrics()
    """Metrics that are no sums over samples: measured where the samples are, on demand and after the last round."""
    score_type: ClassVar[type[Score]]
    """What `score` returns."""
    kind: ClassVar[str] = "numbers"
    """What targets are, for error messages."""
    counted: ClassVar[str] = "samples"
    """What `frequencies` counts."""
    padding: ClassVar[int | float | None] = None
    """A target that `loss` ignores, so that clients' batches of unequal sizes can be stacked; None: there is none."""
    convex: ClassVar[bool] = False
    """Whether the loss is convex in the outputs."""
    labelled: ClassVar[bool] = False
    """Whether targets are class numbers. What needs class frequencies (some splits, FedRoD) refuses other tasks."""
    named: ClassVar[bool] = False
    """Whether outputs stand for classes or labels, which `data.labels` names; sites must agree on them."""
    ids: ClassVar[bool] = False
    """Whether integer inputs are ids, such as tokens, unless `data.kind` says otherwise."""
    graph_names: ClassVar[tuple[str, str]] = ("outputs", "predictions")
    """Names of outputs and predictions in exported graphs."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Add the loss to the metrics."""
        super().__init_subclass__(**kwargs)
        if (own := vars(cls).get("metrics")) is not None:
            cls.metrics = Metrics({**own, **({} if "loss" in own else {"loss": Metric(higher=False)})})

    @property
    def primary(self) -> str:
        """Name of the metric by which models, clients and methods are compared."""
        return self.metrics.primary

    @property
    def likelihood(self) -> Task | None:
        """The task whose loss of n samples, times n, is their negative log-likelihood; None: the loss has no scale."""
        return None

    @abstractmethod
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss, a scalar; samples whose target is `padding` do not count."""

    def shift(self, counts: Sequence[int]) -> torch.Tensor | None:
        """Return what is added to a client's own outputs, (C,), from its training samples by class; None: nothing."""
        return None

    def training_targets(self, targets: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Return the targets (n, ...) that a client trains on, which `loss` takes as well as plain ones."""
        return targets

    @abstractmethod
    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> Score:
        """Return the sums from which the metrics follow; scores of disjoint parts of the data add up."""

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each sample, (n,)."""
        return torch.stack([self.loss(o, t) for o, t in zip(outputs.split(1), targets.split(1), strict=True)])

    def decides(self, outputs: int) -> bool:
        """Return whether a network with this number of outputs decides between two answers, at a threshold."""
        return False

    def choose_threshold(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Return the prediction from which a sample counts as positive, from training rows; if the task `decides`."""
        raise NotImplementedError

    def classify(self, outputs: torch.Tensor) -> torch.Tensor | None:
        """Return the class numbers (n,) that a network decides for; None for a task without one class a sample."""
        return None

    def shares(
        self, outputs: torch.Tensor, targets: torch.Tensor, thresholds: torch.Tensor | None
    ) -> dict[str, tuple[int, int]]:
        """Return the metrics that are shares of independent samples, as hits and samples; `thresholds` is (n,)."""
        return {}

    def resampler(self, outputs: torch.Tensor, targets: torch.Tensor, *, further: bool = True) -> Statistic:
        """Return the function that gives the primary metric of resamples, and those of `further` but `shares`."""
        return resample_scores(self.score, self.value, self.primary, outputs, targets)

    def activate(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return predictions, e.g. probabilities, from outputs; also the last step of exported graphs."""
        return outputs

    def present(self, predictions: torch.Tensor, labels: Labels) -> dict[str, Any]:
        """Return the columns of `floco predict`, n values each, from predictions (n, ...); several labels as a list."""
        flat = predictions.reshape(len(predictions), -1)
        numbered = ["prediction"] if flat.shape[1] == 1 else [f"prediction_{i}" for i in range(flat.shape[1])]
        names = labels.names if 1 < len(labels.names) == flat.shape[1] else numbered
        return dict(zip(names, flat.T.tolist(), strict=True))

    def arrays(self, predictions: torch.Tensor, labels: Labels) -> dict[str, np.ndarray]:
        """Return what `floco predict` writes into an npz file: predictions (n, ...), and `y` if places have labels."""
        return {"predictions": predictions.numpy()}

    def labels(self, values: Any, where: str, given: Sequence[str] = (), names: Any = None) -> Labels:
        """Return what class numbers mean.

        Args:
            values: the targets of a source.
            where: what an error calls them.
            given: the labels that the user declared (`data.labels`).
            names: the names that the source has for them.
        """
        return Labels()

    def targets(self, values: Any, where: str, labels: Labels) -> torch.Tensor:
        """Return checked targets (N, ...); by default finite numbers, as float32.

        Args:
            values: the targets of a source, or of new samples.
            where: what an error calls them.
            labels: what class numbers mean, as `labels` returned it for the training data.

        Raises:
            FlocoError: they cannot be targets of this task.
        """
        found = array(by_name(values, labels.names, where), where)
        if found.dtype.kind not in "biuf" or found.ndim < 1:
            raise FlocoError(f"{where} must be numbers (N, ...) for task {self.name}, got {found.shape} {found.dtype}")
        with np.errstate(over="ignore"):
            made = torch.from_numpy(found.astype(np.float32))
        if missing := int((~torch.isfinite(made)).reshape(len(made), -1).any(1).sum()):
            raise FlocoError(f"{where}: {missing} of {len(made)} are missing or infinite; leave these samples out")
        return made

    def outputs(self, targets: torch.Tensor, labels: Labels) -> int:
        """Return the number of outputs that a network needs for a sample."""
        return targets[0].numel()

    def frequencies(self, targets: torch.Tensor, labels: int) -> tuple[int, ...]:
        """Return how often each label occurs in targets (n, ...), of which there are `labels`; (): numbers."""
        return ()

    def statistics(self, targets: torch.Tensor) -> tuple[float, ...]:
        """Return the sums over targets (n, ...) that `fitted` needs; (): none. Sums of disjoint parts add up."""
        return ()

    def plausible(self, sums: Sequence[float], n: int) -> bool:
        """Return whether `sums`, as many as `statistics` gives, can be those of n targets; some may be made up."""
        return all(abs(v) < 1e60 for v in sums)

    def fitted(self, sums: Sequence[float], labels: Labels) -> Self:
        """Return the task with what it takes from the targets of all training parts, e.g. their mean.

        That task returns itself: over Flower, sites get it as a configuration.

        Args:
            sums: `statistics` of the training parts, added up.
            labels: what class numbers mean.
        """
        return self

    def check(self, outputs: torch.Tensor, targets: torch.Tensor, labels: Labels, when: str) -> None:
        """Raise if a network's outputs for some samples cannot be meant for this task; `when` says in which mode."""

    def doubt(self, outputs: torch.Tensor, operation: str) -> str:
        """Return a warning if outputs look wrong, else ""; `operation` is autograd's name of the one that gave them."""
        return ""

    def guess(self, targets: torch.Tensor, parts: Sequence[torch.Tensor], labels: Labels) -> Guess | None:
        """Return how well the targets of each part (indices) are predicted by those of the others, if that is known."""
        return None

    def value(self, score: Score) -> float:
        """Return the primary metric of a score; NaN if it is unknown, e.g. the AUROC where all have a label."""
        found = getattr(score, self.primary)
        return math.nan if found is None else float(found)

    def values(self, score: Score | None) -> dict[str, float | None]:
        """Return all metrics of a score by name; without a score, all are None."""
        return {name: None if score is None else getattr(score, name) for name in self.metrics}


def add_statistics(parts: Sequence[Sequence[float]]) -> list[float]:
    """Return the sums of `Task.statistics` of several parts, in any order of the parts; shorter ones end in zeros."""
    return [math.fsum(values) for values in zip_longest(*parts, fillvalue=0.0)]
