"""A site's part: its data, what its one client keeps on its own disk, and the answers to the server's questions.

STATE/client                        names the client that it belongs to
STATE/current                       names the run that was asked last
STATE/RUN/                          a run directory of this client alone, as of the last question: for floco export and predict
STATE/RUN/answers/ROUND.safetensors .json    what was sent back and what the client kept, of the last two rounds that it trained in
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from floco.client.setup import Setup
from floco.core.errors import FlocoError
from floco.core.random import one_thread
from floco.core.values import Message, ServerState, Tensors, Update, prefixed, under
from floco.data.federation import Federation, Sums, sums
from floco.engines.jobs import Job, Result, perform
from floco.flower.protocol import LOG, Answer, Ask
from floco.runs import session
from floco.runs.checkpoint import Store
from floco.runs.config import Config, parse
from floco.server.rounds import Progress
from floco.storage.files import checksum, file_name, read_json, read_tensors, replace_file, to_json, to_safetensors
from floco.storage.memories import Memories, Memory

_OWNER = "client"  # file in a state directory that names its client
_PATIENCE = 120  # seconds to wait for somebody who is exporting a model


@dataclass(frozen=True)
class SiteConfig:
    """Who a site is and where its things lie: `--node-config` of its SuperNode."""

    client: str
    data: str
    """Where its samples are from."""
    state: Path
    share_labels: bool = False

    @staticmethod
    def of(node_config: Mapping[str, Any]) -> SiteConfig:
        """Return what a node is configured as.

        Raises:
            FlocoError: a key is missing.
        """
        for key in ("client-id", "data", "state-dir"):
            if not str(node_config.get(key, "")):
                raise FlocoError(f'this node has no {key!r}: start its SuperNode with --node-config \'client-id="north" data="/data/north.npz" state-dir="/var/lib/floco"\'')
        data, share = str(node_config["data"]), str(node_config.get("share-labels", False)).lower()
        if share not in ("true", "false"):
            raise FlocoError(f"share-labels must be true or false, got {share!r}")
        client, state = str(node_config["client-id"]).strip(), Path(str(node_config["state-dir"]))
        return SiteConfig(client, data if ":" in data and not Path(data).exists() else f"npz:{data}", state, share == "true")

    def config(self, text: str) -> Config:
        """Return the configuration of this site's part of a run: its own data, all of one client."""
        config = parse(json.loads(text))
        data = replace(config.data, source=self.data, split="single", id=self.client, clients=None, held_out=0)
        return session.settled(replace(config, data=data, run=replace(config.run, engine="serial", workers=1, trackers=())))


@dataclass(frozen=True)
class VirtualSite(SiteConfig):
    """A virtual node of Flower's simulation runtime: one client of the data set that the configuration splits."""

    def config(self, text: str) -> Config:
        """Return the configuration of the whole run."""
        config = parse(json.loads(text))
        return session.settled(replace(config, run=replace(config.run, engine="serial", workers=1, trackers=())))

    @staticmethod
    def at(partition: int, text: str, state: Path) -> VirtualSite:
        """Return the site of a partition: its client is that of the same number."""
        ids = _federation(VirtualSite("", "", state).config(text)).ids
        if partition >= len(ids):
            raise FlocoError(f"there are {len(ids)} clients, and this is virtual node {partition}, counted from 0: use as many SuperNodes as clients")
        return VirtualSite(ids[partition], "", state / file_name(ids[partition]))


@cache
def _federation(config: Config) -> Federation:
    with one_thread():
        return session.federation(config)


@cache
def _setup(config: Config) -> Setup:
    return session.prepare(config)


def joined(site: SiteConfig, text: str) -> dict[str, Any]:
    """Return what a site tells the server when it joins: sizes, sums for a common normalisation, and nothing of single samples or labels.

    Raises:
        FlocoError: its data do not fit the run's shape and labels, said so that the site can mend it.
    """
    _check_owner(site)
    config = site.config(text)
    if not config.data.labels or not config.flower.shape:
        raise FlocoError("the run's configuration must name data.labels and flower.shape, which all sites share: floco flower new writes them")
    federation = _federation(replace(config, data=replace(config.data, normalize="none", mean=(), std=())))
    form, client = federation.form, federation.client(site.client)
    if form.shape != config.flower.shape:
        raise FlocoError(f"the run is about samples of shape {config.flower.shape}, and those of {config.data.source} have {form.shape}")
    if federation.offset:
        large = ", ".join(str(i) for i, o in enumerate(federation.offset) if o)
        raise FlocoError(f"channels {large} of {config.data.source} hold numbers that are large beside their differences: subtract a number that all sites agree on first")
    own: Sums = sums(federation.x, client.train) if config.data.normalize == "train" else (0, (), ())
    return {"n_train": len(client.train), "n_test": len(client.test), "dtype": form.dtype, "channels": form.channels, "count": own[0], "sum": list(own[1]), "square": list(own[2])}


def answer(site: SiteConfig, ask: Ask) -> Answer:
    """Return the answer to a question of the server, from this site's own data and state.

    Raises:
        FlocoError: the site cannot take part in this run.
    """
    try:
        site.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlocoError(f"state-dir {site.state} cannot be used: {error.strerror or error}") from error
    config = site.config(ask.config)
    with _alone(site, config.flower.deadline / 2), one_thread():
        config = replace(config, data=replace(config.data, normalize="fixed" if ask.mean else "none", mean=ask.mean, std=ask.std))
        setup = _setup(config)
        if setup.network.fingerprint() != ask.model:
            raise FlocoError("the network here is not the server's (layers, initial values, or the version of torch that draws them): install the same versions at all sites")
        return _Site(site, config, setup, ask).answer()


def _check_owner(site: SiteConfig) -> None:
    owner = site.state / _OWNER
    if owner.exists() and (name := owner.read_text(encoding="utf-8").strip()) != site.client:
        raise FlocoError(f'state-dir {site.state} belongs to client "{name}": give client "{site.client}" one of its own')


@contextmanager
def _alone(site: SiteConfig, seconds: float) -> Iterator[None]:
    """Hold a site's state directory, which is one client's: a late question may still be under way."""
    try:
        with FileLock(site.state / ".answering", timeout=seconds):
            _check_owner(site)
            if not (site.state / _OWNER).exists():
                replace_file(site.state / _OWNER, f"{site.client}\n".encode())
            yield
    except Timeout as error:
        raise FlocoError(f"it is busy with an earlier question for more than {seconds:g} s") from error


class _Site:
    """One question at one site."""

    def __init__(self, site: SiteConfig, config: Config, setup: Setup, ask: Ask) -> None:
        self._client, self._config, self._setup, self._ask = site.client, config, setup, ask
        self._state, self._run = site.state, site.state / ask.run
        self._answers = self._run / "answers"

    def answer(self) -> Answer:
        ask, client = self._ask, self._client
        notes, kept = self._committed()
        self._keep(kept)
        self._forget()
        trained = evaluated = None
        if ask.evaluate:
            evaluated = perform(self._setup, Job(client, "evaluate", ask.message("evaluate"), kept))
        if ask.task != "evaluate":
            trained = self._trained(ask.message(ask.task), kept)
        return Answer(client, trained, evaluated, notes)

    def _files(self, number: int) -> tuple[Path, Path]:
        return self._answers / f"{number}.safetensors", self._answers / f"{number}.json"

    def _committed(self) -> tuple[tuple[str, ...], Tensors | None]:
        """Return the client's memory as of the last round that the server has of it, and what the server should know of it."""
        number = self._ask.accepted
        if not number:
            return (), None
        found = self._read(number)
        if found is None:
            return (f"what this client kept after round {number} is not in its state-dir any more, or damaged: its own model begins anew",), None
        return (), under(found[0], "memory/") or None

    def _forget(self) -> None:
        """Delete what the client kept before the last round that the server has of it, and all but two of what it has not."""
        rounds = sorted(int(f.stem) for f in self._answers.glob("*.json") if f.stem.isdigit())
        newer = [r for r in rounds if r > self._ask.accepted]
        for old in [*(r for r in rounds if r < self._ask.accepted), *newer[:-2]]:
            for path in self._files(old):
                path.unlink(missing_ok=True)

    def _read(self, number: int) -> tuple[Tensors, dict[str, Any]] | None:
        """Return what was sent and kept in a round, None if it is not there as it was written."""
        tensors, facts = self._files(number)
        try:
            known = read_json(facts)
            return read_tensors(tensors, known["sha256"]), known
        except (FlocoError, KeyError):
            return None

    def _keep(self, kept: Tensors | None) -> None:
        """Make the question's model and the client's memory the state of this site's run directory."""
        ask, client = self._ask, self._client
        if not (self._run / "run.json").exists():
            session.create(self._config, self._setup, self._run)
        replace_file(self._state / "current", f"{ask.run}\n".encode())
        with closing(Store(self._run, wait=_PATIENCE)) as store:
            session.check(store, self._setup)
            try:
                if store.load(self._config.run.memory_budget).round == ask.round:
                    return
            except FlocoError as error:  # it is a copy, and the next one is whole
                LOG.warning("what floco export reads here was damaged, and is written anew: %s", error)
            memories = Memories({client: Memory(kept)}) if kept else Memories()
            state = ServerState(dict(ask.shared), {}, {client: ask.own} if ask.own else {}, ask.round)
            store.note_changed([client] if kept else [])
            store.save(Progress(state, memories, {client: 1} if ask.accepted else {}, {client: ask.accepted} if ask.accepted else {}))

    def _trained(self, message: Message, kept: Tensors | None) -> Result:
        """Return the result of this round's training, which is not done a second time if its answer was lost."""
        key = checksum(to_safetensors({**prefixed(message.shared, "shared/"), **prefixed(message.own, "own/")}) + f"{message.round} {message.task} {self._ask.accepted}".encode())
        tensors, facts = self._files(message.round)
        if (found := self._read(message.round)) is not None and found[1].get("key") == key:
            return _result(message, self._client, *found)
        result = perform(self._setup, Job(self._client, "train" if message.task == "train" else "probe", message, kept))
        if result.update is not None:
            self._answers.mkdir(exist_ok=True)
            update = result.update
            data = to_safetensors({**prefixed(update.shared, "shared/"), **prefixed(update.extra, "extra/"), **prefixed(result.memory or {}, "memory/")})
            replace_file(tensors, data)
            replace_file(facts, to_json({"key": key, "sha256": checksum(data), "weight": update.weight, "task": update.task, "steps": result.steps}))
        return result


def _result(message: Message, client: str, tensors: Tensors, facts: Mapping[str, Any]) -> Result:
    sent = under(tensors, "shared/")  # in the order of the file, and mods of Flower's look at the order of the message
    update = Update(client, facts["task"], facts["weight"], {n: sent[n] for n in message.shared if n in sent}, under(tensors, "extra/"))
    return Result(client, update, steps=facts["steps"])
