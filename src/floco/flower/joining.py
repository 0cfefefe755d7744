"""Admission of sites: check what a site reports when it joins, and build the server's federation from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from floco.core.errors import FlocoError
from floco.core.inputs import Inputs
from floco.core.task import Labels, add_statistics
from floco.core.values import ClientInfo
from floco.data.arrays import channels_first
from floco.data.federation import Federation
from floco.data.normalization import Normalization, Sums, fit_normalization
from floco.flower.facts import DTYPES, SiteFacts, check_facts, difference, form_of
from floco.flower.protocol import FORMAT
from floco.runs.config import Config
from floco.runs.toml import as_dict, parse
from floco.storage.files import read_json, to_json


def admit(report: Mapping[str, Any], config: Config, known: Mapping[str, SiteFacts]) -> tuple[str, SiteFacts]:
    """Return the client id and the validated facts of a site that joins.

    Args:
        report: the site's report.
        config: the run's configuration.
        known: the facts of the clients that joined earlier.

    Raises:
        FlocoError: the site cannot take part.
    """
    if why := str(report.get("problem", "")):
        raise FlocoError(why)
    client, sizes = str(report.get("client", "")), [report.get("n_train"), report.get("n_test")]
    if client != client.strip() or not client.isprintable() or not 1 <= len(client) <= 100 or client.startswith("("):
        raise FlocoError("its client-id must have 1 to 100 printable characters, and not begin with a bracket")
    if report.get("format") != FORMAT:
        raise FlocoError("it has another version of floco")
    n_train, n_test = sizes
    pairs = zip((1, 0), sizes, strict=True)  # a site may have no test part: it is then not evaluated
    if not all(type(n) is int and low <= n <= config.flower.most_samples for low, n in pairs):
        limit = f"the first must be at least 1, and each at most flower.most_samples = {config.flower.most_samples}"
        raise FlocoError(f"it says that it has {n_train!r} samples to train and {n_test!r} to test: {limit}")
    facts: SiteFacts = {"n_train": n_train, "n_test": n_test}
    before = known.get(client, facts)
    if changed := next((k for k in facts if before[k] != facts[k]), None):
        now = f"{changed} was {before[changed]}, and is {facts[changed]}"
        raise FlocoError(f'the data of client "{client}" have changed since it joined this run: {now}')
    facts |= check_facts(json.loads(str(report["facts"])), config, int(str(n_train)))
    for name, other in known.items():
        if unlike := difference(facts, other, "before they were" if name == client else "those of the other sites"):
            raise FlocoError(unlike)
    return client, facts


def agree(config: Config, facts: Mapping[str, SiteFacts]) -> Config:
    """Return the configuration for all sites, with the numbers that follow from the training parts of the first ones.

    They are mean and deviation of each channel, of all columns in a row, and what the task takes from the targets.
    """
    reports, data = [facts[c] for c in sorted(facts)], config.data
    if data.normalize == "train":
        made = [
            fit_normalization([_sums(c) for c in column])
            for column in zip(*(f["columns"] for f in reports), strict=True)
            if column[0]["dtype"] != "int64"
        ]
        mean, std = (tuple(v for n in made for v in getattr(n, name)) for name in ("mean", "std"))
        data = replace(data, normalize="fixed" if mean else "none", mean=mean, std=std)
    names = _names(config, reports[0])
    task = config.task.fitted(add_statistics([f["statistics"] for f in reports]), Labels(names, names))
    return replace(config, data=data, task=task)


def _sums(column: SiteFacts) -> Sums:
    count = column["count"]
    return tuple(count) if isinstance(count, list) else count, tuple(column["sum"]), tuple(column["square"])


def _names(config: Config, facts: SiteFacts) -> tuple[str, ...]:
    return config.data.labels or tuple(facts["target"]["names"])


def schema_only(agreed: Config, facts: Mapping[str, SiteFacts]) -> Federation:
    """Return a federation without clients, whose samples and targets have the shape and type of the sites'."""
    one = next(iter(facts.values()))
    made = {
        c["name"]: channels_first(torch.zeros(4, *c["shape"], dtype=DTYPES[c["dtype"]]), c["channels"])
        for c in one["columns"]
    }
    normal = Normalization(agreed.data.mean, agreed.data.std).by_column(made)
    forms = {c["name"]: replace(form_of(c), normalization=normal[c["name"]]) for c in one["columns"]}
    if agreed.data.normalize == "client":
        forms = {n: replace(form, own=made[n].dtype != torch.int64) for n, form in forms.items()}
    x: Inputs = made if one["inputs"] == "dict" else tuple(made.values())
    x = made[""] if one["inputs"] == "one" else x
    y = torch.zeros(4, *one["target"]["shape"], dtype=DTYPES[one["target"]["dtype"]])
    return Federation(x, y, (), _names(agreed, one), forms=forms, task=agreed.task)


def client_infos(facts: Mapping[str, SiteFacts]) -> tuple[ClientInfo, ...]:
    """Return what the server knows of each site, in order of their ids."""
    return tuple(ClientInfo(c, int(facts[c]["n_train"]), int(facts[c]["n_test"])) for c in sorted(facts))


def write_sites(agreed: Config, facts: Mapping[str, SiteFacts]) -> bytes:
    """Return the contents of sites.json: what the sites told, and the configuration that follows from it."""
    return to_json({"format": FORMAT, "config": as_dict(agreed), "sites": dict(facts)})


def read_sites(path: Path) -> tuple[Config, dict[str, SiteFacts]]:
    """Return the configuration and the facts in a sites.json."""
    found = read_json(path)
    if found.get("format") != FORMAT:
        raise FlocoError(f"{path} is of another version of floco: continue the run with that one, or start another run")
    return parse(found["config"]), {c: dict(f) for c, f in found["sites"].items()}
