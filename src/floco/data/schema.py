"""The schema of samples and targets: their form in the source, and how raw samples become network inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from floco.core.errors import FlocoError, warn
from floco.core.inputs import Inputs, array, columns, count, like
from floco.core.task import Labels, Task
from floco.data.arrays import as_in_source, channels_first, check_index, column_names, fill, float32, writeable
from floco.data.normalization import Normalization
from floco.data.ranges import check_range, draw_in_range
from floco.data.table_roles import is_table
from floco.data.tables import Columns


@dataclass(frozen=True)
class Form:
    """One input of a network, as its source has it, and how raw samples become numbers for the network."""

    channels: str = "first"
    """Channel position in the source: one of `CHANNELS`."""
    offset: tuple[float, ...] = ()
    """Subtracted from each channel before the conversion to float32; (): nothing."""
    features: tuple[str, ...] = ()
    """Names of the channels, if the source is a table; (N, C) arrays must have them in the same order."""
    normalization: Normalization = Normalization()
    shape: tuple[int, ...] = ()
    """Shape of one sample in its source: (H, W, C), (H, W) or (F, ...)."""
    dtype: str = "float32"
    """`uint8`, `int64` (ids, never scaled), `float32`, or `float64` for numbers too large for it (see `offset`)."""
    ranges: tuple[tuple[float, float], ...] = ()
    """Minimum and maximum of each channel over all samples."""
    flags: int = 0
    """How many channels, the last ones, are 0 or 1 for a category: they are not scaled."""
    missing: str = "error"
    """`error`, `drop`, or `mean`: NaN stands for the mean of the training parts."""
    own: bool = False
    """Whether these are samples after a normalisation that each client has of its own (`Client.forms`)."""

    def seen(self, x: torch.Tensor) -> Form:
        """Return the form with shape, type and ranges of samples (N, C, ...)."""
        shape = as_in_source(x[:1], self.channels).shape[1:]
        if x.dtype == torch.int64:
            return replace(self, shape=tuple(shape), dtype="int64", ranges=((float(x.min()), float(x.max())),))
        others = (0, *range(2, x.ndim))
        ends = (x, x) if self.missing != "mean" else (x.nan_to_num(nan=v) for v in (math.inf, -math.inf))
        low, high = (f(x, others).float().tolist() for f, x in zip((torch.amin, torch.amax), ends, strict=True))
        ranges = tuple(zip(low, high, strict=True))
        dtype = "uint8" if x.dtype == torch.uint8 else "float64" if self.offset else "float32"
        return replace(self, shape=tuple(shape), dtype=dtype, ranges=ranges)

    def normalize(self, raw: torch.Tensor) -> torch.Tensor:
        """Return network inputs (N, C, ...), for sequences (N, ..., C), of raw samples (N, C, ...); ids as they are."""
        if raw.dtype == torch.int64:
            return raw
        x = self.scale(raw)
        return x.movedim(1, -1).contiguous() if self.channels == "kept" else x

    def scale(self, raw: torch.Tensor) -> torch.Tensor:
        """Return normalised samples (N, C, ...) of raw ones, with means where values are missing; ids as they are."""
        if raw.dtype == torch.int64:
            return raw
        x = self.normalization(raw)
        return torch.where(x.isnan(), 0.0, x) if self.missing == "mean" else x

    def unscaled(self, found: Normalization) -> Normalization:
        """Return a normalisation that leaves categories as they are."""
        numbers = len(found.mean) - self.flags
        if not self.flags or not found.mean:
            return found
        return Normalization(found.mean[:numbers] + (0.0,) * self.flags, found.std[:numbers] + (1.0,) * self.flags)

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
        if self.own:
            raise FlocoError(
                f'data.normalize = "client": {where} can be normalised only with the statistics of a client; name it '
                "(--client, client=...)"
            )
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
        if self.dtype == "int64":
            return self._ids(x, where)
        if self.dtype == "uint8" and (x.dtype.kind == "f" or x.min() < 0 or x.max() > 255):
            raise FlocoError(
                f"{where} must be whole numbers from 0 to 255, as the training data; "
                f"got {x.dtype} from {x.min():g} to {x.max():g}"
            )
        if self.dtype == "uint8":
            raw = channels_first(writeable(x.astype(np.uint8)), self.channels)
            check_range(raw, self.ranges, where, 1.0)  # any byte may occur: a new one is said, not refused
            return raw
        holes = np.isnan(x) if self.missing == "mean" and x.dtype.kind == "f" else None
        if holes is not None:  # stand-ins in the middle of the range, for the checks only
            ranges = self.ranges or [(0.0, 0.0)] * self._layout(1)[1]
            shift = self.offset or (0.0,) * len(ranges)
            middle = [(low + high) / 2 + o for (low, high), o in zip(ranges, shift, strict=True)]
            x = fill(x, holes, self.channels, middle)
        raw = float32(x, where, self.channels, self.offset)
        check_range(raw, self.ranges, where, far, offset=self.offset, names=self.features)
        return raw if holes is None else raw.masked_fill(channels_first(torch.from_numpy(holes), self.channels), np.nan)

    def made_up(self, n: int) -> torch.Tensor:
        """Return n raw samples (n, C, ...) drawn from the ranges of the channels, always the same ones."""
        return draw_in_range(self.ranges, self._layout(n), torch.float32 if self.offset else getattr(torch, self.dtype))

    def _layout(self, n: int) -> torch.Size:
        """Return the shape of n samples, channels first."""
        return channels_first(torch.empty(n, *self.shape, device="meta"), self.channels).shape

    def _ids(self, x: np.ndarray, where: str) -> torch.Tensor:
        ((low, high),) = self.ranges
        if x.dtype.kind not in "iu" or x.min() < min(0, low):
            raise FlocoError(
                f"{where} must be whole numbers, {min(0, low):g} or more, as the training data; got {x.dtype}"
            )
        if x.max() > high:
            warn(
                f"{where}: ids up to {x.max()}, and the training data have up to {high:g}: the model has not seen them"
            )
        return writeable(x.astype(np.int64))


@dataclass(frozen=True)
class Schema:
    """What samples and targets look like in their source: every later row, from wherever, must look the same."""

    forms: Any
    """The form of a network's one input, or a tuple or dict of the forms of several."""
    labels: Labels
    task: Task
    table: Columns | None = None
    """How rows of a table become samples, if the source is one."""
    scaled: bool = False
    """Whether samples are normalised as they come in, as those of a client with statistics of its own."""

    def of_client(self, forms: Mapping[str, Form] | None) -> Schema:
        """Return the schema of a client's rows, from its own forms by column; None: it has none of its own."""
        return self if forms is None else replace(self, forms=like(self.forms, dict(forms)), scaled=True)

    @property
    def form(self) -> Form:
        """The form of the network's one input.

        Raises:
            FlocoError: it has several.
        """
        if not isinstance(self.forms, Form):
            raise FlocoError(
                f"only networks with one input can do this, and this one has {', '.join(columns(self.forms))}"
            )
        return self.forms

    def samples(self, x: Any, where: str, *, far: float = 0.0) -> Inputs:
        """Return checked raw samples; see `Form.samples`.

        Args:
            x: array (N, *shape), or a tuple or dict of arrays, as the training data were; of a table, a table.
            where: name of the array, for error messages.
            far: share of the samples that may be far outside of the training data's range, with a warning.
        """
        x = self.table.encode(x, where) if self.table is not None and is_table(x) else x
        forms, given = columns(self.forms), columns(x) if not isinstance(self.forms, Form) else {"": x}
        if forms.keys() != given.keys():
            raise FlocoError(
                f"{where} must have the columns {', '.join(forms)}, as the training data, got {', '.join(given)}"
            )
        made = {n: form.samples(given[n], f"{where} {n}".strip(), far=far) for n, form in forms.items()}
        made = {n: forms[n].scale(column) for n, column in made.items()} if self.scaled else made
        return equally_long(like(self.forms, made), where)

    def made_up(self, n: int) -> Inputs:
        """Return n raw samples that are nobody's; see `Form.made_up`."""
        return like(self.forms, {name: form.made_up(n) for name, form in columns(self.forms).items()})

    def targets(self, y: Any, where: str) -> torch.Tensor:
        """Return checked targets (N, ...), for classification class numbers (N,) of labels or label names."""
        return self.task.targets(y, where, self.labels)

    def labelled(self, x: Any, y: Any) -> tuple[Inputs, torch.Tensor]:
        """Return checked raw samples and as many targets."""
        check_index(x, y, "y")
        samples, targets = self.samples(x, "x"), self.targets(y, "y")
        if count(samples) != len(targets):
            raise FlocoError(
                f"there must be one label for each sample, got {count(samples)} samples and {len(targets)} labels"
            )
        return samples, targets


def equally_long(x: Inputs, where: str) -> Inputs:
    """Return inputs whose columns must have equally many samples."""
    sizes = {name: len(column) for name, column in columns(x).items()}
    if len(set(sizes.values())) > 1:
        raise FlocoError(f"{where}: the columns must have equally many samples, got {sizes}")
    return x
