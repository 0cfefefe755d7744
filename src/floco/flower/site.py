"""A site: its configuration, its data, and what it reports when it joins a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from floco.core.errors import FlocoError
from floco.core.inputs import columns
from floco.core.random import one_thread
from floco.data.federation import Federation
from floco.data.models import count_ids
from floco.data.partition import Single
from floco.data.table_files import SUFFIXES
from floco.flower.facts import check_facts, check_settings, tell
from floco.runs import source
from floco.runs.config import Config
from floco.runs.toml import parse
from floco.storage.files import file_name

_EXAMPLE = """--node-config 'client-id="north" data="/data/north.npz" state-dir="/var/lib/floco"'"""


@dataclass(frozen=True)
class SiteConfig:
    """A site's client id, data and state directory, from `--node-config` of its SuperNode."""

    client: str
    data: str
    """Source of its samples."""
    state: Path
    share_labels: bool = False

    @staticmethod
    def of(node_config: Mapping[str, Any]) -> SiteConfig:
        """Return the site that a node configuration describes.

        Raises:
            FlocoError: a key is missing or has a wrong value.
        """
        for key in ("client-id", "data", "state-dir"):
            if not str(node_config.get(key, "")):
                raise FlocoError(f"this node has no {key!r}: start its SuperNode with {_EXAMPLE}")
        data, share = str(node_config["data"]), str(node_config.get("share-labels", False)).lower()
        if share not in ("true", "false"):
            raise FlocoError(f"share-labels must be true or false, got {share!r}")
        scheme = SUFFIXES.get(Path(data).suffix.lower(), "npz")
        source = data if ":" in data and not Path(data).exists() else f"{scheme}:{data}"
        client, state = str(node_config["client-id"]).strip(), Path(str(node_config["state-dir"]))
        return SiteConfig(client, source, state, share == "true")

    @property
    def owner(self) -> Path:
        """File in the state directory that names its client."""
        return self.state / "client"

    def check_owner(self) -> None:
        """Raise if the state directory belongs to another client."""
        if self.owner.exists() and (name := self.owner.read_text(encoding="utf-8").strip()) != self.client:
            advice = f'give client "{self.client}" one of its own'
            raise FlocoError(f'state-dir {self.state} belongs to client "{name}": {advice}')

    def config(self, text: str) -> Config:
        """Return the run's configuration for this site: its own data, all assigned to one client."""
        config = parse(json.loads(text))
        data = replace(config.data, source=self.data, split=Single(self.client), clients=None, held_out=0)
        if data.features:
            data = replace(data, client=None)  # all rows are this client's, whether or not a column says so
        return _serial(replace(config, data=data))


@dataclass(frozen=True)
class VirtualSite(SiteConfig):
    """A virtual node of Flower's simulation runtime: one client of the split data set."""

    def config(self, text: str) -> Config:
        """Return the run's configuration, with all its clients."""
        return _serial(parse(json.loads(text)))

    @staticmethod
    def at(partition: int, text: str, state: Path) -> VirtualSite:
        """Return the site whose client has the number `partition`, counted from 0."""
        ids = _federation(VirtualSite("", "", state).config(text)).ids
        if partition >= len(ids):
            node = f"this is virtual node {partition}, counted from 0"
            raise FlocoError(f"there are {len(ids)} clients, and {node}: use as many SuperNodes as clients")
        return VirtualSite(ids[partition], "", state / file_name(ids[partition]))


def _serial(config: Config) -> Config:
    return source.resolve_paths(replace(config, run=replace(config.run, engine="serial", workers=1, trackers=())))


@cache
def _federation(config: Config) -> Federation:
    with one_thread():
        return source.federation(config)


def introduce(site: SiteConfig, text: str) -> dict[str, Any]:
    """Return a site's report on joining: its sizes, and `facts`, what it tells of its data, as JSON text.

    It contains no single sample or target.

    Raises:
        FlocoError: the site's data do not fit the run's configuration.
    """
    site.check_owner()
    config = site.config(text)
    check_settings(config)
    federation = _federation(config)
    client, where = federation.client(site.client), config.data.source
    for name, form in columns(federation.schema.forms).items():
        if form.offset:
            large = ", ".join(str(i) for i, o in enumerate(form.offset) if o)
            problem = f"channels {large} of {where} {name}".strip() + " have values that are large compared with their"
            raise FlocoError(f"{problem} differences: first subtract a constant that all sites agree on")
    try:
        facts = check_facts(tell(config, federation, client), config, len(client.train))
        count_ids(federation, config.model.ids)
    except FlocoError as error:
        raise FlocoError(f"{where}: {error}") from error
    return {"n_train": len(client.train), "n_test": len(client.test), "facts": json.dumps(facts)}
