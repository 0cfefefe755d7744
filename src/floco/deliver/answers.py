"""What a model says of samples: predictions as a table and as arrays, and what they are worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from floco.client.setup import Setup
from floco.deliver.measures import Measured, measure_samples
from floco.deliver.personal import outputs, predict_mean, prediction_table
from floco.server.progress import Progress

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Answer:
    """What a model gives for n samples."""

    setup: Setup = field(repr=False)
    predictions: torch.Tensor
    """(n, ...) float64, e.g. probabilities."""
    measured: Measured | None = None
    """What the predictions are worth, if targets were given."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per sample: for classification label, its probability, and those of all labels."""
        return prediction_table(self.setup, self.predictions)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """`predictions`, and for a label at each place `y`, the labels."""
        return self.setup.task.arrays(self.predictions, self.setup.federation.schema.labels)


def answer(
    setup: Setup, progress: Progress, x: Any, y: Any, *, client: str | None, group: Any, at: str, mixtures: int
) -> Answer:
    """Return what a model says of samples, from one pass; arguments are those of `Run.answer`."""
    schema, task = setup.federation.schema_of(client), setup.task
    if mixtures:
        return Answer(setup, predict_mean(setup, progress, client, schema.samples(x, "x"), mixtures, at=at))
    raw, targets = (schema.samples(x, "x"), None) if y is None else schema.labelled(x, y)
    found = outputs(setup, progress, client, raw, at=at)
    measured = None
    if targets is not None:
        measured = measure_samples(setup, progress, client, found, targets, group=group, at=at)
    return Answer(setup, task.activate(found.double()), measured)
