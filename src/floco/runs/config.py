"""The settings of a run: one class for each table of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from floco.algorithms import ALGORITHMS, Floco
from floco.core.algorithm import Algorithm
from floco.core.delivery import Delivery
from floco.core.errors import FlocoError
from floco.core.objects import Registry
from floco.core.settings import Settings, setting
from floco.core.task import Task
from floco.core.values import Training
from floco.data.augment import check_name
from floco.data.holdout import SMALL
from floco.data.partition import SPLITS, Folds
from floco.data.split import Split
from floco.data.table_roles import CATEGORIES, MISSING
from floco.tasks import TASKS, Classification


@dataclass(frozen=True)
class Data(Settings):
    """The samples, and their split over clients."""

    source: str = setting(
        "digits",
        "digits, npz:PATH, csv:PATH, parquet:PATH, json:PATH, idx:DIR, folder:DIR, hub:NAME, or module:function",
    )
    kind: str = setting(
        "auto",
        "kind of samples; images are channels last, ids are never scaled",
        choices=("auto", "images", "features", "ids"),
    )
    channels: str = setting(
        "auto", "position of channels or features: last is (T, F) for sequences", choices=("auto", "first", "last")
    )
    target: str | tuple[str, ...] = setting((), "of a table: the column of the targets, or a list of several")
    client: str | None = setting(None, 'column of client ids (empty: "client", if there is one)')
    features: tuple[str, ...] = setting((), "of a table: the columns that are features (empty: all others)")
    leave_out: tuple[str, ...] = setting((), "of a table: columns that are neither features nor anything else")
    categories: str = setting(
        "one-hot",
        "of a table: text becomes channels of 0 and 1, or ids (N,) as further inputs beside numbers (N, F)",
        choices=CATEGORIES,
    )
    levels: tuple[str, ...] = setting(
        (),
        'categories such as "sex=f" of columns that look like numbers, or that sites must agree on (empty: as found)',
    )
    missing: str = setting(
        "error",
        "samples that lack a value are refused, left out, or filled with the mean of the training parts",
        choices=MISSING,
    )
    clients: int | None = setting(None, "K: number of clients (natural: the first K; empty: all)", low=1)
    samples: int | None = setting(None, "samples per client, drawn at random (empty: all)", low=2)
    test_share: float = setting(0.2, "share of a client's samples that is its test part", above=0, below=1)
    held_out: int = setting(0, "number of clients, the last ones, excluded from training and evaluation", low=0)
    small: str = setting(
        "error",
        "clients with fewer than 2 samples or data.least: left out (drop), or trained on all samples and not evaluated",
        choices=SMALL,
    )
    least: int = setting(1, "fewest training samples of a client; one with fewer is small", low=1)
    labels: tuple[str, ...] = setting(
        (), "labels as text, in the order of the classes (empty: those that occur, sorted); sites must agree on them"
    )
    order: str | None = setting(
        None,
        "column of numbers or dates: a client's latest samples are its test part, and the one before them is dropped "
        "(empty: a random test part)",
    )
    group: str | None = setting(
        None, "column by whose values (sex, age band, device) metrics are also shown, in groups.csv; no feature"
    )
    normalize: str = setting(
        "train",
        "statistics of all training parts, of each client's own (client: such data are copied in memory), fixed mean "
        "and std (uint8 is first divided by 255), or none: raw values",
        choices=("train", "client", "fixed", "none"),
    )
    mean: tuple[float, ...] = setting((), "normalize fixed: mean of each channel, of several inputs all in a row")
    std: tuple[float, ...] = setting((), "normalize fixed: standard deviation of each channel", above=0)
    augment: str | None = setting(
        None,
        "random changes of training batches: flip, flip+crop (also moved by up to an eighth of the side), for images, "
        "or module:function(batch, generator) (empty: none)",
    )
    split: Split = field(default_factory=Folds)
    """How samples are split over clients."""

    def __post_init__(self) -> None:
        """Check the fields that depend on each other."""
        Settings.__post_init__(self)
        check_name(self.augment)
        if (self.normalize == "fixed") != bool(self.mean) or len(self.mean) != len(self.std):
            raise FlocoError(
                'mean and std belong to normalize = "fixed" and have one value per channel each, '
                f"got {self.normalize!r} with {self.mean} and {self.std}"
            )


@dataclass(frozen=True)
class Model(Settings):
    """The network."""

    name: str = setting(
        "mlp",
        "mlp, cnn, fcn (segmentation), gru (ids), cifar-cnn, femnist-cnn, or module:function that returns an nn.Module",
    )
    ids: tuple[int, ...] = setting(
        (),
        "number of ids that each input of ids may have, from 0 on (empty: one more than the largest); "
        "sites must agree on it",
        low=1,
    )
    weights: str | None = setting(
        None, "a .safetensors file with initial values; parameters that it lacks keep their own (empty: none)"
    )


@dataclass(frozen=True)
class RunSettings(Settings):
    """Where a run is computed and what it writes.

    Results do not depend on these settings, except for rounding with the engine cohort and on other devices.
    """

    engine: str = setting(
        "auto",
        "one process, worker processes, or worker processes that train several clients as one program; "
        "auto: cohort for small networks without convolutions, else processes",
        choices=("auto", "serial", "processes", "cohort"),
    )
    workers: int | None = setting(None, "worker processes (empty: one per core)", low=1)
    device: str = setting("cpu", "cpu, cuda, cuda:1, ...")
    evaluate_every: int = setting(5, "rounds between evaluations of all clients", low=1)
    checkpoint_every: int = setting(1, "rounds between checkpoints", low=1)
    trackers: tuple[str, ...] = setting(
        (), "mirrors of history.csv in folders of the run directory", choices=("tensorboard", "mlflow")
    )
    memory_budget: int = setting(32, "MB of the clients' memories that are kept in RAM; the rest is in files", low=0)
    max_failed: int = setting(5, "clients that may fail in a round before the run stops", low=0)


@dataclass(frozen=True)
class Flower(Settings):
    """A run across organisations (docs/flower.md); ignored by other runs."""

    sites: int = setting(2, "sites that must join before the first round", low=1)
    shape: tuple[int, ...] = setting(
        (), "shape of one sample in the sites' sources (empty: several inputs, whose shapes the sites tell)", low=1
    )
    wait: float = setting(600.0, "seconds to wait for sites to join, and for enough of them to be connected", above=0)
    deadline: float = setting(3600.0, "seconds after which a round closes without the missing answers", above=0)
    quorum: float = setting(
        0.5, "share of the clients asked to train that must have answered when a round closes", above=0, high=1
    )
    most_samples: int = setting(10_000_000, "most samples that a site may report, for train and test each", low=1)


@dataclass(frozen=True)
class Config(Settings):
    """All settings of one run."""

    seed: int = setting(0, "seed of all random numbers", low=0)
    data: Data = field(default_factory=Data)
    task: Task = field(default_factory=Classification)
    model: Model = field(default_factory=Model)
    algorithm: Algorithm = field(default_factory=Floco)
    training: Training = field(default_factory=Training)
    deliver: Delivery = field(default_factory=Delivery)
    run: RunSettings = field(default_factory=RunSettings)
    flower: Flower = field(default_factory=Flower)


SECTIONS: dict[str, type[Any]] = {
    "data": Data,
    "model": Model,
    "training": Training,
    "deliver": Delivery,
    "run": RunSettings,
    "flower": Flower,
}
REGISTRIES = {
    "data.split": Registry("data.split", Split, SPLITS),
    "task": Registry("task.name", Task, TASKS),
    "algorithm": Registry("algorithm.name", Algorithm, ALGORITHMS, "floco.algorithms"),
}
"""Tables whose `name` chooses a class, which has the other settings of the table."""
DEFAULTS = {"data.split": "folds", "task": "classification", "algorithm": "floco"}


def describe(config: Config) -> dict[str, Any]:
    """Return what readers of a run directory need to know without its classes: the method's word, and the metrics."""
    return {"method": config.algorithm.name, "metrics": config.task.metrics.plain()}


def check_importable(config: Config) -> None:
    """Raise if a run directory could not be opened, because a class of its own cannot be imported by its name."""
    for value, table in ((config.algorithm, "algorithm"), (config.task, "task")):
        registry = REGISTRIES[table]
        name = registry.name_of(type(value))
        if name.startswith("__main__:"):
            raise FlocoError(f"{name}: a run directory needs a class that others can import: put it in a module")
        try:
            found = registry.find(name)
        except FlocoError as error:
            raise FlocoError(
                f"{error}; a run directory needs a class that it can import: put it in a module"
            ) from error
        if found is not type(value):
            raise FlocoError(f"{name} is another class than the one given: give each class a name of its own")
