"""Floco: one federated model on a solution simplex, and a personal one for every client.

Names are resolved when they are first used: importing torch alone takes a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from floco.core.objects import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from floco import simplex as simplex
    from floco import testing as testing
    from floco.algorithms import ALGORITHMS as ALGORITHMS
    from floco.algorithms import Ditto as Ditto
    from floco.algorithms import FedAvg as FedAvg
    from floco.algorithms import FedAvgFT as FedAvgFT
    from floco.algorithms import Floco as Floco
    from floco.algorithms import FlocoPlus as FlocoPlus
    from floco.algorithms import Local as Local
    from floco.api import fit as fit
    from floco.api import open_run as open_run
    from floco.api import rounds as rounds
    from floco.core.algorithm import Algorithm as Algorithm
    from floco.core.delivery import Delivery as Delivery
    from floco.core.errors import FlocoError as FlocoError
    from floco.core.task import Task as Task
    from floco.data.federation import Federation as Federation
    from floco.data.models import model as model
    from floco.data.partition import Dirichlet as Dirichlet
    from floco.data.partition import Folds as Folds
    from floco.data.partition import Natural as Natural
    from floco.data.sources import load as load
    from floco.runs.results import Run as Run

_get, _names = lazy(
    __name__,
    {
        "floco.algorithms": ("ALGORITHMS", "Ditto", "FedAvg", "FedAvgFT", "Floco", "FlocoPlus", "Local"),
        "floco.api": ("fit", "open_run", "rounds"),
        "floco.core.algorithm": ("Algorithm",),
        "floco.core.delivery": ("Delivery",),
        "floco.core.errors": ("FlocoError",),
        "floco.core.task": ("Task",),
        "floco.data.federation": ("Federation",),
        "floco.data.models": ("model",),
        "floco.data.partition": ("Dirichlet", "Folds", "Natural"),
        "floco.data.sources": ("load",),
        "floco.runs.results": ("Run",),
    },
)
__all__ = [*_names, "simplex", "testing"]


def __getattr__(name: str) -> Any:
    return importlib.import_module(f"floco.{name}") if name in ("simplex", "testing") else _get(name)


def __dir__() -> list[str]:
    return __all__
