"""Networks by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from floco.core.errors import FlocoError, nearest
from floco.core.inputs import columns
from floco.core.network import Factory
from floco.core.objects import check_call, load_object
from floco.data.federation import Federation
from floco.data.schema import Form, Schema


def _xavier(module: nn.Module) -> nn.Module:
    for m in module.modules():
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.xavier_normal_(m.weight)
    return module


def cifar_cnn(shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> nn.Module:
    """Return the authors' CIFAR-10 network: 107,690 parameters for (3, 32, 32) and 10 classes, Xavier normal init."""
    _needs("cifar-cnn", shape, channels=3, least=24)
    return _xavier(_conv2d_net(shape, classes, convs=((16, 5, 0), (32, 5, 1), (64, 3, 1)), hidden=128))


def femnist_cnn(shape: tuple[int, ...] = (1, 28, 28), classes: int = 62) -> nn.Module:
    """Return the authors' FEMNIST network: 45,054 parameters for (1, 28, 28) and 62 classes, Xavier normal init."""
    _needs("femnist-cnn", shape, channels=1, least=16)
    return _xavier(_conv2d_net(shape, classes, convs=((16, 5, 0), (32, 5, 0)), hidden=0))


def cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a small convolutional network for images (C, H, W) or sequences (C, L); H, W, L >= 4."""
    if len(shape) not in (2, 3) or min(shape[1:]) < 4:
        raise FlocoError(
            f"model cnn needs images (C, H, W) or sequences (C, L) with H, W, L >= 4, the data have shape {shape}; "
            "model mlp takes any shape"
        )
    conv: Any = nn.Conv1d if len(shape) == 2 else nn.Conv2d
    pool: Any = nn.MaxPool1d if len(shape) == 2 else nn.MaxPool2d
    first = [conv(shape[0], 16, 3, padding=1), nn.LeakyReLU(), pool(2)]
    second = [conv(16, 32, 3, padding=1), nn.LeakyReLU(), pool(2), nn.Flatten()]
    width = 32 * math.prod(side // 4 for side in shape[1:])
    return _xavier(nn.Sequential(*first, *second, nn.Linear(width, 64), nn.LeakyReLU(), nn.Linear(64, classes)))


def mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a network with one hidden layer of 128 units, for inputs of any shape."""
    hidden = nn.Linear(math.prod(shape), 128)
    return _xavier(nn.Sequential(nn.Flatten(), hidden, nn.LeakyReLU(), nn.Linear(128, classes)))


class FullyConvolutional(nn.Module):
    """Convolutions at full and at half size, and a linear layer for each pixel: (N, C, H, W) -> (N, K, H, W)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(channels, 16, 3, padding=1), nn.LeakyReLU())
        coarse: list[nn.Module] = [nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.LeakyReLU()]
        for _ in range(2):
            coarse += [nn.Conv2d(32, 32, 3, padding=2, dilation=2), nn.LeakyReLU()]
        self.coarse = nn.Sequential(*coarse)
        self.head = nn.Linear(48, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K, H, W)."""
        fine = self.fine(x)
        coarse = nn.functional.interpolate(self.coarse(fine), size=fine.shape[-2:])
        found: torch.Tensor = self.head(torch.cat([fine, coarse], 1).movedim(1, -1))
        return found.movedim(-1, 1)


class Recurrent(nn.Module):
    """An embedding, a GRU and a linear layer for ids (N, T): logits of each token, (N, T, K), or of a text, (N, K)."""

    def __init__(self, ids: int, classes: int, *, each: bool, width: int = 128) -> None:
        super().__init__()
        self.embedding, self.each = nn.Embedding(ids, 32), each
        self.body = nn.GRU(32, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, T, K) or (N, K)."""
        if not torch.compiler.is_exporting() and int(x.max()) >= self.embedding.num_embeddings:
            raise FlocoError(
                f"id {int(x.max())} is unknown: the model has ids from 0 to {len(self.embedding.weight) - 1}"
            )
        states = self.body(self.embedding(x))[0]
        found: torch.Tensor = self.head(states if self.each else states[:, -1])
        return found


def fcn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a small network that keeps the size of images (C, H, W), for segmentation."""
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise FlocoError(f"model fcn needs images (C, H, W) with H, W >= 2, the data have shape {shape}")
    return _xavier(FullyConvolutional(shape[0], classes))


def _needs(name: str, shape: tuple[int, ...], *, channels: int, least: int) -> None:
    if len(shape) != 3 or shape[0] != channels or min(shape[1:]) < least:
        raise FlocoError(
            f"model {name} needs images ({channels}, H, W) with H, W >= {least}, the data have shape {shape}; "
            "model cnn takes any image"
        )


def _conv2d_net(
    shape: tuple[int, ...], classes: int, *, convs: tuple[tuple[int, int, int], ...], hidden: int
) -> nn.Module:
    """Return [conv, LeakyReLU, pool 2] for each (channels, kernel, padding), then linear layers."""
    layers: list[nn.Module] = []
    channels, height, width = shape
    for out, kernel, padding in convs:
        layers += [nn.Conv2d(channels, out, kernel, padding=padding), nn.LeakyReLU(), nn.MaxPool2d(2)]
        channels, height, width = out, (height + 2 * padding - kernel + 1) // 2, (width + 2 * padding - kernel + 1) // 2
    features = channels * height * width
    layers += [nn.Flatten(), *([nn.Linear(features, hidden), nn.LeakyReLU()] if hidden else [])]
    return nn.Sequential(*layers, nn.Linear(hidden or features, classes))


Builder = Callable[[tuple[int, ...], int], nn.Module]
MODELS: dict[str, Builder] = {"cnn": cnn, "mlp": mlp, "cifar-cnn": cifar_cnn, "femnist-cnn": femnist_cnn, "fcn": fcn}


def factory(name: str, shape: tuple[int, ...], classes: int, ids: int | dict[str, int] = 0) -> Factory:
    """Return a function that builds the model `name` for inputs of `shape`: one of `MODELS`, or `module:function`.

    The user's function gets `shape`, `classes` (or `outputs`) and `ids`, the number of ids if inputs are ids (of
    several inputs by name), if it has parameters of these names.
    """
    if name in MODELS:
        return lambda: MODELS[name](shape, classes)
    if ":" not in name:
        known = ", ".join((*MODELS, "gru"))
        raise FlocoError(
            f"model.name must be one of {known}, or module:function, got {name!r}{nearest(name, (*MODELS, 'gru'))}"
        )
    function = load_object(name, "model.name")
    accepted = inspect.signature(function).parameters
    offered = {"shape": shape, "classes": classes, "outputs": classes, "ids": ids}
    given = {k: v for k, v in offered.items() if k in accepted}
    gets = "those of shape, classes (or outputs) and ids that are names of its parameters"
    check_call(function, name, "model.name", gets, **given)
    return lambda: function(**given)


class ChannelsFirst(nn.Module):
    """Move the channels of samples to the front: (N, ..., C) -> (N, C, ...)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the samples, channels first."""
        return x.movedim(-1, 1)


def model(name: str, federation: Federation, ids: Sequence[int] = ()) -> Factory:
    """Return a function that builds the model `name` (as in `model.name`) for the samples of a federation.

    `ids` are the numbers of ids that each input of ids may have (empty: one more than the largest in the data).
    """
    outputs, single = federation.outputs, isinstance(federation.schema.forms, Form)
    numbers = count_ids(federation, ids)
    if name not in (*MODELS, "gru"):
        return factory(name, federation.shape, outputs, numbers)
    if not single:
        raise FlocoError(f"model {name} takes one input, and the data have several: write your own, module:function")
    form = federation.schema.form
    if (form.dtype == "int64") != (name == "gru") or (name == "gru" and len(federation.shape) != 1):
        raise FlocoError(
            f"model {name} does not fit: gru takes ids (N, T), the others numbers; the data are {form.dtype} of shape "
            f"(N, {', '.join(map(str, federation.shape))}), and data.kind says whether whole numbers are ids"
        )
    if isinstance(numbers, int) and name == "gru":
        if form.ranges[0][0] < 0:
            raise FlocoError(f"model gru takes ids from 0 on, and the data have {form.ranges[0][0]:g}")
        return lambda: Recurrent(numbers, outputs, each=bool(federation.target))
    if form.channels == "kept":
        *rest, channels = federation.shape
        build = factory(name, (channels, *rest), outputs)
        return lambda: nn.Sequential(ChannelsFirst(), build())
    return factory(name, federation.shape, outputs)


def find_ids(schema: Schema) -> dict[str, int]:
    """Return the number of ids of each input that has some: of a table's categories, or one more than the largest."""
    levels = {} if schema.table is None else schema.table.levels
    known = {n: f for n, f in columns(schema.forms).items() if f.dtype == "int64"}
    return {n: len(levels[n]) if n in levels else int(f.ranges[0][1]) + 1 for n, f in known.items()}


def count_ids(federation: Federation, ids: Sequence[int] = ()) -> int | dict[str, int]:
    """Return the number of ids that each input of ids may have: as given, of a table's categories, or of those there.

    Of a single input it is a number, as large as that of the labels at least, or 0 if it has no ids; else by name.

    Raises:
        FlocoError: there are larger ids, or `ids` are not as many as inputs that have some.
    """
    found = find_ids(federation.schema)
    if ids and len(ids) != len(found):
        which = f"{len(found)} inputs of ids" + (f" ({', '.join(found)})" if any(found) else "")
        raise FlocoError(f"model.ids must have one number for each input of ids, got {[*ids]} and {which}")
    for (name, there), most in zip(found.items(), ids or found.values(), strict=True):
        if there > most:
            where = f"the data have ids up to {there - 1}" + (f" in {name}" if name else "")
            raise FlocoError(f"{where}, and with model.ids = {most} they are from 0 to {most - 1}")
    made = dict(zip(found, ids, strict=True)) if ids else found
    if isinstance(federation.schema.forms, Form):
        return max(made[""], federation.outputs) if made else 0
    return made
