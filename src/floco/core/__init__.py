"""What travels between server and clients, and what an algorithm and a task are. No files, no clock, no printing.

The author of a method, a split or a task imports from here: `from floco.core import Algorithm, Phase, Step, ...`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from floco.core.objects import lazy

if TYPE_CHECKING:
    from floco.core.algorithm import Algorithm as Algorithm
    from floco.core.algorithm import average as average
    from floco.core.algorithm import weighted_mean as weighted_mean
    from floco.core.errors import FlocoError as FlocoError
    from floco.core.metrics import Metric as Metric
    from floco.core.metrics import Metrics as Metrics
    from floco.core.metrics import Score as Score
    from floco.core.mixing import Mixing as Mixing
    from floco.core.network import Network as Network
    from floco.core.random import stream as stream
    from floco.core.settings import setting as setting
    from floco.core.task import Labels as Labels
    from floco.core.task import Task as Task
    from floco.core.values import PERSONAL as PERSONAL
    from floco.core.values import RECEIVED as RECEIVED
    from floco.core.values import Batch as Batch
    from floco.core.values import ClientInfo as ClientInfo
    from floco.core.values import Combined as Combined
    from floco.core.values import Facts as Facts
    from floco.core.values import Layout as Layout
    from floco.core.values import Message as Message
    from floco.core.values import Models as Models
    from floco.core.values import Phase as Phase
    from floco.core.values import Selection as Selection
    from floco.core.values import ServerState as ServerState
    from floco.core.values import Step as Step
    from floco.core.values import Tensors as Tensors
    from floco.core.values import Training as Training
    from floco.core.values import Update as Update
    from floco.core.values import add_prefix as add_prefix
    from floco.core.values import personalize as personalize
    from floco.core.values import plain_loss as plain_loss
    from floco.core.values import pull as pull
    from floco.core.values import strip_prefix as strip_prefix

_VALUES = "PERSONAL RECEIVED Batch ClientInfo Combined Facts Layout Message Models Phase Selection ServerState Step"
_VALUES += " Tensors Training Update add_prefix personalize plain_loss pull strip_prefix"
_get, __all__ = lazy(
    __name__,
    {
        "floco.core.algorithm": ("Algorithm", "average", "weighted_mean"),
        "floco.core.errors": ("FlocoError",),
        "floco.core.metrics": ("Metric", "Metrics", "Score"),
        "floco.core.mixing": ("Mixing",),
        "floco.core.network": ("Network",),
        "floco.core.random": ("stream",),
        "floco.core.settings": ("setting",),
        "floco.core.task": ("Labels", "Task"),
        "floco.core.values": tuple(_VALUES.split()),
    },
)


def __getattr__(name: str) -> Any:
    return _get(name)
