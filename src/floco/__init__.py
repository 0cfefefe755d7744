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
    from floco.contract import Algorithm as Algorithm
    from floco.errors import FlocoError as FlocoError
    from floco.federation import Federation as Federation
    from floco.models import model as model
    from floco.partition import Dirichlet as Dirichlet
    from floco.partition import Folds as Folds
    from floco.partition import Natural as Natural
    from floco.run import Run as Run
    from floco.run import fit as fit
    from floco.run import open_run as open_run
    from floco.run import rounds as rounds
    from floco.sources import load as load

_HOMES = {
    "algorithms": ("ALGORITHMS", "Ditto", "FedAvg", "FedAvgFT", "Floco", "FlocoPlus", "Local"),
    "contract": ("Algorithm",),
    "errors": ("FlocoError",),
    "federation": ("Federation",),
    "models": ("model",),
    "partition": ("Dirichlet", "Folds", "Natural"),
    "run": ("Run", "fit", "open_run", "rounds"),
    "sources": ("load",),
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
