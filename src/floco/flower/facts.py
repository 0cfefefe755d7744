"""What a site tells of its data when it joins: as the site writes it, and as the server checks it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from floco.core.errors import FlocoError
from floco.core.inputs import Inputs, columns
from floco.core.random import one_thread
from floco.core.task import Labels
from floco.data.arrays import CHANNELS, channels_first
from floco.data.federation import Client, Federation
from floco.data.normalization import Sums, sum_channels
from floco.data.schema import Form
from floco.runs.config import Config
from floco.tasks import Classification

SiteFacts = dict[str, Any]
"""Facts of one site, as JSON has them.

- `n_train`, `n_test`: its samples.
- `inputs`: `one`, `tuple` or `dict`; `columns`: for each input its name, shape (in the source), dtype, channels,
  features (names of a table's columns), and the sums for the normalisation.
- `table`: columns and categories of a table.
- `target`: its shape, dtype and names.
- `statistics`: the sums of the task over the training part.
"""

DTYPES = {"uint8": torch.uint8, "int64": torch.int64, "float32": torch.float32}
_NUMBERS = 10**7  # most values in a sample or a target, of all columns together
_OUTPUTS = 10**5  # most outputs of a network
_COLUMNS = 1000  # most inputs of a network
_SHAPES, _TEXTS = "a shape of at most 8 dimensions, each from 1 to 2**31 - 1", "of at most 1000 characters"
_SUM, _SQUARE = 1e30, 1e60  # sums must be below, of values and of squares


def lacking(config: Config) -> tuple[str, ...]:
    """Return the settings that sites must share and that are not set.

    A network of the user's own may have several inputs, whose shapes the sites tell.
    """
    built_in = ":" not in config.model.name
    needed = {
        "data.labels": config.task.named and not config.data.labels,
        "flower.shape": built_in and not config.flower.shape,
        "model.ids": config.model.name == "gru" and not config.model.ids,
    }
    return tuple(name for name, lacks in needed.items() if lacks)


def check_settings(config: Config) -> None:
    """Raise if a setting that all sites share is missing, or tells what sites keep to themselves."""
    if missing := lacking(config):
        raise FlocoError(
            f"the run's configuration must name {' and '.join(missing)}, which all sites share: "
            "floco flower new writes them"
        )
    if isinstance(config.task, Classification) and config.task.class_weights == "balanced":
        raise FlocoError(
            'task.class_weights = "balanced" would tell the server how many samples of each class a site has: '
            "agree on weights, and give them as numbers, one for each of data.labels"
        )
    if config.deliver.model == "chosen" and config.data.order is not None:
        raise FlocoError(
            'deliver.model = "chosen" holds samples back at random across organisations, and data.order asks for the '
            "latest ones: leave data.order out, or deliver another model"
        )


def tell(config: Config, federation: Federation, client: Client) -> SiteFacts:
    """Return the facts of a client's data, apart from its sample counts; no single sample or target.

    Args:
        config: the run's configuration.
        federation: the site's data, not normalised.
        client: the site's client.
    """
    forms, y = columns(federation.schema.forms), federation.y
    with one_thread():
        statistics = config.task.statistics(y[client.train])
    told = []
    for name, x in columns(federation.x).items():
        form, summed = forms[name], config.data.normalize == "train" and x.dtype != torch.int64
        sums: Sums = sum_channels(x, client.train) if summed else (0, (), ())
        layout: SiteFacts = {"name": name, "shape": list(form.shape), "dtype": form.dtype, "channels": form.channels}
        count = list(sums[0]) if isinstance(sums[0], tuple) else sums[0]
        layout |= {"features": list(form.features), "count": count, "sum": list(sums[1]), "square": list(sums[2])}
        told.append(layout)
    names = [] if config.data.labels else list(federation.names)
    target = {"shape": list(y.shape[1:]), "dtype": str(y.dtype).removeprefix("torch."), "names": names}
    table = [] if federation.table is None else [*federation.table.features, *federation.table.pairs]
    plain = {"inputs": _kind(federation.x), "columns": told, "table": table}
    return {**plain, "target": target, "statistics": list(statistics)}


def _kind(x: Inputs) -> str:
    return "dict" if isinstance(x, dict) else "tuple" if isinstance(x, tuple) else "one"


def check_facts(told: SiteFacts, config: Config, n: int) -> SiteFacts:
    """Return what a site tells of its data, every number of it checked.

    Args:
        told: the facts, as the site sent them.
        config: the run's configuration.
        n: its training samples.

    Raises:
        FlocoError: numbers that no site can have, or data that are not those of the run.
        TypeError, KeyError, ValueError: it is malformed.
    """
    inputs, many = told["inputs"], told["columns"]
    names = [c["name"] for c in many]
    known = inputs in ("one", "tuple", "dict") and (inputs == "one") == (names == [""])
    if not known or not 1 <= len(names) <= _COLUMNS or len(set(names)) < len(names):
        raise FlocoError(
            f"its samples must have one input, or several inputs with names of their own, {_COLUMNS} at most; "
            f"got {inputs!r:.20} of {len(names)}"
        )
    if wrong := [c["shape"] for c in many if not _is_shape(c["shape"])]:
        raise FlocoError(f"its samples must have {_SHAPES}, got {wrong[0]!r:.100}")
    _check_inputs(inputs, many, config)
    checked = [_check_column(c, config, n) for c in many]
    if len(told["table"]) > _OUTPUTS or not all(map(_is_text, told["table"])):
        raise FlocoError(f"the columns and categories of its table must be at most {_OUTPUTS} texts, {_TEXTS}")
    target = _check_target(told["target"], config)
    y = torch.zeros(1, *target["shape"], dtype=DTYPES[target["dtype"]])
    statistics = [float(v) for v in told["statistics"]]
    wanted = len(config.task.statistics(y))
    if len(statistics) != wanted or not config.task.plausible(statistics, n):
        raise FlocoError(f"its sums of the targets are not those of {n} samples: {wanted} numbers that fit together")
    plain = {"inputs": inputs, "columns": checked, "table": list(told["table"])}
    return {**plain, "target": target, "statistics": statistics}


def _check_inputs(inputs: str, many: Sequence[SiteFacts], config: Config) -> None:
    """Raise if a site's inputs (`one`, `tuple` or `dict`) are not those of the run, or too large."""
    shape = config.flower.shape
    if len(config.model.ids) != len(some := [c["name"] for c in many if c["dtype"] == "int64"]):
        which = f" ({', '.join(some)})" if any(some) else ""
        raise FlocoError(f"model.ids of the run must have one number for each of {len(some)} inputs of ids{which}")
    if inputs != "one":
        if shape:
            raise FlocoError(f"the run is about one input of shape {shape} (flower.shape), and these are several")
        if sum(math.prod(c["shape"]) for c in many) > _NUMBERS:
            raise FlocoError(f"samples of several inputs may have {_NUMBERS} values at most")
        return
    if not shape:
        raise FlocoError("the run's configuration must name flower.shape, the shape of one sample, for a single input")
    if (own := tuple(many[0]["shape"])) != shape:
        raise FlocoError(f"the run is about samples of shape {shape}, and these have {own}")


def _check_column(told: SiteFacts, config: Config, n: int) -> SiteFacts:
    name, dtype, channels, shape = (told[key] for key in ("name", "dtype", "channels", "shape"))
    if dtype not in DTYPES or channels not in CHANNELS or not _is_text(name) or not (shape or dtype == "int64"):
        raise FlocoError(
            f"the type {dtype!r:.20} of an input must be one of {', '.join(DTYPES)}, its channels {channels!r:.20} one "
            f"of {', '.join(CHANNELS)}, and its name {_TEXTS}; only ids may have no dimension"
        )
    made = {"name": name, "shape": shape, "dtype": dtype, "channels": channels}
    features = told["features"]
    layout = channels_first(torch.empty(1, *shape, device="meta"), channels).shape
    if features and (len(features) != layout[1] or not all(map(_is_text, features))):
        raise FlocoError(f"its table must have one name for each of {layout[1]} features, got {str(features)[:100]}")
    made["features"] = list(features)
    if config.data.normalize != "train" or dtype == "int64":
        return {**made, "count": 0, "sum": [], "square": []}
    count, *both = told["count"], *([float(v) for v in told[key]] for key in ("sum", "square"))
    most, given = n * math.prod(layout[2:]), count if isinstance(count, list) else [count] * layout[1]
    least = 0 if config.data.missing == "mean" else most  # some values may be missing
    known = all(type(v) is int and least <= v <= most for v in given)
    plausible = known and all(len(v) == layout[1] for v in (given, *both))
    if not plausible or not all(abs(a) < _SUM and 0 <= b < _SQUARE for a, b in zip(*both, strict=True)):
        wanted = f"one a channel, below {_SUM:g}, and squares from 0 to {_SQUARE:g}"
        raise FlocoError(f"its sums for the normalisation are not those of its samples: {wanted}")
    return {**made, "count": count, "sum": both[0], "square": both[1]}


def _check_target(told: SiteFacts, config: Config) -> SiteFacts:
    shape, dtype, names = told["shape"], told["dtype"], told["names"]
    most = max(_NUMBERS, math.prod(config.flower.shape))
    if dtype not in ("int64", "float32") or not _is_shape(shape) or not all(map(_is_text, names)):
        raise FlocoError(f"its targets must be int64 or float32, with {_SHAPES}, and names {_TEXTS}")
    if math.prod(shape) > most or len(names) > _OUTPUTS:
        raise FlocoError(f"a target may have {most} values and {_OUTPUTS} names at most")
    named = config.data.labels or tuple(names)
    outputs = config.task.outputs(torch.zeros(1, *shape), Labels(named, named))
    if not 1 <= outputs <= _OUTPUTS:
        raise FlocoError(f"its targets need a network of {outputs} outputs; {_OUTPUTS} are the most")
    return {"shape": shape, "dtype": dtype, "names": list(names)}


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) <= 8 and all(type(v) is int and 1 <= v < 2**31 for v in shape)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1000


def difference(facts: SiteFacts, other: SiteFacts, whose: str) -> str | None:
    """Return in words how a site's samples or targets look different from others; None: they do not.

    `whose` says what the others are, e.g. "those of the other sites".
    """
    layouts = [[{k: c[k] for k in _LAYOUT} for c in f["columns"]] for f in (facts, other)]
    if facts["inputs"] != other["inputs"] or layouts[0] != layouts[1]:
        own, others = (_show_columns(f) for f in (facts, other))
        return f"its samples are {own}, and {whose} {others}"
    features = [[f["table"], *(c["features"] for c in f["columns"])] for f in (facts, other)]
    for mine, their in zip(*features, strict=True):
        if mine != their:
            own, others = ((", ".join(names) or "without names")[:200] for names in (mine, their))
            return f"the columns of its table are {own}, and {whose} {others}: set data.features and data.levels"
    if facts["target"] != other["target"]:
        own, others = (_show_target(f["target"]) for f in (facts, other))
        return f"its targets are {own}, and {whose} {others}"
    return None


_LAYOUT = ("name", "shape", "dtype", "channels")


def _show_columns(facts: SiteFacts) -> str:
    parts = (
        f"{c['name']} {c['dtype']} {(*c['shape'],)} with channels {c['channels']}".strip() for c in facts["columns"]
    )
    return ("positional: " if facts["inputs"] == "tuple" else "") + ", ".join(parts)


def _show_target(target: SiteFacts) -> str:
    names = f" called {', '.join(target['names'])}"[:200] if target["names"] else ""
    return f"{target['dtype']} {(*target['shape'],)}{names}"


def form_of(column: SiteFacts) -> Form:
    """Return the form of a column, without its normalisation."""
    return Form(column["channels"], features=tuple(column["features"]))
