"""Floco: one federated model on a solution simplex, and a personal one for every client.

Names are resolved when they are first used: importing torch alone takes a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from floco import simplex as simplex
    from floco.algorithms import ALGORITHMS as ALGORITHMS
    from floco.algorithms import Ditto as Ditto
    from floco.algorithms import FedAvg as FedAvg
    from floco.algorithms import FedAvgFT as FedAvgFT
    from floco.algorithms import Floco as Floco
    from floco.algorithms import FlocoPlus as FlocoPlus
    from floco.algorithms import Local as Local
    from floco.api import Run as Run
    from floco.api import fit as fit
    from floco.api import open_run as open_run
    from floco.api import rounds as rounds
    from floco.core.algorithm import Algorithm as Algorithm
    from floco.core.errors import FlocoError as FlocoError
    from floco.data.federation import Federation as Federation
    from floco.data.models import model as model
    from floco.data.partition import Dirichlet as Dirichlet
    from floco.data.partition import Folds as Folds
    from floco.data.partition import Natural as Natural
    from floco.data.sources import load as load

_HOMES = {
    "algorithms": ("ALGORITHMS", "Ditto", "FedAvg", "FedAvgFT", "Floco", "FlocoPlus", "Local"),
    "core.algorithm": ("Algorithm",),
    "core.errors": ("FlocoError",),
    "data.federation": ("Federation",),
    "data.models": ("model",),
    "data.partition": ("Dirichlet", "Folds", "Natural"),
    "api": ("Run", "fit", "open_run", "rounds"),
    "data.sources": ("load",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME), "simplex"]


def __getattr__(name: str) -> Any:
    if name == "simplex":
        return importlib.import_module("floco.simplex")
    if name not in _HOME:
        raise AttributeError(f"module 'floco' has no attribute {name!r}")
    return getattr(importlib.import_module(f"floco.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
