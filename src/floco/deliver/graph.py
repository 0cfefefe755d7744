"""A model with its preprocessing as a graph, and the file formats of exported models."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import numpy as np
import torch
from torch import nn

from floco.client.setup import Setup
from floco.core.errors import FlocoError
from floco.core.head import outputs_of
from floco.core.inputs import arguments, columns, like
from floco.data.schema import Schema
from floco.deliver.adapter import FILE, SETTINGS, adapter_files, check_adapter
from floco.storage.files import to_safetensors

FORMATS = ("safetensors", "pt2", "onnx", "peft")
_CLOSE = 1e-4  # tolerance of a graph's predictions against the network's, relative to those above 1


class Portable(nn.Module):
    """A network with its preprocessing: the source's raw samples (N, *shape) -> outputs and predictions (N, ...).

    Several inputs are taken in the order of the schema.
    """

    def __init__(self, network: nn.Module, schema: Schema) -> None:
        super().__init__()
        self.network = network
        self._schema = schema

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return outputs and predictions, for classification logits and probabilities."""
        forms = columns(self._schema.forms)
        made = {n: f.normalize(f.centered(x)) for (n, f), x in zip(forms.items(), given, strict=True)}
        args, kwargs = arguments(like(self._schema.forms, made))
        outputs = outputs_of(self.network(*args, **kwargs))
        return outputs, self._schema.task.activate(outputs)


Writer = Callable[[nn.Module], tuple[bytes, Mapping[str, bytes]]]
"""Function from a network with its weights to the bytes of a file, and of files beside it by name."""


def make_writer(setup: Setup, kind: str, schema: Schema) -> Writer:
    """Return a function that writes networks in one of `FORMATS`; a graph is traced once, for all models of a schema.

    - safetensors: the state dict of the user's network; tied tensors are stored under each of their names.
    - pt2, onnx: `Portable` as a graph with dynamic N; each file is run once, and compared with the network.
    - peft: the trained adapter alone, without the frozen network below it.

    Raises:
        FlocoError: an unknown format, one whose packages are missing, a network that cannot be traced, or a graph
            without a client where each has a normalisation of its own.
    """
    if kind == "safetensors":
        return lambda network: (to_safetensors(network.state_dict()), {})
    if kind not in FORMATS:
        raise FlocoError(f"--format must be one of {', '.join(FORMATS)}, got {kind!r}")
    if kind == "peft":
        check_adapter(setup.network.module, setup.network.layout)
        return _write_adapter
    if any(form.own for form in columns(schema.forms).values()):
        raise FlocoError(
            f'a {kind} file contains the normalisation, and with data.normalize = "client" the global model has none: '
            "name clients with --client, or write it with --format safetensors"
        )
    raw, forms = columns(schema.made_up(3)), columns(schema.forms)  # a pt2 file has its samples inside: nobody's
    samples = tuple(forms[name].restored(column).contiguous() for name, column in raw.items())
    initial = setup.network.holding({**setup.network.parameters, **setup.network.buffers}, own=False)
    graph = _traced(Portable(initial, schema), samples, kind)
    names = [name or "samples" for name in raw], schema.task.graph_names
    make = _pt2(graph) if kind == "pt2" else _onnx(graph, samples, *names)

    def write(network: nn.Module) -> tuple[bytes, Mapping[str, bytes]]:
        model = Portable(network, schema).eval()
        data = make(model.state_dict())
        with torch.no_grad():
            expected = model(*samples)[1]
        found = _run_pt2(data, samples) if kind == "pt2" else _run_onnx(data, samples)
        apart = float(((expected - found).abs() / expected.abs().amax(0).clamp(min=1)).max())
        if not apart <= _CLOSE:
            raise FlocoError(
                f"the {kind} graph of this network gives predictions that differ by {apart:.2g} from the network's "
                f"own, more than {_CLOSE:g}: use another format"
            )
        return data, {}

    return write


def _write_adapter(network: nn.Module) -> tuple[bytes, Mapping[str, bytes]]:
    files = adapter_files(network)
    return files[FILE], {SETTINGS: files[SETTINGS]}


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence what exporters print: about operators of other packages, and of networks that they cannot trace."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _traced(model: Portable, samples: tuple[torch.Tensor, ...], kind: str) -> Any:
    n = torch.export.Dim("n")
    try:
        with quiet_exporters():
            return torch.export.export(model.eval(), samples, dynamic_shapes=(tuple({0: n} for _ in samples),))
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
        with quiet_exporters():
            torch.export.save(graph, buffer)
        return buffer.getvalue()

    return make


def _run_pt2(data: bytes, samples: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with quiet_exporters(), torch.no_grad():
        found: torch.Tensor = torch.export.load(io.BytesIO(data)).module()(*samples)[1]
    return found


def _onnx(
    graph: Any, samples: tuple[torch.Tensor, ...], inputs: list[str], outputs: tuple[str, str]
) -> Callable[[Mapping[str, torch.Tensor]], bytes]:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise FlocoError(f"--format onnx needs {error.name}, not installed here: pip install 'floco[onnx]'") from error
    names: dict[str, Any] = {"input_names": inputs, "output_names": list(outputs)}
    try:
        with quiet_exporters():
            made = torch.onnx.export(graph, samples, dynamo=True, optimize=False, verbose=False, **names)
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


def _run_onnx(data: bytes, samples: tuple[torch.Tensor, ...]) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    given = {place.name: column.numpy() for place, column in zip(session.get_inputs(), samples, strict=True)}
    return torch.from_numpy(np.asarray(session.run(None, given)[1]))
