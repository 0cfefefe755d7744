"""The models of a run: each client's own, and the global one."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import torch

from floco.client.mixtures import Mixtures, find_best
from floco.client.predict import compute_outputs, find_global_model
from floco.client.round import adapt, find_models
from floco.client.setup import Setup
from floco.core.errors import FlocoError
from floco.core.inputs import Inputs
from floco.core.mixing import Mixing
from floco.core.random import one_thread, stream, with_gradients
from floco.core.settings import plain
from floco.core.values import Combined, Message, Tensors
from floco.server.progress import Progress
from floco.simplex import sample_subregion

POINTS = ("center", "best")
"""Points on the simplex for a client's own model: its center, or the best mixture for its training part."""


class Model(NamedTuple):
    """A model to use."""

    tensors: Tensors | Combined
    """Parameters and buffers of the network, or of several."""
    point: torch.Tensor | None
    """Its point on the simplex, (M,); None: it is at none."""
    taken: str = ""
    """Which of its candidates the client takes home; "" with `deliver.model = "personal"`."""


def deliver(setup: Setup, progress: Progress, client: str | None, *, at: str = "center") -> Model:
    """Return a client's own or the global model.

    A method may have a model of several networks.

    Args:
        setup: the fixed part of the run.
        progress: the state of the run.
        client: the client's id; None: the global model.
        at: "center": the personal model as evaluated; "best" (Floco and Floco+): alpha = argmin of the loss on the
            client's training part, near its center.

    Raises:
        FlocoError: no such client or model.
    """
    if at not in POINTS or (client is None and at != "center"):
        raise FlocoError(f"a client's model is at one of {', '.join(POINTS)}, the global one in the middle; got {at!r}")
    with one_thread(), with_gradients():
        found = Model(_global(setup, progress), None) if client is None else _personal(setup, progress, client, at)

    def bare(tensors: Tensors) -> Tensors:
        return {n: tensors[n] for n in setup.network.layout.names}

    made = found.tensors
    return found._replace(tensors=made.each(bare) if isinstance(made, Combined) else bare(made))


def list_models(setup: Setup, progress: Progress) -> list[str | None]:
    """Return the ids of all participants, and None for the global model if there is one."""
    shared = find_global_model(setup, Message(progress.round, "evaluate", progress.state.shared))
    return [*setup.federation.ids, *([] if shared is None else [None])]


def _global(setup: Setup, progress: Progress) -> Tensors:
    tensors = find_global_model(setup, Message(progress.round, "evaluate", progress.state.shared))
    if tensors is None:
        local, none = (
            "floating buffers stay on the clients (training.buffers)",
            f"algorithm {setup.algorithm.name} has none",
        )
        raise FlocoError(f"there is no global model: {local if setup.local_buffers else none}")
    return tensors


def _personal(setup: Setup, progress: Progress, client: str, at: str) -> Model:
    if at == "best":
        near, simplex, alpha = find_point(setup, progress, client, at)
        return Model(near(simplex, alpha.float()), alpha)
    setup = _ready(setup, client)
    message = setup.algorithm.message(progress.state, client, "evaluate")
    models, taken, point = find_models(setup, client, message, progress.memories.get(client))
    if models.personal is None:
        raise FlocoError(f"algorithm {setup.algorithm.name} has no personal models")
    return Model(models.personal, point, taken if setup.delivery.model != "personal" else "")


def _ready(setup: Setup, client: str) -> Setup:
    """Return the setup with samples, if a participant's model needs them."""
    if client not in setup.federation.ids:
        setup.federation.client(client)  # raises for an unknown id, and names the known ones
        raise FlocoError(
            f'client "{client}" was held out of this run and has no model of its own: '
            "place it, with floco place or run.place"
        )
    if setup.algorithm.adapt(setup.facts(client)):
        return setup.with_samples(f'the model of client "{client}" is trained on its samples at every use, which')
    if setup.delivery.model != "personal":
        return setup.with_samples(f'the model of client "{client}" is {setup.delivery.model} at every use, which')
    return setup


def find_point(
    setup: Setup, progress: Progress, client: str, at: str = "center"
) -> tuple[Mixing, Tensors, torch.Tensor]:
    """Return the mixing, a client's own simplex with the task's shift, and its point (M,); `at` is as in `deliver`."""
    if (mixing := setup.algorithm.mixing) is None:
        raise FlocoError(f"algorithm {setup.algorithm.name} has no simplex, as floco has")
    setup = _ready(setup, client)
    message = setup.algorithm.message(progress.state, client, "evaluate")
    simplex, center = mixing.point(adapt(setup, client, message, progress.memories.get(client)))
    simplex = setup.shifted(simplex, setup.facts(client).label_counts)
    if at == "center":
        return mixing, simplex, center
    setup = setup.with_samples(f'the best mixture for the training part of client "{client}"')
    return mixing, simplex, find_best(setup, client, mixing, simplex, center)


def outputs(setup: Setup, progress: Progress, client: str | None, x: Inputs, *, at: str = "center") -> torch.Tensor:
    """Return the outputs (n, ...) float32 of the model of `deliver` for raw samples x (n, C, ...), channels first."""
    return compute_outputs(setup.float32, deliver(setup, progress, client, at=at)[0], x)


def predict_mean(
    setup: Setup, progress: Progress, client: str | None, x: Inputs, mixtures: int, *, at: str = "center"
) -> torch.Tensor:
    """Return the mean predictions (n, ...) float64, e.g. probabilities, of mixtures from a client's subregion.

    Args:
        setup: the fixed part of the run.
        progress: the state of the run.
        client: the client.
        x: raw samples (n, C, ...), channels first.
        mixtures: their number.
        at: the middle of the subregion; see `deliver`.
    """
    if mixtures < 1:
        raise FlocoError(f"mixtures must be 0 or more, got {mixtures}")
    deliver(setup, progress, client, at=at)  # raises for what has no model
    if client is None:
        raise FlocoError("mixtures are drawn from a client's subregion: name the client; the global model has none")
    with one_thread():
        mixing, simplex, alpha = find_point(setup, progress, client, at)
        if progress.center(mixing, client) is None:
            raise FlocoError(f'client "{client}" has no subregion: {_why_not(setup, progress)}')
        alphas = sample_subregion(alpha, mixing.radius, mixtures, generator=stream(setup.seed, "predict", client))
        return Mixtures(setup, mixing, simplex, x).mean_predictions(alphas)


def _why_not(setup: Setup, progress: Progress) -> str:
    if not setup.algorithm.assigned(progress.state):
        at = f"assign_at = {plain(setup.algorithm).get('assign_at')}, after round {progress.round}"
        return f"the clients were not assigned in this run ({at})"
    return "it has not trained since the assignment"


def prediction_table(setup: Setup, predictions: torch.Tensor) -> pd.DataFrame:
    """Return predictions as a table, one row per sample; for classification: label and probabilities."""
    return pd.DataFrame(setup.task.present(predictions, setup.federation.schema.labels))
