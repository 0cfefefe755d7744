"""Random changes of the batches that clients train on: `data.augment`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import pad

from floco.core.errors import FlocoError, nearest
from floco.core.inputs import Inputs, columns, each, shapes
from floco.core.objects import check_call, load_object
from floco.core.random import global_stream
from floco.core.values import fast_copy

Change = Callable[[Inputs, torch.Generator], Inputs]
"""`change(batch, generator)`: new inputs for normalised ones (B, ...); all that is random comes from the generator."""
_PART = 8  # a shift is at most this part of the side


@dataclass(frozen=True)
class Augment:
    """A random change of batches, and the name by which it is found again."""

    name: str
    """`flip`, `flip+crop`, or `module:function`; for a run that is resumed, equal names are equal changes."""
    change: Change

    def __call__(self, batch: Inputs, generator: torch.Generator) -> Inputs:
        """Return a batch (B, ...) with random changes, from a generator on the CPU; `batch` itself may be changed.

        Raises:
            FlocoError: the result has another form, shape or type than the batch.
        """
        made, form = self.change(batch, generator), {n: (c.shape, c.dtype) for n, c in columns(batch).items()}
        found = columns(made) if type(made) is type(batch) else {}
        if {n: (getattr(c, "shape", ()), getattr(c, "dtype", None)) for n, c in found.items()} != form:
            what = f"inputs of the same form, shape and type, here {shapes(batch)}"
            raise FlocoError(f"data.augment = {self.name!r} must return {what}; it returned {_described(made)}")
        return made


def _described(made: object) -> str:
    parts = columns(made)
    if parts and all(isinstance(c, torch.Tensor) for c in parts.values()):
        return ", ".join(f"{name} {tuple(c.shape)} {c.dtype}".strip() for name, c in parts.items())
    return type(made).__name__


def check_name(name: str | None) -> None:
    """Raise unless `name` is empty, a known word, or of the form `module:function`."""
    if name and name not in _KNOWN and ":" not in name:
        words = ", ".join(_KNOWN)
        raise FlocoError(f"augment must be empty, {words} or module:function, got {name!r}{nearest(name, _KNOWN)}")


def _name(given: Any) -> str:
    """Return the name of a function, that of an object's class, or a `functools.partial` as a call; equal in each run.

    Raises:
        FlocoError: it cannot be called.
    """
    if isinstance(given, partial):
        settings = [*map(repr, given.args), *(f"{name}={value!r}" for name, value in given.keywords.items())]
        return f"{_name(given.func)}({', '.join(settings)})"
    if not callable(given):
        raise FlocoError(f"augment must be empty, {', '.join(_KNOWN)}, module:function or a function, got {given!r}")
    named = given if hasattr(given, "__qualname__") else type(given)
    return f"{named.__module__}:{named.__qualname__}"


def find_augment(given: str | Change | None) -> Augment | None:
    """Return the change that a word, `module:function` or a function stands for; None for nothing."""
    if given is None or given == "":
        return None
    if not isinstance(given, str):
        return Augment(_name(given), given)
    check_name(given)
    if given in _KNOWN:
        return Augment(given, _KNOWN[given])
    check_call(change := load_object(given, "data.augment"), given, "data.augment", "(batch, generator)", None, None)
    return Augment(given, change)


def check_augment(augment: Augment, batch: Inputs, channels: str, y: torch.Tensor) -> None:
    """Check that a change fits the data, and draws from its generator only, on a normalised batch (B, ...).

    Args:
        augment: the change.
        batch: some samples; they are not changed.
        channels: position of the channels in the source, as in `Form.channels`.
        y: all targets (N, ...); those of pixels would have to move with the images.

    Raises:
        FlocoError: it does not.
    """
    name = augment.name
    if augment.change in _KNOWN.values():
        image = isinstance(batch, torch.Tensor) and batch.ndim == 4 and batch.is_floating_point()
        if not image or channels == "kept":
            needed = "is for images, inputs of shape (N, C, H, W)"
            raise FlocoError(f"data.augment = {name!r} {needed}, and these have {shapes(batch)}: leave it empty")
        assert isinstance(batch, torch.Tensor)
        if y.ndim > 2:
            moved = "moves images, and the targets of their pixels would stay where they are"
            raise FlocoError(f"data.augment = {name!r} {moved} (targets {tuple(y.shape[1:])}): leave it empty")
        if augment.change is flip_and_crop and max(batch.shape[2:]) < _PART:
            side = f"a side of {_PART} pixels at least"
            raise FlocoError(f"data.augment = {name!r} needs images with {side}, got {shapes(batch)}: use 'flip'")
        return
    made = []
    for number in (0, 1):
        with global_stream(number, "augment"):
            made.append(_tried(augment, each(torch.clone, batch)))
    pairs = zip(columns(made[0]).values(), columns(made[1]).values(), strict=True)
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
        source = "from the generator that it gets, torch.rand(..., generator=generator)"
        raise FlocoError(f"data.augment = {name!r} must draw its random numbers {source}: engines would differ")


def _tried(augment: Augment, batch: Inputs) -> Inputs:
    try:
        return augment(batch, torch.Generator().manual_seed(0))
    except FlocoError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise FlocoError(f"data.augment = {augment.name!r} raised {kind} on {shapes(batch)}: {error}") from error


def flip(batch: Inputs, generator: torch.Generator) -> Inputs:
    """Return images (B, C, H, W), each mirrored left to right with probability 1/2."""
    assert isinstance(batch, torch.Tensor)
    chosen = torch.rand(len(batch), generator=generator).to(batch.device) < 0.5
    return torch.where(chosen[:, None, None, None], batch.flip(3), batch)


def flip_and_crop(batch: Inputs, generator: torch.Generator) -> Inputs:
    """Return images (B, C, H, W) flipped, and each moved by up to H/8 and W/8 pixels; what is uncovered is 0."""
    images = flip(batch, generator)
    assert isinstance(images, torch.Tensor)
    number, _, *sides = images.shape
    device, reach = images.device, [side // _PART for side in sides]
    start = [torch.randint(2 * r + 1, (number, 1), generator=generator).to(device) for r in reach]
    y, x = (s + torch.arange(side, device=device) for s, side in zip(start, sides, strict=True))
    padded = pad(images, (reach[1], reach[1], reach[0], reach[0])).movedim(1, -1)
    moved = padded[torch.arange(number, device=device)[:, None, None], y[:, :, None], x[:, None, :]]
    return fast_copy(moved.movedim(-1, 1))


_KNOWN: dict[str, Change] = {"flip": flip, "flip+crop": flip_and_crop}
