"""The ServerApp: the rounds of `loop`, whose jobs are done by the sites.

A round costs one exchange: the question that asks a site to train also asks it to evaluate the model it is sent, which is the state
after the round before. A closing exchange evaluates the last state, and leaves it to every site.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from floco import loop, session
from floco.algorithms.floco import OnSimplex
from floco.config import Config, as_dict, parse, read, to_toml
from floco.errors import FlocoError, RunFailed
from floco.federation import normalization
from floco.files import read_json, replace_file, to_json
from floco.flower.nodes import Nodes, exchange, sizes_only
from floco.flower.wire import Answer, Ask, problem
from floco.form import Normalization
from floco.jobs import Job, Result
from floco.loop import Failure, Plan, Progress, size
from floco.setup import Setup
from floco.store import Store
from floco.values import Task


def server_app(config: Path | str) -> ServerApp:
    """Return the ServerApp of a federation's app, for the run's settings in the file `config` (TOML).

    Keys of Flower's run configuration change settings; its key `out` is the run directory: an absent one is begun, another continued.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        given = dict(context.run_config)
        out = Path(str(given.pop("out", "floco-run")))
        try:
            settings = read(Path(config), [f"{key}={_text(value)}" for key, value in given.items()])
            _Server(grid, settings, out).run()
        except FlocoError as error:
            print(f"error: {error}", flush=True)  # noqa: T201  the run's log, which flwr run --stream shows
            raise

    return app


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Server:
    """One run, from the joining of its sites to the closing exchange."""

    def __init__(self, grid: Grid, settings: Config, out: Path) -> None:
        self._grid, self._out = grid, out
        self._config = replace(settings, run=replace(settings.run, engine="serial", workers=1, checkpoint_every=1))
        self._plan = Plan(settings.run.evaluate_every, max_failed=2**31)  # a quorum decides, not a number
        self._events: list[Failure] = []
        self._round = 0

    def run(self) -> None:
        """Carry the run to its last round."""
        torch.set_num_threads(1)
        new = not (self._out / "run.json").exists()
        known = {} if new else {c: dict(f) for c, f in read_json(self._out / "sites.json")["sites"].items()}
        self._text = json.dumps(as_dict(self._config))
        self._nodes = Nodes(self._grid, self._text, known, self._tell)
        if new:
            self._nodes.wait_for(self._config.flower.sites, lambda: sorted(self._nodes.by_client), self._config.flower.wait)
            self._normalization = self._common_normalization()
            self._begin()
        else:
            kept = read_json(self._out / "sites.json")["normalization"]
            self._normalization = Normalization(tuple(kept["mean"]), tuple(kept["std"]))
        with closing(Store(self._out)) as store:
            self._id, self._model = str(store.facts["id"]), str(store.facts["model"])
            session.check_config(parse(store.facts["config"]), self._config, self._out)
            setup = self._setup()
            if setup.network.fingerprint() != self._model:
                raise FlocoError(f"the model of {self._out} has changed since the run was started (layers or initial values): restore it, or begin another run with another `out`")
            store.rewind()
            self._rounds(store, setup, store.load())
        _say(f"the run lies in {self._out.resolve()}")

    def _common_normalization(self) -> Normalization:
        """Return the statistics of all sites that have joined, from their sums."""
        if self._config.data.normalize == "fixed":
            return Normalization(self._config.data.mean, self._config.data.std)
        if self._config.data.normalize == "none":
            return Normalization()
        told = [self._nodes.facts[c] for c in sorted(self._nodes.facts)]
        return normalization([(int(f["count"]), tuple(f["sum"]), tuple(f["square"])) for f in told])

    def _begin(self) -> None:
        setup = self._setup()
        facts = {"config": json.loads(self._text), "data": session.SITES, "model": setup.network.fingerprint(), "id": uuid.uuid4().hex}
        texts = {"config.toml": to_toml(self._config), "environment.json": json.dumps(session.environment(), indent=1, sort_keys=True) + "\n"}
        Store.create(self._out, {**texts, "sites.json": self._sites_text().decode()}, facts, loop.begin(setup))

    def _sites_text(self) -> bytes:
        sites = {c: {k: v for k, v in f.items() if k not in ("format", "problem", "client")} for c, f in self._nodes.facts.items()}
        return to_json({"normalization": {"mean": self._normalization.mean, "std": self._normalization.std}, "sites": sites})

    def _setup(self) -> Setup:
        """Return what the server knows: the network, and of the clients their ids and sizes."""
        return session.assembled(self._config, sizes_only(self._config, self._nodes.facts, self._normalization))

    def _tell(self, client: str, what: str) -> None:
        """Note what happened to a site: in the log, and with the next checkpoint in failures.csv."""
        event = Failure(self._round, client, what)
        self._events.append(event)
        _say(str(event))

    def _rounds(self, store: Store, setup: Setup, progress: Progress) -> None:
        last = setup.training.rounds
        if progress.round == last:
            _say(f"{self._out} is finished: all {last} rounds are done")
        while progress.round < last:
            begun, known = time.perf_counter(), set(self._nodes.facts)
            self._round = progress.round + 1
            setup = self._ready(setup, progress, known)
            evaluating = loop.due(setup, self._plan, progress.round)
            jobs = loop.round_jobs(setup, progress)
            results, evaluated = self._exchange(setup, progress, jobs, evaluating=evaluating)
            if evaluating:
                progress = self._noted(store, setup, progress, evaluated)
            self._check_quorum(jobs, results)
            progress = loop.after_round(setup, self._plan, progress, jobs, results)
            store.add("failures", [f.row for f in progress.failures])
            for failure in progress.failures:
                _say(str(failure))
            if progress.round == last:
                progress = self._noted(store, setup, progress, self._exchange(setup, progress, [], evaluating=True)[1])
            store.add("timings", [{"round": progress.round, "seconds": round(time.perf_counter() - begun, 4)}])
            store.add("failures", [e.row for e in self._events])
            self._events = []
            store.save(progress)
            if set(self._nodes.facts) != known:  # after the checkpoint, which has the event: who is not in the file joins again
                replace_file(self._out / "sites.json", self._sites_text())

    def _ready(self, setup: Setup, progress: Progress, known: set[str]) -> Setup:
        """Return the setup with the sites that have joined since, once enough of those that train are connected."""
        self._nodes.refresh()
        if set(self._nodes.facts) != known:
            setup = self._setup()
        chosen = [j.client for j in loop.round_jobs(setup, progress) if j.task == "train"]
        self._nodes.wait_for(self._needed(len(chosen)), lambda: chosen, self._config.flower.wait)
        return setup

    def _needed(self, asked: int) -> int:
        return max(1, math.ceil(self._config.flower.quorum * asked))

    def _check_quorum(self, jobs: Sequence[Job], results: Sequence[Result]) -> None:
        asked = [j.client for j in jobs if j.task == "train"]
        done = [r.client for r, j in zip(results, jobs, strict=True) if j.task == "train" and r.update is not None]
        if len(done) < self._needed(len(asked)):
            failed = "\n  ".join(f'client "{r.client}": {r.failure}' for r in results if r.failure)
            raise RunFailed(
                f"round {self._round}: {len(done)} of {len(asked)} clients trained, flower.quorum = {self._config.flower.quorum:g} needs {self._needed(len(asked))}:\n  {failed}\n"
                "start the run again: it continues with this round"
            )

    def _exchange(self, setup: Setup, progress: Progress, jobs: Sequence[Job], *, evaluating: bool) -> tuple[list[Result], list[Result]]:
        """Send every client one question, and return the results of the jobs, and those of the evaluation in the federation's order."""
        todo = {j.client: j for j in jobs}
        clients = [c for c in setup.federation.ids if c in todo or evaluating]
        asks = {c: self._ask(setup, progress, c, todo.get(c), evaluating=evaluating) for c in clients}
        kinds = {"train": "train", "probe": "train.probe", "evaluate": "evaluate"}
        there = {c: self._nodes.by_client[c] for c in clients if c in self._nodes.by_client}
        replies = exchange(self._grid, {n: Message(asks[c].records(), n, kinds[asks[c].task]) for c, n in there.items()}, self._config.flower.deadline)
        answers = {c: self._answer(setup, c, asks[c], replies.get(there[c]) if c in there else None) for c in clients}
        self._count(asks, answers)
        trained = [answers[j.client].trained or Result(j.client, failure="it did not answer") for j in jobs]
        return trained, [answers[c].evaluated or Result(c, failure="it did not answer") for c in clients] if evaluating else []

    def _ask(self, setup: Setup, progress: Progress, client: str, job: Job | None, *, evaluating: bool) -> Ask:
        task: Task = "evaluate" if job is None else job.message.task
        message, normal = setup.algorithm.message(progress.state, client, task), self._normalization
        accepted = progress.last.get(client, 0)
        return Ask(self._id, progress.round, task, evaluating, message.shared, message.own, accepted, self._text, self._model, normal.mean, normal.std)

    def _answer(self, setup: Setup, client: str, ask: Ask, reply: Message | None) -> Answer:
        """Return a client's answer; whatever is wrong with it is a failure of that client."""
        why: str | None = "it is not connected"
        if client in self._nodes.by_client:
            why = f"it did not answer within {self._config.flower.deadline:g} s, or its node is gone"
        if reply is not None and reply.has_error():
            why = f"its node says: {reply.error.reason}"
        elif reply is not None:
            try:
                answer = Answer.of(reply.content)
                why = problem(answer, ask, _needed_names(setup, ask))
                if why is None:
                    for note in answer.notes:
                        self._tell(client, note)
                    return answer
            except Exception as error:  # noqa: BLE001  an answer may be anything, and must not end the run
                why = f"its answer cannot be read: {type(error).__name__}: {error}"
        failed = Result(client, failure=why)
        return Answer(client, failed, failed)

    def _count(self, asks: Mapping[str, Ask], answers: Mapping[str, Answer]) -> None:
        """Say what this round's training costs each client: the sizes that history.csv adds up."""
        costs = []
        for client, ask in asks.items():
            if ask.task != "evaluate":
                update = trained.update if (trained := answers[client].trained) is not None else None
                down, up = size([ask.shared, ask.own])[1], size([update.shared, update.extra])[1] if update is not None else 0
                costs.append(f"{client} {'probes, ' if ask.task == 'probe' else ''}{down:,} bytes down, {up:,} up")
        if costs:
            _say(f"round {self._round}: {'; '.join(costs)}")

    def _noted(self, store: Store, setup: Setup, progress: Progress, results: Sequence[Result]) -> Progress:
        """Add the evaluation of a state to the tables, and return the progress after it."""
        progress = loop.after_evaluation(setup, self._plan, replace(progress, failures=()), results)
        assert progress.evaluation is not None
        history = progress.evaluation.history
        store.add("history", [history])
        store.add("clients", progress.evaluation.clients)
        store.add("failures", [f.row for f in progress.failures])
        told = ("none" if v is None else f"{100 * float(v):.1f} %" for v in (history["accuracy_global"], history["accuracy_personal"]))
        _say("round {}: global {}, personal {}".format(progress.round, *told))
        return progress


def _needed_names(setup: Setup, ask: Ask) -> frozenset[str]:
    """Return the tensors that an update must hold."""
    if ask.task == "probe":
        return frozenset(setup.algorithm.mixing.names if isinstance(setup.algorithm, OnSimplex) else ())
    local = set(setup.network.layout.buffers) if setup.local_buffers else set()
    return frozenset(set(ask.shared) - local)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  the run's log
