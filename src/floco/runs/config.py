"""The configuration of a run: from TOML and `-s key=value` to checked settings, and back to TOML."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from floco.algorithms import ALGORITHMS, Floco
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError, nearest
from floco.core.settings import Settings, build, plain, range_text, setting
from floco.core.values import Training
from floco.data.partition import SPLITS, Split

T = TypeVar("T")


@dataclass(frozen=True)
class Data(Settings):
    """The samples, and their split over clients."""

    source: str = setting("digits", "digits, npz:PATH, idx:DIR, folder:DIR, hub:NAME, or module:function")
    kind: str = setting("auto", "kind of samples; images are channels last", choices=("auto", "images", "features"))
    channels: str = setting(
        "auto", "position of channels or features: last is (T, F) for sequences", choices=("auto", "first", "last")
    )
    split: str = setting("folds", "how samples are split over clients", choices=tuple(SPLITS))
    clients: int | None = setting(None, "K: number of clients (natural: the first K; empty: all)", low=1)
    samples: int | None = setting(None, "samples per client, drawn at random (empty: all)", low=2)
    test_share: float = setting(0.2, "share of a client's samples that is its test part", above=0, below=1)
    held_out: int = setting(0, "number of clients, the last ones, excluded from training and evaluation", low=0)
    folds: int = setting(5, "folds: number of groups of clients with classes in common", low=2)
    share: float = setting(0.8, "folds: share of a client's samples that is from its fold's classes", low=0, high=1)
    alpha: float = setting(0.5, "dirichlet, dirichlet-sizes: concentration; smaller is more heterogeneous", above=0)
    classes: int = setting(2, "pathological: classes per client", low=1)
    id: str = setting("site", "single: the client's id")
    labels: tuple[str, ...] = setting(
        (), "labels as text, in the order of the classes (empty: those that occur, sorted); sites must agree on them"
    )
    order: str | None = setting(
        None,
        "column of numbers or dates: a client's latest samples are its test part, and the one before them is dropped "
        "(empty: a random test part)",
    )
    normalize: str = setting(
        "train",
        "statistics of the training parts, fixed mean and std (uint8 is first divided by 255), or none: raw values",
        choices=("train", "fixed", "none"),
    )
    mean: tuple[float, ...] = setting((), "normalize fixed: mean of each channel")
    std: tuple[float, ...] = setting((), "normalize fixed: standard deviation of each channel", above=0)

    def __post_init__(self) -> None:
        """Check the fields that depend on each other."""
        Settings.__post_init__(self)
        if (self.normalize == "fixed") != bool(self.mean) or len(self.mean) != len(self.std):
            raise FlocoError(
                'mean and std belong to normalize = "fixed" and have one value per channel each, '
                f"got {self.normalize!r} with {self.mean} and {self.std}"
            )

    @property
    def splitter(self) -> Split:
        """The split, with its settings taken from these fields."""
        cls = SPLITS[self.split]
        return cls(**{f.name: getattr(self, f.name) for f in dataclasses.fields(cls)})


@dataclass(frozen=True)
class Model(Settings):
    """The network."""

    name: str = setting("mlp", "cnn, mlp, cifar-cnn, femnist-cnn, or module:function that returns an nn.Module")
    weights: str | None = setting(
        None, "a .safetensors file with initial values; parameters that it lacks keep their own (empty: none)"
    )


@dataclass(frozen=True)
class Run(Settings):
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
    shape: tuple[int, ...] = setting((), "shape of one sample in the sites' sources", low=1)
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
    model: Model = field(default_factory=Model)
    algorithm: Algorithm = field(default_factory=Floco)
    training: Training = field(default_factory=Training)
    run: Run = field(default_factory=Run)
    flower: Flower = field(default_factory=Flower)


_SECTIONS: dict[str, type[Any]] = {"data": Data, "model": Model, "training": Training, "run": Run, "flower": Flower}


def read(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a TOML file (None: this package's digits.toml) with `key=value` overrides.

    Keys are dotted. Overriding `algorithm.name` drops the file's settings of the other algorithm; overriding
    `data.source` without a file drops the data settings of digits.toml.
    """
    file = Path(__file__).with_name("digits.toml") if path is None else path
    try:
        raw: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlocoError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FlocoError(f"{file}: not a TOML file: {error}") from error
    changes = [override(text) for text in overrides]
    name = next((v for k, v in reversed(changes) if k == "algorithm.name"), None)
    if path is None and any(k == "data.source" and v != "digits" for k, v in changes):
        raw["data"] = {}  # the split of the digits does not apply to other data
    if name is not None and isinstance(raw.get("algorithm"), dict) and raw["algorithm"].get("name", "floco") != name:
        raw["algorithm"] = {}
    for key, value in changes:
        section, _, leaf = key.rpartition(".")
        table = raw.setdefault(section, {}) if section else raw
        if not isinstance(table, dict):
            raise FlocoError(f"-s {key}: {section} is not a table")
        table[leaf] = value
    return parse(raw, str(path) if path is not None else "")


def override(text: str) -> tuple[str, Any]:
    """Return key and value of a text `key=value`; a value that is not valid TOML is text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise FlocoError(f"-s needs key=value, got {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def parse(raw: Mapping[str, Any], where: str = "") -> Config:
    """Return the configuration from nested tables; error messages name the file `where` and the key."""
    prefix = f"{where}: " if where else ""
    known = ["seed", *_SECTIONS, "algorithm"]
    for key in raw:
        if key not in known:
            raise FlocoError(f"{prefix}unknown key {key!r}{nearest(key, known)}")
    for key in (*_SECTIONS, "algorithm"):
        if not isinstance(raw.get(key, {}), Mapping):
            raise FlocoError(f"{prefix}{key} must be a table, got {raw[key]!r}")
    sections = {key: _section(cls, key, raw.get(key, {}), prefix) for key, cls in _SECTIONS.items()}
    algorithm = dict(raw.get("algorithm", {}))
    name = algorithm.pop("name", "floco")
    if not isinstance(name, str) or name not in ALGORITHMS:
        offer = nearest(str(name), ALGORITHMS)
        raise FlocoError(f"{prefix}algorithm.name must be one of {', '.join(ALGORITHMS)}, got {name!r}{offer}")
    made: Algorithm = _section(ALGORITHMS[name], "algorithm", algorithm, prefix)
    try:
        made = made.resolved(sections["training"])
        return Config(raw.get("seed", 0), algorithm=made, **sections)
    except FlocoError as error:
        raise FlocoError(f"{prefix}{error}") from error


def _section(cls: type[T], name: str, values: Mapping[str, Any], prefix: str) -> T:
    try:
        return build(cls, values)
    except FlocoError as error:
        separator = ": " if str(error).startswith("unknown") else "."
        raise FlocoError(f"{prefix}{name}{separator}{error}") from error


def as_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as nested plain values, including the algorithm's name."""
    flat = {k: plain(v) if dataclasses.is_dataclass(v) else v for k, v in plain(config).items()}
    flat["algorithm"] = {"name": config.algorithm.name, **flat["algorithm"]}
    return flat


def _toml(value: Any) -> str:
    """Return a value as TOML; None is the empty string."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps("" if value is None else value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _documented(settings: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields of settings that have a description."""
    return [f for f in dataclasses.fields(settings) if "doc" in f.metadata]


def _lines(settings: Any) -> list[str]:
    return [f"{f.name} = {_toml(getattr(settings, f.name))}  # {_comment(f)}" for f in _documented(settings)]


def _comment(f: dataclasses.Field[Any]) -> str:
    allowed = range_text(f)
    return str(f.metadata["doc"]) + (f" ({allowed})" if allowed else "")


def to_toml(config: Config) -> str:
    """Return the configuration as TOML, with a comment per setting; reading it gives the same configuration."""
    lines = _lines(config)
    for name in ("data", "model", "algorithm", "training", "run", "flower"):
        value = getattr(config, name)
        lines += ["", f"[{name}]"]
        lines += [f"name = {_toml(value.name)}  # one of {', '.join(ALGORITHMS)}"] if name == "algorithm" else []
        lines += _lines(value)
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Return the table of all keys with default and meaning, as Markdown."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    groups: dict[str, type[Any]] = {"": Config} | {f"{name}.": cls for name, cls in _SECTIONS.items()}
    groups |= {f"algorithm. ({name})": cls for name, cls in ALGORITHMS.items()}
    for prefix, cls in groups.items():
        start, _, which = prefix.partition(" ")
        lines = (f"| `{start}{f.name}` {which} | `{_toml(f.default)}` | {_comment(f)} |" for f in _documented(cls))
        rows += [line.replace("  |", " |") for line in lines]
    return "\n".join(rows) + "\n"


def methods() -> str:
    """Return the table of all algorithms with rule, global and personal model, and settings, as Markdown."""
    rows = ["| method | rule | global model | personal model | settings and defaults |", "|---|---|---|---|---|"]
    classes: dict[str, type[Any]] = {**ALGORITHMS}
    for name, cls in classes.items():
        words = " ".join((cls.__doc__ or "").split(">>>")[0].split())
        found = re.search(r"Global (?:and personal )?model: (.*?)(?:; personal: (.*?))?\.(?: [A-Z]|$)", words)
        assert found is not None, name  # every docstring names its models
        one, own = found.group(1), found.group(2) or found.group(1)
        rule = words[: found.start()].strip().replace("|", "\\|")
        settings = "; ".join(f"`{f.name}` = `{_toml(f.default)}`: {_comment(f)}" for f in _documented(cls))
        rows.append(f"| `{name}` | {rule} | {one} | {own} | {settings or 'none'} |")
    return "\n".join(rows) + "\n"
