"""What samples and labels look like where they come from, and how raw samples become a network's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from floco.core.errors import FlocoError, warn
from floco.data.arrays import as_in_source, channels_first, column_names, float32, writeable
from floco.data.labels import array, plain_labels

_SEVERAL, _NARROW = 10, 0.05  # samples that together vary by so little of the training data's range are hardly of the same scale
_FAR = 10  # ranges of a channel by which a value may lie outside of it: beyond is another unit, not another sample


@dataclass(frozen=True)
class Normalization:
    """x -> (x - mean) / std per channel (images, sequences) or feature; uint8 is divided by 255 before."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    last: bool = False
    """Whether the network takes its inputs with the channels last: sequences (T, F) whose source has them so."""

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        """Return inputs (N, C, ...) float32, or (N, ..., C), for raw samples (N, C, ...); no statistics: the values as they are."""
        x = raw.float()
        if self.mean:
            x = x / 255 if raw.dtype == torch.uint8 else x
            shape = (1, -1) + (1,) * (x.ndim - 2)
            x = (x - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)
        return x.movedim(1, -1).contiguous() if self.last else x


@dataclass(frozen=True)
class Form:
    """The raw samples that a model takes, and the labels that it gives."""

    shape: tuple[int, ...]
    """Of one sample, as its source has it: (H, W, C), (H, W) or (F, ...)."""
    dtype: str
    """`uint8`, `float32`, or `float64` for numbers that float32 cannot tell apart (see `offset`)."""
    channels: str
    """Where a source has the channels: one of `CHANNELS`."""
    names: tuple[str, ...]
    """Label names by class number, (C,)."""
    values: tuple[str, ...]
    """Labels as the source has them, as text, by class number."""
    ranges: tuple[tuple[float, float], ...]
    """Least and largest value of each channel among all samples."""
    normalization: Normalization
    offset: tuple[float, ...] = ()
    """What is subtracted from each channel before numbers become float32; (): nothing."""
    features: tuple[str, ...] = ()
    """Names of the features, where the source is a table that has some; a table to predict must have the same, in the same order."""

    @property
    def divisor(self) -> int:
        """What samples are divided by before the mean is subtracted."""
        return 255 if self.dtype == "uint8" and self.normalization.mean else 1

    @property
    def mean(self) -> tuple[float, ...]:
        """What is subtracted from each channel of samples as the source has them, after the division; (): nothing."""
        return tuple(m + o for m, o in zip(self.normalization.mean, self.offset, strict=True)) if self.offset else self.normalization.mean

    def centered(self, x: torch.Tensor) -> torch.Tensor:
        """Return samples (N, C, ...), channels first and less the offset, of a tensor (N, *shape) as the source has them."""
        x = channels_first(x, self.channels)
        return (x - torch.tensor(self.offset, dtype=x.dtype).view(1, -1, *(1,) * (x.ndim - 2))).float() if self.offset else x

    def restored(self, x: torch.Tensor) -> torch.Tensor:
        """Return samples as the source has them, of samples (N, C, ...): the inverse of `centered`."""
        if self.offset:
            x = x.double() + torch.tensor(self.offset, dtype=torch.float64).view(1, -1, *(1,) * (x.ndim - 2))
        return as_in_source(x, self.channels)

    def samples(self, x: Any, where: str, *, far: float = 0.0) -> torch.Tensor:
        """Return checked samples (N, C, ...), channels first.

        Args:
            x: array (N, *shape).
            where: what an error calls it.
            far: share of the samples that may be far outside of the values that the model knows; they are said.

        Raises:
            FlocoError: another shape, type or order of columns, a value that is not finite, or one far outside of the values that the model knows.
        """
        if self.features and (given := column_names(x)) not in ((), self.features):
            raise FlocoError(f"{where} must have the columns {', '.join(self.features)}, in this order, as the data that the model was trained on; got {', '.join(given)}")
        x = array(x, where)
        if x.ndim == 0 or x.shape[1:] != self.shape or not len(x):
            raise FlocoError(f"{where} must have shape (N, {', '.join(map(str, self.shape))}), N >= 1, as the samples that the model was trained on; got {x.shape}")
        if x.dtype.kind not in "iuf":
            raise FlocoError(f"{where} must be numbers, got {x.dtype}")
        if self.dtype == "uint8" and (x.dtype.kind == "f" or x.min() < 0 or x.max() > 255):
            raise FlocoError(f"{where} must be whole numbers from 0 to 255, as the samples that the model was trained on; got {x.dtype} from {x.min():g} to {x.max():g}")
        if self.dtype == "uint8":
            return channels_first(writeable(x.astype(np.uint8)), self.channels)
        raw = float32(x, where, self.channels, self.offset)
        self._check_range(raw, where, far)
        return raw

    def labelled(self, x: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return checked samples (N, C, ...) and as many class numbers (N,)."""
        samples, classes = self.samples(x, "x"), self.classes(y, "y")
        if len(samples) != len(classes):
            raise FlocoError(f"there must be one label for each sample, got {len(samples)} samples and {len(classes)} labels")
        return samples, classes

    def _check_range(self, raw: torch.Tensor, where: str, few: float) -> None:
        known, given = torch.tensor(self.ranges), raw.transpose(0, 1).flatten(1)
        wide, varied = known[:, 1] - known[:, 0], given.amax(1) - given.amin(1)
        if len(raw) >= _SEVERAL and bool((wide > 0).all()) and bool((varied < _NARROW * wide).all()):
            warn(f"{where}: all channels of {len(raw)} samples vary by less than {_NARROW:.0%} of what the training data do: another unit, or another scaling?")
        off = (wide == 0) & ((given - known[:, :1]).abs().amax(1) > _NARROW * known[:, 0].abs())
        if bool((wide > 0).any()) and bool(off.any()):
            shown = ", ".join(map(str, off.nonzero().flatten().tolist()[:8]))
            warn(f"{where}: channel {shown} is always the same in the training data, and is not here: the model has learnt nothing of it")
        noted: list[str] = []
        for channel, (low, high) in enumerate(self.ranges):
            values = raw[:, channel].reshape(len(raw), -1)
            reach = _FAR * (high - low)
            far = ((values < low - reach) | (values > high + reach)).any(dim=1)
            if reach > 0 and bool(far.any()):
                i = int(far.nonzero()[0])
                worst = max(values[i].tolist(), key=lambda v: max(low - v, v - high))
                worst, low, high = (v + (self.offset[channel] if self.offset else 0.0) for v in (worst, low, high))
                text = f"{where}: sample {i} holds {worst:g} in channel {channel}, and the training data have {low:g} to {high:g}: another unit, or another scaling?"
                if int(far.sum()) > few * len(raw):
                    raise FlocoError(text)
                noted.append(text)
        if noted:
            warn(noted[0] + (f" So do samples in {len(noted) - 1} other channels." if len(noted) > 1 else ""))

    def classes(self, y: Any, where: str) -> torch.Tensor:
        """Return class numbers (N,) int64 of labels (N,), which are values of the source, or names.

        Raises:
            FlocoError: no labels, or one that the model does not know.
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
        raise FlocoError(f"{where} holds labels that the model does not know: {', '.join(strange[:8])}; it knows {', '.join(self.values[:20])}")
