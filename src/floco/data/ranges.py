"""The range of the training data, channel by channel: whether later samples have it, and samples made up in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from floco.core.errors import FlocoError, warn

# 10 samples that together span less than 5 % of the training data's range probably have another scale,
# and a value more than 10 ranges outside of its channel's range probably another unit.
_SEVERAL, _NARROW, _FAR = 10, 0.05, 10


def check_range(
    raw: torch.Tensor,
    ranges: Sequence[tuple[float, float]],
    where: str,
    share: float,
    *,
    offset: Sequence[float] = (),
    names: Sequence[str] = (),
) -> None:
    """Compare samples with the range of the training data.

    Args:
        raw: samples (N, C, ...) minus the offset.
        ranges: minimum and maximum of each channel of the training data; (): unknown.
        where: name of the array, for error messages.
        share: of the samples that may be far outside, with a warning.
        offset: what was subtracted from each channel; (): nothing.
        names: names of the channels, if they have some.

    Raises:
        FlocoError: more than this share of the samples are far outside of the range.
    """
    if not ranges:
        return
    _warn_of_little(raw, torch.tensor(ranges), where, names)
    noted: list[str] = []
    for channel, (low, high) in enumerate(ranges):
        values = raw[:, channel].reshape(len(raw), -1)
        reach = _FAR * (high - low)
        far = ((values < low - reach) | (values > high + reach)).any(dim=1)
        if reach > 0 and bool(far.any()):
            i = int(far.nonzero()[0])
            worst = max(values[i].tolist(), key=lambda v: max(low - v, v - high))
            worst, low, high = (v + (offset[channel] if offset else 0.0) for v in (worst, low, high))
            text = (
                f"{where}: sample {i} holds {worst:g} in channel {_name(channel, names)}, and the training data have "
                f"{low:g} to {high:g}: another unit, or another scaling?"
            )
            if int(far.sum()) > share * len(raw):
                raise FlocoError(text)
            noted.append(text)
    if noted:
        warn(noted[0] + (f" So do samples in {len(noted) - 1} other channels." if len(noted) > 1 else ""))


def _warn_of_little(raw: torch.Tensor, known: torch.Tensor, where: str, names: Sequence[str]) -> None:
    """Warn of samples that hardly vary, and of channels that vary only here."""
    others = (0, *range(2, raw.ndim))
    low, high = raw.amin(others).float(), raw.amax(others).float()
    wide, varied = known[:, 1] - known[:, 0], high - low
    if len(raw) >= _SEVERAL and bool((wide > 0).all()) and bool((varied < _NARROW * wide).all()):
        warn(
            f"{where}: in all channels, {len(raw)} samples vary by less than {_NARROW:.0%} of the training data's "
            "range: another unit, or another scaling?"
        )
    off = (wide == 0) & (torch.maximum(high - known[:, 0], known[:, 0] - low) > _NARROW * known[:, 0].abs())
    if bool((wide > 0).any()) and bool(off.any()):
        shown = ", ".join(_name(c, names) for c in off.nonzero().flatten().tolist()[:8])
        warn(
            f"{where}: channel {shown} is always the same in the training data, and not here: "
            "the model has not learnt to use it"
        )


def _name(channel: int, names: Sequence[str]) -> str:
    return repr(names[channel]) if names else str(channel)


def draw_in_range(ranges: Sequence[tuple[float, float]], shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return made-up samples of a shape (N, C, ...), the same ones every time; one range of ids is that of all."""
    low, high = torch.tensor(ranges, dtype=torch.float64).T
    if dtype != torch.int64:
        low, high = (ends.view(1, -1, *(1,) * (len(shape) - 2)) for ends in (low, high))
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = not dtype.is_floating_point
    made: torch.Tensor = low + drawn * (high - low + whole)
    return (made.floor().minimum(high) if whole else made).to(dtype)
