"""The registry of algorithms: one file each, one line here."""

from floco.algorithms.ditto import Ditto
from floco.algorithms.fedavg import FedAvg
from floco.algorithms.fedavg_ft import FedAvgFT
from floco.algorithms.floco import Floco
from floco.algorithms.floco_plus import FlocoPlus
from floco.algorithms.local import Local
from floco.contract import Algorithm

ALGORITHMS: dict[str, type[Algorithm]] = {a.name: a for a in (Floco, FlocoPlus, FedAvg, FedAvgFT, Ditto, Local)}
"""Name -> class; the hyperparameters are the class's fields."""

__all__ = ["ALGORITHMS", "Ditto", "FedAvg", "FedAvgFT", "Floco", "FlocoPlus", "Local"]
