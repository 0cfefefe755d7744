"""`floco flower new`: generate an app folder for `flwr run`."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from floco.core.errors import FlocoError
from floco.data.models import find_ids
from floco.data.schema import Form
from floco.flower.facts import check_settings, lacking
from floco.runs import source
from floco.runs.config import REGISTRIES, Config
from floco.runs.toml import override, parse, put, to_toml
from floco.storage.files import write_file

_PACKAGE = "federation"

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0.0"
description = "A federation on floco: one model trained together, and one for every site"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>={flwr},<2", "floco[flower]=={floco}"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "{name}"
fab-format-version = 1
flwr-version-target = "{flwr}"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

# The settings of the run; override them for one run with: flwr run . --run-config "training.rounds=50"
# Lists are strings, since Flower allows scalars only. Another method has other settings: generate another app for it.
[tool.flwr.app.config]
out = "floco-run"  # run directory, relative to where the SuperLink was started; continued if it exists
{settings}"""

_SERVER = '''\
"""The server: `flwr run` starts it next to the SuperLink."""

from floco.flower import server_app

app = server_app()
'''

_CLIENT = '''\
"""The sites: each SuperNode starts it for a message. Pass Flower mods as `client_app(mods=[...])`."""

from floco.flower import client_app

app = client_app()
'''

_README = """\
# {name}: a federation on floco and Flower

`pyproject.toml` holds the settings of the run: the method, the model, the training, and what all sites share
{shared}.

On the server, once:

    flower-superlink --insecure --host 127.0.0.1 --port 8000 --disable-runtime-dependency-installation

At each site, with its own id, its own data and a persistent folder:

    flower-supernode --insecure --superlink 127.0.0.1:8000 \\
        --node-config 'client-id="north" data="/data/north.{ending}" state-dir="/var/lib/floco"'

A second one on the same machine needs `--port 9095` (the first has 9094), and another client-id and state-dir.

Then, from this folder, with `[superlink.local]`, `address = "127.0.0.1:8000"` and `insecure = true` in the file that
`flwr config list` shows:

    flwr run . local --stream

The data of a site are {samples}. `data` can also be any other floco source (`folder:/data/images`).
After the run, each site works without the server:

    floco export /var/lib/floco --client north -o north.onnx
    floco predict /var/lib/floco --client north new.{ending}

`--insecure` is for a trial on one machine. docs/flower.md of floco explains TLS and node keys for real sites, what the
server sees, and what to do when something fails.
"""


_EXAMPLES = {
    "data.labels": """'data.labels=["0","1"]'""",
    "flower.shape": "flower.shape=[8,8]",
    "model.ids": "model.ids=[99]",
}


def read_settings(values: Mapping[str, Any]) -> Config:
    """Return the settings in Flower's run configuration, which has flat dotted keys and lists as strings."""
    raw: dict[str, Any] = {}
    for key, value in values.items():
        is_list = isinstance(value, str) and value.startswith("[")
        put(raw, key, override(f"{key}={value}")[1] if is_list else value, "the run configuration")
    return parse(raw)


def _scalar_line(line: str) -> str:
    """Convert a line of a floco configuration to Flower's: nest its table, quote its list."""
    if line.startswith("["):
        return f"[tool.flwr.app.config.{line[1:]}"
    key, _, rest = line.partition(" = ")
    value, _, comment = rest.rpartition("  # ")
    quoted = json.dumps(value, ensure_ascii=False) if "'" in value else f"'{value}'"
    return f"{key} = {quoted}  # {comment}" if value.startswith("[") else line


def share_schema(config: Config) -> Config:
    """Return the configuration with what all sites share, read from its own data if it is not set.

    These are the labels, the shape of a sample and the number of ids.
    """
    missing, here = lacking(config), config.data.source not in (source.SITES, source.PYTHON)
    if not missing and (config.flower.shape or not here):
        return config
    if not here:
        example = " ".join(f"-s {_EXAMPLES[name]}" for name in missing)
        advice = "a data.source on this machine to read them from"
        raise FlocoError(f"the sites must agree on {', '.join(missing)}: give {example}, or {advice}")
    samples = source.samples(config)
    labels, forms = samples.schema.labels, samples.schema.forms
    data = replace(config.data, labels=labels.values) if config.task.named else config.data
    if samples.table is not None:
        data = replace(data, features=samples.table.features, leave_out=(), levels=samples.table.pairs)
    ids = config.model.ids or tuple(find_ids(samples.schema).values())
    flower = replace(config.flower, shape=forms.shape if isinstance(forms, Form) else ())
    return replace(config, data=data, flower=flower, model=replace(config.model, ids=ids))


def _unresolved(config: Config) -> Config:
    """Unset the method's derived settings, so that they are derived again when a run overrides others."""
    method: Any = config.algorithm
    for name in (f.name for f in fields(method) if f.default is None):
        plain = replace(method, **{name: None})
        method = plain if plain.resolved(config.training) == config.algorithm else method
    return replace(config, algorithm=method)


def _own_modules(config: Config) -> dict[str, bytes]:
    """Return the user's own source files that the settings name as `module:name`, and those that they import.

    Modules outside the current folder are installed packages, which each machine has to install.
    """
    chosen = {"algorithm": config.algorithm, "task": config.task, "data.split": config.data.split}
    names = [REGISTRIES[table].name_of(type(value)) for table, value in chosen.items()]
    names += [config.model.name, config.data.augment or ""]
    here, files = Path.cwd(), dict[str, bytes]()
    todo = [name.partition(":")[0].partition(".")[0] for name in names if ":" in name]
    while todo:
        module = todo.pop()
        if module == _PACKAGE:
            raise FlocoError(f"a module of an app cannot be called {_PACKAGE}, as its package is: rename it")
        for path in (here / f"{module}.py", *sorted((here / module).rglob("*.py"))):
            name = str(path.relative_to(here))
            if path.is_file() and name not in files:
                files[name] = path.read_bytes()
                todo += _imports(files[name])
    return files


def _imports(source: bytes) -> set[str]:
    """Return the top-level modules that a file imports."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    from_ = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in plain | from_}


def _describe_data(config: Config) -> dict[str, str]:
    """Return the ending of a site's data file, and what it holds, in words."""
    if target := config.data.target:
        targets = (target,) if isinstance(target, str) else target
        names = ", ".join(f"`{name}`" for name in (*config.data.features, *targets))
        return {"ending": "csv", "samples": f"a table (.csv, .parquet or .json) with the columns {names}"}
    x = "`x` (N, ...) of that shape" if config.flower.shape else "`x.NAME` (N, ...), the same inputs at all sites,"
    return {"ending": "npz", "samples": f"an npz file with samples {x} and targets `y` (N, ...), one for each"}


def write(folder: Path, config: Config) -> None:
    """Write an app for `flwr run` to an empty or absent folder, with the user's own modules that it names."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FlocoError(f"{folder} is not empty: choose another place")
    config = _unresolved(share_schema(config))
    check_settings(config)
    own = _own_modules(config)  # before the folder is there: it may be inside the user's own package
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in folder.resolve().name.lower()).strip("-")
    facts = {"name": name or "federation", "package": _PACKAGE, "floco": version("floco"), "flwr": version("flwr")}
    labels, shape = ", ".join(config.data.labels), config.flower.shape
    shared = [f"the labels ({labels})"] if labels else []
    shared += [f"the shape of a sample ({shape})"] if shape else []
    shared += [f"the number of ids of each input of ids ({config.model.ids})"] if config.model.ids else []
    facts["shared"] = f"({'; '.join(shared)})"
    facts |= _describe_data(config)
    facts["settings"] = "\n".join(map(_scalar_line, to_toml(config).splitlines())) + "\n"
    texts = {"pyproject.toml": _PYPROJECT, "README.md": _README, "LICENSE": "All rights reserved.\n"}
    files = {name: text.format(**facts) for name, text in texts.items()}
    files |= {f"{_PACKAGE}/__init__.py": "", f"{_PACKAGE}/server_app.py": _SERVER, f"{_PACKAGE}/client_app.py": _CLIENT}
    try:
        (folder / _PACKAGE).mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            write_file(folder / path, text.encode())
        for path, source in own.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_file(folder / path, source)
    except OSError as error:
        raise FlocoError(f"cannot write {folder}: {error.strerror or error}") from error
