"""The registry of algorithms: each has one file, and one line here."""

from floco.algorithms.apfl import APFL
from floco.algorithms.ditto import Ditto
from floco.algorithms.fedavg import FedAvg
from floco.algorithms.fedavg_ft import FedAvgFT
from floco.algorithms.fedbabu import FedBABU
from floco.algorithms.fedbn import FedBN
from floco.algorithms.fedem import FedEM
from floco.algorithms.fedmerge import FedMerge
from floco.algorithms.fedper import FedPer
from floco.algorithms.fedprox import FedProx
from floco.algorithms.fedrep import FedRep
from floco.algorithms.fedrod import FedRoD
from floco.algorithms.fedsa_lora import FedSALoRA
from floco.algorithms.ffa_lora import FFALoRA
from floco.algorithms.floco import Floco
from floco.algorithms.floco_plus import FlocoPlus
from floco.algorithms.ifca import IFCA
from floco.algorithms.knn_per import KNNPer
from floco.algorithms.lg_fedavg import LGFedAvg
from floco.algorithms.local import Local
from floco.algorithms.lp_ft import LPFT
from floco.algorithms.pfedme import PFedMe
from floco.algorithms.scaffold import SCAFFOLD
from floco.algorithms.superfed import SuPerFed
from floco.core.algorithm import Algorithm

_ALL: tuple[type[Algorithm], ...] = (
    Floco,
    FlocoPlus,
    FedAvg,
    FedAvgFT,
    Local,
    FedProx,
    SCAFFOLD,
    Ditto,
    PFedMe,
    APFL,
    FedPer,
    FedRep,
    FedRoD,
    SuPerFed,
    LPFT,
    LGFedAvg,
    FedBABU,
    IFCA,
    FedBN,
    FedMerge,
    FedEM,
    KNNPer,
    FFALoRA,
    FedSALoRA,
)
ALGORITHMS: dict[str, type[Algorithm]] = {a.name: a for a in _ALL}
"""Name -> class; the hyperparameters are the class's fields."""

__all__ = [
    "ALGORITHMS",
    "APFL",
    "FFALoRA",
    "IFCA",
    "LPFT",
    "SCAFFOLD",
    "Ditto",
    "FedAvg",
    "FedAvgFT",
    "FedBABU",
    "FedBN",
    "FedEM",
    "FedMerge",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedRoD",
    "FedSALoRA",
    "Floco",
    "FlocoPlus",
    "KNNPer",
    "LGFedAvg",
    "Local",
    "PFedMe",
    "SuPerFed",
]
