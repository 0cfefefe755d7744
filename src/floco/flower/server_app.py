"""The ServerApp: the rounds of `loop`, whose jobs are done by the sites.

A round costs one exchange: the question that asks a site to train also asks it to evaluate the model it is sent, which is the state
after the round before. A closing exchange evaluates the last state, and leaves it to every site.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from floco.client.setup import Setup
from floco.core.errors import FlocoError, RunFailed
from floco.data.federation import normalization
from floco.data.schema import Normalization
from floco.engines.jobs import Job, Result
from floco.flower.dispatch import Questions
from floco.flower.joining import sizes_only
from floco.flower.protocol import LOG
from floco.flower.roster import Nodes
from floco.flower.scaffold import settings
from floco.runs import session
from floco.runs.checkpoint import Store
from floco.runs.config import Config, as_dict, parse, to_toml
from floco.runs.machine import environment
from floco.server import rounds as loop
from floco.server.rounds import Failure, Plan, Progress
from floco.storage.files import read_json, replace_file, to_json

_LEAVING = 120.0  # seconds that the process of a run that was stopped may take to notice it


def server_app() -> ServerApp:
    """Return the ServerApp of a federation's app.

    Flower's run configuration has the run's settings, and in its key `out` the run directory: an absent one is begun, another continued.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        given = dict(context.run_config)
        out = Path(str(given.pop("out", "floco-run")))
        try:
            _Server(grid, settings(given), out).run()
        except FlocoError as error:
            LOG.error("error: %s", error)
            raise

    return app


class _Server:
    """One run, from the joining of its sites to the closing exchange."""

    def __init__(self, grid: Grid, settings: Config, out: Path) -> None:
        self._grid, self._out = grid, out
        self._config = replace(settings, run=replace(settings.run, engine="serial", workers=1, checkpoint_every=1))
        self._plan = Plan(settings.run.evaluate_every, max_failed=2**31)  # a quorum decides, not a number
        self._events: list[Failure] = []
        self._away: set[str] = set()  # clients that the run goes on without, until they are back
        self._aside: set[str] = set()  # clients that the round goes on without, after it was drawn again
        self._round = 0

    def run(self) -> None:
        """Carry the run to its last round."""
        torch.set_num_threads(1)
        new = not (self._out / "run.json").exists()
        known = None if new else {c: dict(f) for c, f in read_json(self._out / "sites.json")["sites"].items()}
        self._nodes = Nodes(self._grid, self._config, known, self._tell)
        if new:
            wanted, wait = self._config.flower.sites, self._config.flower.wait
            if not self._nodes.wait_for(wanted, lambda: sorted(self._nodes.by_client), wait):
                joined = ", ".join(sorted(self._nodes.by_client)) or "none"
                raise RunFailed(f"{len(self._nodes.by_client)} of {wanted} sites have joined after {wait:g} s ({joined}): flower.sites, flower.wait")
            self._normalization = self._common_normalization()
            self._begin()
            self._nodes.begun = True
        else:
            kept = read_json(self._out / "sites.json")["normalization"]
            self._normalization = Normalization(tuple(kept["mean"]), tuple(kept["std"]))
        with closing(Store(self._out, wait=_LEAVING)) as store:
            model = str(store.facts["model"])
            stored = parse(store.facts["config"])
            patience = replace(self._config.flower, shape=stored.flower.shape)
            session.check_config(replace(stored, flower=patience), self._config, self._out)  # how long to wait, and for how many, may change
            setup = self._setup()
            if setup.network.fingerprint() != model:
                raise FlocoError(f"the model of {self._out} has changed since the run was started (layers or initial values): restore it, or begin another run with another `out`")
            store.rewind()
            progress = store.load()
            self._questions = Questions(self._nodes, self._config, str(store.facts["id"]), model, self._normalization, self._tell)
            try:
                self._rounds(store, setup, progress)
            except FlocoError:
                store.add("failures", [e.row for e in self._events])
                store.amend(self._saved.since, "failures")  # what led here is not lost with the round
                raise
        LOG.info(f"the run lies in {self._out.resolve()}")

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
        facts = {"config": json.loads(json.dumps(as_dict(self._config))), "data": session.SITES, "model": setup.network.fingerprint(), "id": uuid.uuid4().hex}
        texts = {"config.toml": to_toml(self._config), "environment.json": json.dumps(environment(), indent=1, sort_keys=True) + "\n"}
        Store.create(self._out, {**texts, "sites.json": self._sites_text().decode()}, facts, loop.begin(setup))

    def _sites_text(self) -> bytes:
        return to_json({"normalization": {"mean": self._normalization.mean, "std": self._normalization.std}, "sites": self._nodes.facts})

    def _setup(self) -> Setup:
        """Return what the server knows: the network, and of the clients their ids and sizes."""
        if not self._ids:
            raise RunFailed(f"round {self._round}: no site is left; start the run again when they are back: it continues with this round")
        return session.assembled(self._config, sizes_only(self._config, {c: f for c, f in self._nodes.facts.items() if c in self._ids}, self._normalization))

    def _tell(self, client: str, what: str) -> None:
        """Note what happened to a site: in the log, and with the next checkpoint in failures.csv."""
        event = Failure(self._round, client, what)
        self._events.append(event)
        LOG.info(str(event))

    def _rounds(self, store: Store, setup: Setup, progress: Progress) -> None:
        last, self._saved = setup.training.rounds, progress
        if progress.round == last and not progress.since.rounds:
            LOG.info(f"{self._out} is finished: all {last} rounds are done")
            return
        while progress.round < last:
            begun, known = time.perf_counter(), set(self._nodes.facts)
            self._round = progress.round + 1
            setup, jobs, results, progress = self._asked(store, setup, progress)
            everybody = replace(setup, federation=sizes_only(self._config, self._nodes.facts, self._normalization))  # those that are away count in SCAFFOLD's n
            progress = loop.after_round(everybody, self._plan, progress, jobs, results)
            if broken := [n for n, t in progress.state.shared.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]:
                raise RunFailed(f"round {self._round}: the average of {broken[0]!r} is not finite; look for a site whose numbers are extreme")
            store.add("timings", [{"round": progress.round, "seconds": round(time.perf_counter() - begun, 4)}])
            self._events += progress.failures
            store.add("failures", [e.row for e in self._events])
            for failure in progress.failures:
                LOG.info(str(failure))
            self._events = []
            store.save(progress)
            self._saved = progress
            if set(self._nodes.facts) != known:  # after the checkpoint, which has the event: who is not in the file joins again
                replace_file(self._out / "sites.json", self._sites_text())
        self._round, self._aside = last, set()
        setup = self._refreshed(setup, progress)
        progress = self._noted(store, setup, progress, self._questions.ask(setup, progress, [], evaluating=True)[1])
        store.add("failures", [e.row for e in self._events])
        self._events = []
        store.amend(progress.since, "history", "clients", "failures")

    def _asked(self, store: Store, setup: Setup, progress: Progress) -> tuple[Setup, list[Job], list[Result], Progress]:
        """Return who was asked in the coming round and what came of it, and the progress with the evaluation that came along.

        Where fewer than the quorum of a draw have trained, those who failed are set aside, and the round is drawn again among the others.
        """
        self._aside = set[str]()
        setup = self._ready(setup, progress)
        self._nodes.running = True
        whole, evaluating = setup, loop.due(setup, self._plan, progress.round)
        while True:
            jobs = loop.round_jobs(setup, progress)
            results, evaluated = self._questions.ask(setup, progress, jobs, evaluating=evaluating)
            if evaluating:
                evaluating, progress = False, self._noted(store, setup, progress, evaluated)
            failed = {r.client: r for r in results if r.update is None}
            asked = [j.client for j in jobs if j.task == "train"]
            if len(asked) - len(failed.keys() & set(asked)) >= self._needed(len(asked)):
                return whole, jobs, results, progress
            for client, result in failed.items():
                self._tell(client, str(result.failure))
            self._aside |= failed.keys()
            sites = len(self._ids | self._aside)
            if sites - len(self._aside) < self._needed(sites):
                raise RunFailed(
                    f"round {self._round}: {', '.join(sorted(self._aside))} failed, and of the {sites} sites flower.quorum = {self._config.flower.quorum:g} must not: "
                    "see failures.csv, mend that, and start the run again: it continues with this round"
                )
            LOG.info("round %d: too few have trained; it is drawn again without %s", self._round, ", ".join(sorted(self._aside)))
            setup = self._ready(setup, progress)

    def _refreshed(self, setup: Setup, progress: Progress) -> Setup:
        """Return the setup with the sites that have joined or come back since, and without those that only ever said that they are there."""
        self._nodes.refresh()
        self._away -= set(self._nodes.by_client)
        if progress.round:
            self._nodes.forget({*progress.participated, *progress.state.by_client}, self._config.flower.wait)
        return setup if self._ids == set(setup.federation.ids) else self._setup()

    @property
    def _ids(self) -> set[str]:
        return set(self._nodes.facts) - self._away - self._aside

    def _ready(self, setup: Setup, progress: Progress) -> Setup:
        """Return the setup once enough of those that train are connected; after a while, without those that are not."""
        wait = self._config.flower.wait
        while True:
            setup = self._refreshed(setup, progress)
            chosen = [j.client for j in loop.round_jobs(setup, progress) if j.task == "train"]
            if self._nodes.wait_for(self._needed(len(chosen)), lambda chosen=chosen: chosen, wait):  # type: ignore[misc]
                if self._ids == set(setup.federation.ids):
                    return setup
                continue
            gone = set(setup.federation.ids) - set(self._nodes.by_client)
            if len(gone) == len(setup.federation.ids):
                raise RunFailed(f"round {self._round}: no site is connected after {wait:g} s (flower.wait); start the run again when they are: it continues with this round")
            self._away |= gone
            for client in sorted(gone):
                self._tell(client, f"is away for more than {wait:g} s: the run goes on without it until it is back")

    def _needed(self, asked: int) -> int:
        return max(1, math.ceil(self._config.flower.quorum * asked - 1e-9))

    def _noted(self, store: Store, setup: Setup, progress: Progress, results: Sequence[Result]) -> Progress:
        """Add the evaluation of a state to the tables, and return the progress after it."""
        progress = loop.after_evaluation(setup, self._plan, replace(progress, failures=()), results)
        assert progress.evaluation is not None
        history = progress.evaluation.history
        store.add("history", [history])
        store.add("clients", progress.evaluation.clients)
        store.add("failures", [f.row for f in progress.failures])
        for failure in progress.failures:
            LOG.info("%s", failure)
        told = ("none" if v is None else f"{100 * float(v):.1f} %" for v in (history["accuracy_global"], history["accuracy_personal"]))
        LOG.info("round {}: global {}, personal {}".format(progress.round, *told))
        return progress
