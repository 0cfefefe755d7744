"""The data of a configuration: where they are, and the federation that they give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from floco.core.errors import FlocoError
from floco.data.federation import Federation
from floco.data.normalization import Normalization
from floco.data.samples import Samples
from floco.data.sources import load
from floco.data.table_files import TABLES
from floco.runs.config import Config

SITES = "sites"
"""`data.source` of a run across organisations: the data stay at its sites."""
PYTHON = "python"
"""`data.source` and `model.name` of a run started from Python: no file describes its data and model."""
_ON_DISK = ("npz", "idx", "folder", *TABLES)  # schemes of `data.source` that are followed by a path


def federation(config: Config) -> Federation:
    """Return the federation of a configuration: its data, loaded and split."""
    return divide(config, samples(config))


def samples(config: Config) -> Samples:
    """Return the samples of a configuration, not yet split."""
    data = config.data
    if data.source == SITES:
        raise FlocoError("the data are at the sites of a federation on Flower, and data.source names none here")
    if data.source == PYTHON:
        raise FlocoError(
            "this run was started from Python, and its directory does not describe its data and model: "
            "continue it with floco.fit(..., out=..., resume=True)"
        )
    roles = ("target", "client", "features", "leave_out", "order", "group")
    names = ("kind", "labels", "channels", "categories", "levels", "missing", *roles)
    return load(data.source, task=config.task, **{name: getattr(data, name) for name in names})


def divide(config: Config, samples: Samples) -> Federation:
    """Return the samples split over clients as a configuration says."""
    data = config.data
    return samples.split(
        data.split,
        clients=data.clients,
        samples=data.samples,
        seed=config.seed,
        test_share=data.test_share,
        held_out=data.held_out,
        normalize=Normalization(data.mean, data.std) if data.normalize == "fixed" else data.normalize,
        order=data.order,
        augment=data.augment,
        small=data.small,
        least=data.least,
    )


def resolve_paths(config: Config) -> Config:
    """Return the configuration with absolute paths, so that a run can be resumed from any working directory."""
    data, (scheme, _, rest) = config.data, config.data.source.partition(":")
    if scheme in _ON_DISK:
        data = replace(data, source=f"{scheme}:{Path(rest).resolve()}")
    model = replace(config.model, weights=config.model.weights and str(Path(config.model.weights).resolve()))
    return replace(config, data=data, model=model)


def show_source(config: Config) -> str:
    """Return the source of the data, without the directories of this machine."""
    scheme, _, rest = config.data.source.partition(":")
    return f"{scheme}:{Path(rest).name}" if scheme in _ON_DISK else config.data.source
