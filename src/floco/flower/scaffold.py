"""`floco flower new`: a folder that `flwr run` accepts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from floco.core.errors import FlocoError
from floco.data.sources import load
from floco.runs import session
from floco.runs.config import Config, override, parse, to_toml
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

# The settings of the run. Others for one run: flwr run . --run-config "training.rounds=50". Lists are texts, since Flower knows scalars only.
# For another method write another app: its settings have other names.
[tool.flwr.app.config]
out = "floco-run"  # the run directory, seen from where the SuperLink was started: an absent one is begun, another continued
{settings}"""

_SERVER = '''\
"""The server's side: what `flwr run` starts beside the SuperLink."""

from floco.flower import server_app

app = server_app()
'''

_CLIENT = '''\
"""The sites' side: what each SuperNode starts for a message. Mods of Flower go into the brackets."""

from floco.flower import client_app

app = client_app()
'''

_README = """\
# {name}: a federation on floco and Flower

`pyproject.toml` has the settings of the run: the method, the model, the training, and what all sites share: labels
({labels}) and the shape of a sample ({shape}).

At the server, once:

    flower-superlink --insecure --host 127.0.0.1 --port 8000 --disable-runtime-dependency-installation

At each site, with its own name, its own data and a folder that lasts:

    flower-supernode --insecure --superlink 127.0.0.1:8000 \\
        --node-config 'client-id="north" data="/data/north.npz" state-dir="/var/lib/floco"'

Then, from this folder, with `[superlink.local]` `address = "127.0.0.1:8000"` and `insecure = true` in the file that `flwr config list` names:

    flwr run . local --stream

The data of a site: an npz file with `x` (N, ...) of the shape above and labels `y` (N,). In `data`, any source of floco may stand (`folder:/data/images`).
Afterwards, at the site, with no server: `floco export /var/lib/floco --client north -o north.onnx`, `floco predict /var/lib/floco --client north new.npz`.

`--insecure` is for trying it on one machine. For real sites with TLS and node keys, what the server sees, and what to do when something fails, read docs/flower.md of floco.
"""


def settings(values: Mapping[str, Any]) -> Config:
    """Return the settings in Flower's run configuration: flat dotted keys, lists as texts."""
    raw: dict[str, Any] = {}
    for key, value in values.items():
        table, _, leaf = key.rpartition(".")
        is_list = isinstance(value, str) and value.startswith("[")
        (raw.setdefault(table, {}) if table else raw)[leaf] = override(f"{leaf}={value}")[1] if is_list else value
    return parse(raw)


def _scalar_line(line: str) -> str:
    """Return a line of a configuration as one of Flower's run configuration: its table below that, its list as text."""
    if line.startswith("["):
        return f"[tool.flwr.app.config.{line[1:]}"
    key, _, rest = line.partition(" = ")
    value, _, comment = rest.rpartition("  # ")
    quoted = json.dumps(value, ensure_ascii=False) if "'" in value else f"'{value}'"
    return f"{key} = {quoted}  # {comment}" if value.startswith("[") else line


def shared(config: Config) -> Config:
    """Return a configuration with the labels and the shape that all sites share, read from its own data if it does not name them."""
    if config.data.labels and config.flower.shape:
        return config
    if config.data.source in (session.SITES, session.PYTHON):
        raise FlocoError('the sites must agree on labels and shape: give -s \'data.labels=["0","1"]\' -s flower.shape=[8,8], or a data.source on this machine to read them from')
    samples = load(config.data.source, kind=config.data.kind, labels=config.data.labels)
    form = samples.form
    return replace(config, data=replace(config.data, labels=form.values), flower=replace(config.flower, shape=form.shape))


def _unresolved(config: Config) -> Config:
    """Return the configuration without settings of the method that follow from others, so that they follow others given for one run."""
    method: Any = config.algorithm
    for name in (f.name for f in fields(method) if f.default is None):
        plain = replace(method, **{name: None})
        method = plain if plain.resolved(config.training) == config.algorithm else method
    return replace(config, algorithm=method)


def write(folder: Path, config: Config) -> None:
    """Write an app for `flwr run`, in a folder that is empty or absent."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FlocoError(f"{folder} is not empty: choose another place")
    config = _unresolved(shared(config))
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in folder.resolve().name.lower()).strip("-") or "federation"
    facts = {"name": name, "package": _PACKAGE, "floco": version("floco"), "flwr": version("flwr"), "labels": ", ".join(config.data.labels), "shape": str(config.flower.shape)}
    facts["settings"] = "\n".join(map(_scalar_line, to_toml(config).splitlines())) + "\n"
    texts = {"pyproject.toml": _PYPROJECT, "README.md": _README, "LICENSE": "All rights reserved.\n"}
    files = {name: text.format(**facts) for name, text in texts.items()}
    files |= {f"{_PACKAGE}/__init__.py": "", f"{_PACKAGE}/server_app.py": _SERVER, f"{_PACKAGE}/client_app.py": _CLIENT}
    try:
        (folder / _PACKAGE).mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            write_file(folder / path, text.encode())
    except OSError as error:
        raise FlocoError(f"cannot write {folder}: {error.strerror or error}") from error
