"""The form of a source's samples and labels, and how raw samples become network inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from floco.core.errors import FlocoError, warn
from floco.data.arrays import as_in_source, channels_first, column_names, float32, writeable
from floco.data.labels import array, plain_labels

# 10 samples that together span less than 5 % of the training data's range probably have another scale,
# and a value more than 10 ranges outside of its channel's range probably another unit.
_SEVERAL, _NARROW, _FAR = 10, 0.05, 10


@dataclass(frozen=True)
class Normalization:
    """x -> (x - mean) / std per channel (images, sequences) or feature; uint8 is divided by 255 first."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    last: bool = False
    """Whether the network takes its inputs channels last: sequences (T, F), as in their source."""

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        """Return float32 inputs (N, C, ...) or (N, ..., C) of raw samples (N, C, ...); unscaled without statistics."""
        x = raw.float()
        if self.mean:
            x = x / 255 if raw.dtype == torch.uint8 else x
            shape = (1, -1) + (1,) * (x.ndim - 2)
            x = (x - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)
        return x.movedim(1, -1).contiguous() if self.last else x


@dataclass(frozen=True)
class Form:
    """The raw samples that a model takes, and the labels that it predicts."""

    shape: tuple[int, ...]
    """Shape of one sample in its source: (H, W, C), (H, W) or (F, ...)."""
    dtype: str
    """`uint8`, `float32`, or `float64` for numbers too large for the precision of float32 (see `offset`)."""
    channels: str
    """Channel position in the source: one of `CHANNELS`."""
    names: tuple[str, ...]
    """Label names by class number, (C,)."""
    values: tuple[str, ...]
    """The source's own labels, as text, by class number."""
    ranges: tuple[tuple[float, float], ...]
    """Minimum and maximum of each channel over all samples."""
    normalization: Normalization
    offset: tuple[float, ...] = ()
    """Subtracted from each channel before the conversion to float32; (): nothing."""
    features: tuple[str, ...] = ()
    """Column names, if the source is a table; tables to predict must have the same, in the same order."""

    @property
    def divisor(self) -> int:
        """The number that samples are divided by before the mean is subtracted."""
        return 255 if self.dtype == "uint8" and self.normalization.mean else 1

    @property
    def mean(self) -> tuple[float, ...]:
        """Subtracted from each channel of the source's samples, after the division; (): nothing."""
        if not self.offset:
            return self.normalization.mean
        return tuple(m + o for m, o in zip(self.normalization.mean, self.offset, strict=True))

    def centered(self, x: torch.Tensor) -> torch.Tensor:
        """Return samples (N, C, ...), channels first and minus the offset, from source samples (N, *shape)."""
        x = channels_first(x, self.channels)
        if not self.offset:
            return x
        return (x - torch.tensor(self.offset, dtype=x.dtype).view(1, -1, *(1,) * (x.ndim - 2))).float()

    def restored(self, x: torch.Tensor) -> torch.Tensor:
        """Return source samples (N, *shape) from samples (N, C, ...): the inverse of `centered`."""
        if self.offset:
            x = x.double() + torch.tensor(self.offset, dtype=torch.float64).view(1, -1, *(1,) * (x.ndim - 2))
        return as_in_source(x, self.channels)

    def samples(self, x: Any, where: str, *, far: float = 0.0) -> torch.Tensor:
        """Return checked samples (N, C, ...), channels first.

        Args:
            x: array (N, *shape).
            where: name of the array, for error messages.
            far: share of the samples that may be far outside of the training data's range, with a warning.

        Raises:
            FlocoError: another shape, type or order of columns, a value that is not finite, or more than `far` of the
                samples far outside of the training data's range.
        """
        if self.features and (given := column_names(x)) not in ((), self.features):
            raise FlocoError(
                f"{where} must have the columns {', '.join(self.features)}, in this order, "
                f"as the training data; got {', '.join(given)}"
            )
        x = array(x, where)
        if x.ndim == 0 or x.shape[1:] != self.shape or not len(x):
            shape = ", ".join(map(str, self.shape))
            raise FlocoError(f"{where} must have shape (N, {shape}), N >= 1, as the training data; got {x.shape}")
        if x.dtype.kind not in "iuf":
            raise FlocoError(f"{where} must be numbers, got {x.dtype}")
        if self.dtype == "uint8" and (x.dtype.kind == "f" or x.min() < 0 or x.max() > 255):
            raise FlocoError(
                f"{where} must be whole numbers from 0 to 255, as the training data; "
                f"got {x.dtype} from {x.min():g} to {x.max():g}"
            )
        if self.dtype == "uint8":
            return channels_first(writeable(x.astype(np.uint8)), self.channels)
        raw = float32(x, where, self.channels, self.offset)
        self._check_range(raw, where, far)
        return raw

    def labelled(self, x: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return checked samples (N, C, ...) and as many class numbers (N,)."""
        samples, classes = self.samples(x, "x"), self.classes(y, "y")
        if len(samples) != len(classes):
            raise FlocoError(
                f"there must be one label for each sample, got {len(samples)} samples and {len(classes)} labels"
            )
        return samples, classes

    def _check_range(self, raw: torch.Tensor, where: str, few: float) -> None:
        known, given = torch.tensor(self.ranges), raw.transpose(0, 1).flatten(1)
        wide, varied = known[:, 1] - known[:, 0], given.amax(1) - given.amin(1)
        if len(raw) >= _SEVERAL and bool((wide > 0).all()) and bool((varied < _NARROW * wide).all()):
            warn(
                f"{where}: in all channels, {len(raw)} samples vary by less than {_NARROW:.0%} of the training data's "
                "range: another unit, or another scaling?"
            )
        off = (wide == 0) & ((given - known[:, :1]).abs().amax(1) > _NARROW * known[:, 0].abs())
        if bool((wide > 0).any()) and bool(off.any()):
            shown = ", ".join(map(str, off.nonzero().flatten().tolist()[:8]))
            warn(
                f"{where}: channel {shown} is always the same in the training data, and not here: "
                "the model has not learnt to use it"
            )
        noted: list[str] = []
        for channel, (low, high) in enumerate(self.ranges):
            values = raw[:, channel].reshape(len(raw), -1)
            reach = _FAR * (high - low)
            far = ((values < low - reach) | (values > high + reach)).any(dim=1)
            if reach > 0 and bool(far.any()):
                i = int(far.nonzero()[0])
                worst = max(values[i].tolist(), key=lambda v: max(low - v, v - high))
                worst, low, high = (v + (self.offset[channel] if self.offset else 0.0) for v in (worst, low, high))
                text = (
                    f"{where}: sample {i} holds {worst:g} in channel {channel}, and the training data have {low:g} to "
                    f"{high:g}: another unit, or another scaling?"
                )
                if int(far.sum()) > few * len(raw):
                    raise FlocoError(text)
                noted.append(text)
        if noted:
            warn(noted[0] + (f" So do samples in {len(noted) - 1} other channels." if len(noted) > 1 else ""))

    def classes(self, y: Any, where: str) -> torch.Tensor:
        """Return class numbers (N,) int64 from labels (N,), which are the source's own labels or label names.

        Raises:
            FlocoError: not an array of labels, or a label that the model does not know.
        """
        y = plain_labels(y, where)
        if y.ndim != 1 or y.dtype.kind not in "iubU":
            raise FlocoError(f"{where} must be whole numbers or strings (N,), got shape {y.shape} of {y.dtype}")
        given = [str(v) for v in y]
        for known in (self.names, self.values) if y.dtype.kind == "U" else (self.values, self.names):
            if set(given) <= set(known):
                number = {v: c for c, v in enumerate(known)}
                return torch.tensor([number[v] for v in given])
        strange = sorted(set(given) - set(self.values))
        raise FlocoError(
            f"{where} holds labels that the model does not know: {', '.join(strange[:8])}; "
            f"it knows {', '.join(self.values[:20])}"
        )
