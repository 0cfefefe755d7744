"""A model with its preprocessing as a graph, and the file formats of exported models."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from floco.client.setup import Setup
from floco.core.errors import FlocoError
from floco.data.schema import Form
from floco.storage.files import to_safetensors

FORMATS = ("safetensors", "pt2", "onnx")
_CLOSE = 1e-4  # tolerance of a graph's probabilities against the network's


class Portable(nn.Module):
    """A network with its preprocessing: the source's raw samples (N, *shape) -> logits and probabilities (N, C)."""

    def __init__(self, network: nn.Module, form: Form) -> None:
        super().__init__()
        self.network = network
        self._form = form

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and probabilities."""
        logits = self.network(self._form.normalization(self._form.centered(x)))
        return logits, logits.softmax(dim=1)


Writer = Callable[[nn.Module], bytes]
"""Function from a network with its weights to the bytes of a file."""


def writer(setup: Setup, kind: str) -> Writer:
    """Return a function that writes networks in one of `FORMATS`; a graph is traced once, for all models.

    - safetensors: the state dict of the user's network; tied tensors are stored under each of their names.
    - pt2, onnx: `Portable` as a graph with dynamic N; each file is run once, and compared with the network.

    Raises:
        FlocoError: an unknown format, one whose packages are missing, or a network that cannot be traced.
    """
    if kind == "safetensors":
        return lambda network: to_safetensors(network.state_dict())
    if kind not in FORMATS:
        raise FlocoError(f"--format must be one of {', '.join(FORMATS)}, got {kind!r}")
    form = setup.federation.form
    samples = form.restored(setup.federation.x[:3]).contiguous()
    initial = setup.network.holding({**setup.network.parameters, **setup.network.buffers})
    graph = _traced(Portable(initial, form), samples, kind)
    make = _pt2(graph) if kind == "pt2" else _onnx(graph, samples)

    def write(network: nn.Module) -> bytes:
        model = Portable(network, form).eval()
        data = make(model.state_dict())
        with torch.no_grad():
            expected = model(samples)[1]
        found = (_run_pt2 if kind == "pt2" else _run_onnx)(data, samples)
        apart = float((expected - found).abs().max())
        if not apart <= _CLOSE:
            raise FlocoError(
                f"the {kind} graph of this network gives probabilities that differ by {apart:.2g} from the network's "
                f"own, more than {_CLOSE:g}: use another format"
            )
        return data

    return write


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings, which are about operators of other packages."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _traced(model: Portable, samples: torch.Tensor, kind: str) -> Any:
    try:
        with _quiet():
            return torch.export.export(model.eval(), (samples,), dynamic_shapes=({0: torch.export.Dim("n")},))
    except Exception as error:
        raise FlocoError(
            f"the network cannot be written as {kind}, because torch.export cannot trace it: "
            f"{str(error).splitlines()[0]}; safetensors needs no graph"
        ) from error


def _pt2(graph: Any) -> Callable[[Mapping[str, torch.Tensor]], bytes]:
    def make(weights: Mapping[str, torch.Tensor]) -> bytes:
        for name, old in graph.state_dict.items():
            new = weights[name].detach().clone()
            trained = isinstance(old, nn.Parameter)
            graph.state_dict[name] = nn.Parameter(new, requires_grad=old.requires_grad) if trained else new
        buffer = io.BytesIO()
        with _quiet():
            torch.export.save(graph, buffer)
        return buffer.getvalue()

    return make


def _run_pt2(data: bytes, samples: torch.Tensor) -> torch.Tensor:
    with _quiet(), torch.no_grad():
        found: torch.Tensor = torch.export.load(io.BytesIO(data)).module()(samples)[1]
    return found


def _onnx(graph: Any, samples: torch.Tensor) -> Callable[[Mapping[str, torch.Tensor]], bytes]:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise FlocoError(f"--format onnx needs {error.name}, not installed here: pip install 'floco[onnx]'") from error
    names: dict[str, Any] = {"input_names": ["samples"], "output_names": ["logits", "probabilities"]}
    try:
        with _quiet():
            made = torch.onnx.export(graph, (samples,), dynamo=True, optimize=False, verbose=False, **names)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise FlocoError(f"the network cannot be written as onnx: {reason}; use safetensors or pt2") from error
    assert made is not None
    proto = made.model_proto

    def make(weights: Mapping[str, torch.Tensor]) -> bytes:
        for place in proto.graph.initializer:
            if place.name in weights:
                place.CopyFrom(onnx.numpy_helper.from_array(weights[place.name].detach().numpy(), place.name))
        return bytes(proto.SerializeToString())

    return make


def _run_onnx(data: bytes, samples: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run(["probabilities"], {"samples": samples.numpy()})[0]))
