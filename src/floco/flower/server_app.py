"""The ServerApp: the rounds of `server.rounds`, with the jobs done by the sites.

A round takes one exchange: the question that asks a site to train also asks it to evaluate the state after the previous
round. A closing exchange evaluates the last state and leaves it with every site.
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
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from floco.client.setup import Setup
from floco.core.errors import FlocoError, RunFailed
from floco.engines.jobs import Job, Result
from floco.flower.dispatch import Questions
from floco.flower.facts import check_settings
from floco.flower.joining import agree, client_infos, read_sites, schema_only, write_sites
from floco.flower.protocol import LOG
from floco.flower.roster import Nodes
from floco.flower.scaffold import read_settings
from floco.runs import session, source
from floco.runs.checkpoint import Store
from floco.runs.config import Config, describe
from floco.runs.machine import environment
from floco.runs.toml import as_dict, parse, to_toml
from floco.server import rounds as loop
from floco.server.progress import Failure, Plan, Progress
from floco.storage.files import replace_file, to_json

_LEAVING = 120.0  # seconds for the process of a stopped run to release the run directory
_AGAIN = "start the run again once that is fixed: it continues with this round"


def server_app() -> ServerApp:
    """Return the ServerApp of a federation.

    Flower's run configuration holds the run's settings and, as `out`, the run directory. An existing run is continued.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        given = dict(context.run_config)
        out = Path(str(given.pop("out", "floco-run")))
        try:
            _Server(grid, read_settings(given), out).run()
        except FlocoError as error:
            LOG.error("error: %s", error)
            raise

    return app


class _Server:
    """One run, from the admission of its sites to the closing exchange."""

    def __init__(self, grid: Grid, settings: Config, out: Path) -> None:
        self._grid, self._out = grid, out
        self._config = replace(settings, run=replace(settings.run, engine="serial", workers=1, checkpoint_every=1))
        self._plan = Plan(settings.run.evaluate_every, max_failed=2**31)  # flower.quorum decides instead
        self._events: list[Failure] = []
        self._away: set[str] = set()  # clients excluded until they reconnect
        self._aside: set[str] = set()  # clients excluded from this round's next draw
        self._round = 0

    def run(self) -> None:
        """Train up to the last round."""
        torch.set_num_threads(1)
        check_settings(self._config)
        new, known = not (self._out / "run.json").exists(), None
        if not new:
            agreed, known = read_sites(self._out / "sites.json")
            self._agreed = replace(agreed, flower=self._config.flower)
        self._nodes = Nodes(self._grid, self._config if new else self._agreed, known, self._tell)
        if new:
            wanted, wait = self._config.flower.sites, self._config.flower.wait
            if not self._nodes.wait_for(wanted, lambda: sorted(self._nodes.by_client), wait):
                joined = sorted(self._nodes.by_client)
                who = f"{len(joined)} of {wanted} sites have joined after {wait:g} s ({', '.join(joined) or 'none'})"
                raise RunFailed(f"{who}: flower.sites, flower.wait")
            self._agreed = agree(self._config, self._nodes.facts)
            self._begin()
            self._nodes.begin(self._agreed)
        with closing(Store(self._out, wait=_LEAVING)) as store:
            model = str(store.facts["model"])
            stored = parse(store.facts["config"])
            patience = replace(self._config.flower, shape=stored.flower.shape)
            # waiting times and quorum may change
            session.check_config(replace(stored, flower=patience), self._config, self._out)
            setup = self._setup()
            if setup.network.fingerprint() != model:
                what = f"the model of {self._out} has changed since the run was started (layers or initial values)"
                raise FlocoError(f"{what}: restore it, or start another run with another `out`")
            store.rewind()
            progress, id_ = store.load(), str(store.facts["id"])
            self._questions = Questions(self._nodes, self._agreed, id_, model, self._tell)
            try:
                self._rounds(store, setup, progress)
            except FlocoError:
                store.add("failures", [e.row for e in self._events])
                store.amend(self._saved.counts, "failures")  # keep the events of the unfinished round
                raise
        LOG.info(f"the run is in {self._out.resolve()}")

    def _begin(self) -> None:
        setup, plain = self._setup(), json.loads(json.dumps(as_dict(self._config)))
        facts = {"config": plain, "data": source.SITES, "model": setup.network.fingerprint(), "id": uuid.uuid4().hex}
        facts |= describe(self._config)
        texts = {"config.toml": to_toml(self._config), "environment.json": to_json(environment()).decode()}
        texts["sites.json"] = write_sites(self._agreed, self._nodes.facts).decode()
        Store.create(self._out, texts, facts, loop.initialize(setup))

    def _setup(self) -> Setup:
        """Return the setup as the server knows it: the network, and the ids and sizes of the clients."""
        if not self._ids:
            raise RunFailed(f"round {self._round}: no site is left; {_AGAIN}")
        facts = {c: f for c, f in self._nodes.facts.items() if c in self._ids}
        known = session.assemble(self._agreed, schema_only(self._agreed, facts))
        return replace(known, remote=client_infos(facts))

    def _tell(self, client: str, what: str) -> None:
        """Log an event of a site, and add it to failures.csv with the next checkpoint."""
        event = Failure(self._round, client, what)
        self._events.append(event)
        LOG.info(str(event))

    def _rounds(self, store: Store, setup: Setup, progress: Progress) -> None:
        last, self._saved = setup.training.rounds, progress
        if progress.round == last and not progress.counts.rounds:
            LOG.info(f"{self._out} is finished: all {last} rounds are done")
            return
        while progress.round < last:
            begun, known = time.perf_counter(), set(self._nodes.facts)
            self._round = progress.round + 1
            setup, jobs, results, progress = self._asked(store, setup, progress)
            everybody = replace(setup, remote=client_infos(self._nodes.facts))  # SCAFFOLD counts absent clients too
            progress = loop.after_round(everybody, self._plan, progress, jobs, results)
            for name, tensor in progress.state.shared.items():
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    problem = f"the average of {name!r} is not finite"
                    raise RunFailed(f"round {self._round}: {problem}; look for a site that sends extreme values")
            store.add("timings", [{"round": progress.round, "seconds": round(time.perf_counter() - begun, 4)}])
            self._events += progress.failures
            store.add("failures", [e.row for e in self._events])
            for failure in progress.failures:
                LOG.info(str(failure))
            self._events = []
            store.save(progress)
            self._saved = progress
            if set(self._nodes.facts) != known:  # after the checkpoint: a site missing in the file just joins again
                replace_file(self._out / "sites.json", write_sites(self._agreed, self._nodes.facts))
        self._round, self._aside = last, set()
        setup = self._refreshed(setup, progress)
        _, evaluated = self._questions.ask(setup, progress, [], evaluating=True)
        progress = self._noted(store, setup, progress, evaluated)
        store.add("failures", [e.row for e in self._events])
        self._events = []
        store.amend(progress.counts, "history", "clients", "failures")

    def _asked(self, store: Store, setup: Setup, progress: Progress) -> tuple[Setup, list[Job], list[Result], Progress]:
        """Return setup, jobs and results of the next round, and the progress with the evaluation it came with.

        If fewer than the quorum of the drawn clients trained, the round is drawn again without those that failed.
        """
        self._aside = set[str]()
        setup = self._ready(setup, progress)
        self._nodes.running = True
        whole, evaluating = setup, loop.is_due(setup, self._plan, progress.round)
        while True:
            jobs = loop.round_jobs(setup, progress)
            results, evaluated = self._questions.ask(setup, progress, jobs, evaluating=evaluating)
            if evaluating:
                evaluating, progress = False, self._noted(store, setup, progress, evaluated)
            failed = {r.client: r for r in results if r.update is None}
            asked = [j.client for j in jobs if j.purpose == "train"]
            if len(asked) - len(failed.keys() & set(asked)) >= self._needed(len(asked)):
                return whole, jobs, results, progress
            for client, result in failed.items():
                self._tell(client, str(result.failure))
            self._aside |= failed.keys()
            sites, names = len(self._ids | self._aside), ", ".join(sorted(self._aside))
            if sites - len(self._aside) < self._needed(sites):
                problem = (
                    f"{names} failed, and of the {sites} sites flower.quorum = {self._config.flower.quorum:g} must not"
                )
                raise RunFailed(f"round {self._round}: {problem}: see failures.csv; {_AGAIN}")
            LOG.info("round %d: too few have trained; it is drawn again without %s", self._round, names)
            setup = self._ready(setup, progress)

    def _refreshed(self, setup: Setup, progress: Progress) -> Setup:
        """Return the setup with new and returned sites, and without those that left before they ever trained."""
        self._nodes.refresh()
        self._away -= set(self._nodes.by_client)
        if progress.round:
            self._nodes.forget({*progress.participated, *progress.state.by_client}, self._config.flower.wait)
        return setup if self._ids == set(setup.clients) else self._setup()

    @property
    def _ids(self) -> set[str]:
        return set(self._nodes.facts) - self._away - self._aside

    def _ready(self, setup: Setup, progress: Progress) -> Setup:
        """Return the setup once enough drawn clients are connected; after `flower.wait` seconds, exclude the others."""
        wait = self._config.flower.wait
        while True:
            setup = self._refreshed(setup, progress)
            chosen = [j.client for j in loop.round_jobs(setup, progress) if j.purpose == "train"]
            if self._nodes.wait_for(self._needed(len(chosen)), chosen.copy, wait):
                if self._ids == set(setup.clients):
                    return setup
                continue
            gone = set(setup.clients) - set(self._nodes.by_client)
            if len(gone) == len(setup.clients):
                raise RunFailed(f"round {self._round}: no site is connected after {wait:g} s (flower.wait); {_AGAIN}")
            self._away |= gone
            for client in sorted(gone):
                self._tell(client, f"is away for more than {wait:g} s: the run goes on without it until it is back")

    def _needed(self, asked: int) -> int:
        return max(1, math.ceil(self._config.flower.quorum * asked - 1e-9))

    def _noted(self, store: Store, setup: Setup, progress: Progress, results: Sequence[Result]) -> Progress:
        """Add an evaluation to the tables, and return the progress with it."""
        progress = loop.after_evaluation(setup, self._plan, replace(progress, failures=()), results)
        assert progress.evaluation is not None
        history = progress.evaluation.history
        store.add("history", [history])
        store.add("clients", progress.evaluation.clients)
        store.add("failures", [f.row for f in progress.failures])
        for failure in progress.failures:
            LOG.info("%s", failure)
        name, metrics = setup.task.primary, setup.task.metrics
        values: list[Any] = [history[f"{name}_{which}"] for which in ("global", "personal")]
        shown = ["none" if v is None else metrics.text(name, v) for v in values]
        LOG.info(f"round {progress.round}: global {shown[0]}, personal {shown[1]}")
        return progress
