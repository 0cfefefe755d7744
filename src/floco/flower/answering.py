"""A site's answer to one question, and the state of its one client on its own disk.

STATE/client                          the client that the directory belongs to
STATE/current                         the run of the last question
STATE/RUN/                            a run directory of this client alone, for floco export and predict
STATE/RUN/answers/ROUND.safetensors   update and memory of the last two rounds in which it trained
STATE/RUN/answers/ROUND.json          what identifies and describes that answer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from floco.client.setup import Setup
from floco.core.errors import FlocoError
from floco.core.random import one_thread
from floco.core.values import Message, ServerState, Tensors, Update, add_prefix, strip_prefix
from floco.engines.jobs import Job, Result, perform
from floco.flower.protocol import LOG, Answer, Ask
from floco.flower.site import SiteConfig
from floco.runs import session
from floco.runs.checkpoint import Store
from floco.runs.config import Config
from floco.server.progress import Progress
from floco.storage.files import checksum, read_json, read_tensors, replace_file, to_json, to_safetensors
from floco.storage.memories import Memories, Memory

_PATIENCE = 120  # seconds to wait for a process that is exporting a model


@cache
def _setup(config: Config) -> Setup:
    return session.prepare(config)


def answer(site: SiteConfig, ask: Ask) -> Answer:
    """Return the answer to a question, computed from this site's own data and state.

    Raises:
        FlocoError: the site cannot take part in this run.
    """
    try:
        site.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlocoError(f"state-dir {site.state} cannot be used: {error.strerror or error}") from error
    config = site.config(ask.config)
    with _alone(site, config.flower.deadline / 2), one_thread():
        setup = _setup(config)
        if setup.task != config.task:
            problem = "`fitted` of a task with its numbers must return the task itself"
            raise FlocoError(f"task {config.task.name} takes numbers from the targets of this site alone: {problem}")
        if setup.network.fingerprint() != ask.model:
            causes = "layers, initial values, or the version of torch that draws them"
            advice = "install the same versions at all sites"
            raise FlocoError(f"the network here is not the server's ({causes}): {advice}")
        return _Site(site, config, setup, ask).answer()


@contextmanager
def _alone(site: SiteConfig, seconds: float) -> Iterator[None]:
    """Lock a site's state directory: the site may still be busy with an earlier question."""
    try:
        with FileLock(site.state / ".answering", timeout=seconds):
            site.check_owner()
            if not site.owner.exists():
                replace_file(site.owner, f"{site.client}\n".encode())
            yield
    except Timeout as error:
        raise FlocoError(f"it has been busy with an earlier question for more than {seconds:g} s") from error


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
        if ask.purpose != "evaluate":
            trained = self._trained(ask.message(ask.purpose), kept)
        return Answer(client, trained, evaluated, notes)

    def _files(self, number: int) -> tuple[Path, Path]:
        return self._answers / f"{number}.safetensors", self._answers / f"{number}.json"

    def _committed(self) -> tuple[tuple[str, ...], Tensors | None]:
        """Return notes for the server, and the client's memory as of its last update that the server accepted."""
        number = self._ask.accepted
        if not number:
            return (), None
        if (found := self._read(number)) is not None:
            return (), strip_prefix(found[0], "memory/") or None
        lost = f"what this client kept after round {number} is not in its state-dir any more, or damaged"
        return (f"{lost}: its own model starts again from the global model",), None

    def _forget(self) -> None:
        """Delete the answers before the last accepted round, and all but the two latest after it."""
        rounds = sorted(int(f.stem) for f in self._answers.glob("*.json") if f.stem.isdigit())
        newer = [r for r in rounds if r > self._ask.accepted]
        for old in [*(r for r in rounds if r < self._ask.accepted), *newer[:-2]]:
            for path in self._files(old):
                path.unlink(missing_ok=True)

    def _read(self, number: int) -> tuple[Tensors, dict[str, Any]] | None:
        """Return the stored answer of a round, None if it is missing or damaged."""
        tensors, facts = self._files(number)
        try:
            known = read_json(facts)
            return read_tensors(tensors, known["sha256"]), known
        except (FlocoError, KeyError):
            return None

    def _keep(self, kept: Tensors | None) -> None:
        """Store the question's model and the client's memory as the state of this site's run directory."""
        ask, client = self._ask, self._client
        if not (self._run / "run.json").exists():
            session.create(self._config, self._setup, self._run)
        replace_file(self._state / "current", f"{ask.run}\n".encode())
        with closing(Store(self._run, wait=_PATIENCE)) as store:
            session.check(store, self._setup)
            try:
                if store.load(self._config.run.memory_budget).round == ask.round:
                    return
            except FlocoError as error:  # only a copy, which the save below replaces
                LOG.warning("the state that floco export reads here was damaged, and is replaced: %s", error)
            memories = Memories({client: Memory(kept)}) if kept else Memories()
            state = ServerState(dict(ask.shared), {}, {client: ask.own} if ask.own else {}, ask.round)
            took_part, last = ({client: 1}, {client: ask.accepted}) if ask.accepted else ({}, {})
            store.note_changed([client] if kept else [])
            store.save(Progress(state, memories, took_part, last))

    def _trained(self, message: Message, kept: Tensors | None) -> Result:
        """Return the result of this round's training, from disk if the same question was answered before."""
        sent = to_safetensors({**add_prefix(message.shared, "shared/"), **add_prefix(message.own, "own/")})
        key = checksum(sent + f"{message.round} {message.purpose} {self._ask.accepted}".encode())
        tensors, facts = self._files(message.round)
        if (found := self._read(message.round)) is not None and found[1].get("key") == key:
            return _result(message, self._client, *found)
        result = perform(self._setup, Job(self._client, message.purpose, message, kept))
        if (update := result.update) is not None:
            self._answers.mkdir(exist_ok=True)
            stored = {**add_prefix(update.shared, "shared/"), **add_prefix(update.extra, "extra/")}
            data = to_safetensors({**stored, **add_prefix(result.memory or kept or {}, "memory/")})
            replace_file(tensors, data)
            known = {"weight": update.weight, "purpose": update.purpose, "steps": result.steps}
            replace_file(facts, to_json({"key": key, "sha256": checksum(data), **known}))
        return result


def _result(message: Message, client: str, tensors: Tensors, facts: Mapping[str, Any]) -> Result:
    sent = strip_prefix(tensors, "shared/")
    shared = {n: sent[n] for n in message.shared if n in sent}  # in the order of the message, as Flower mods expect
    update = Update(client, facts["purpose"], facts["weight"], shared, strip_prefix(tensors, "extra/"))
    return Result(client, update, steps=facts["steps"])
