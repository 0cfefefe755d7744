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

from floco import loop, session
from floco.config import Config, as_dict, parse, to_toml
from floco.errors import FlocoError, RunFailed
from floco.federation import normalization
from floco.files import read_json, replace_file, to_json
from floco.flower.app import settings
from floco.flower.nodes import Nodes, sizes_only
from floco.flower.sites import Sites
from floco.form import Normalization
from floco.jobs import Job, Result
from floco.loop import Failure, Plan, Progress
from floco.setup import Setup
from floco.store import Store


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
            print(f"error: {error}", flush=True)  # noqa: T201  the run's log, which flwr run --stream shows
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
        self._round = 0

    def run(self) -> None:
        """Carry the run to its last round."""
        torch.set_num_threads(1)
        new = not (self._out / "run.json").exists()
        known = {} if new else {c: dict(f) for c, f in read_json(self._out / "sites.json")["sites"].items()}
        self._nodes = Nodes(self._grid, self._config, known, self._tell)
        if new:
            self._nodes.wait_for(self._config.flower.sites, lambda: sorted(self._nodes.by_client), self._config.flower.wait)
            self._normalization = self._common_normalization()
            self._begin()
        else:
            kept = read_json(self._out / "sites.json")["normalization"]
            self._normalization = Normalization(tuple(kept["mean"]), tuple(kept["std"]))
        with closing(Store(self._out)) as store:
            model = str(store.facts["model"])
            session.check_config(replace(parse(store.facts["config"]), flower=self._config.flower), self._config, self._out)  # patience may change
            setup = self._setup()
            if setup.network.fingerprint() != model:
                raise FlocoError(f"the model of {self._out} has changed since the run was started (layers or initial values): restore it, or begin another run with another `out`")
            store.rewind()
            progress = store.load()
            sites = Sites(self._grid, self._nodes, self._config, str(store.facts["id"]), model, self._normalization, self._tell)
            try:
                self._rounds(store, sites, setup, progress)
            except FlocoError:
                store.add("failures", [e.row for e in self._events])
                store.amend(self._saved.since, "failures")  # what led here is not lost with the round
                raise
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
        facts = {"config": json.loads(json.dumps(as_dict(self._config))), "data": session.SITES, "model": setup.network.fingerprint(), "id": uuid.uuid4().hex}
        texts = {"config.toml": to_toml(self._config), "environment.json": json.dumps(session.environment(), indent=1, sort_keys=True) + "\n"}
        Store.create(self._out, {**texts, "sites.json": self._sites_text().decode()}, facts, loop.begin(setup))

    def _sites_text(self) -> bytes:
        sites = {c: {k: v for k, v in f.items() if k not in ("format", "problem", "client")} for c, f in self._nodes.facts.items()}
        return to_json({"normalization": {"mean": self._normalization.mean, "std": self._normalization.std}, "sites": sites})

    def _setup(self) -> Setup:
        """Return what the server knows: the network, and of the clients their ids and sizes."""
        return session.assembled(self._config, sizes_only(self._config, {c: f for c, f in self._nodes.facts.items() if c not in self._away}, self._normalization))

    def _tell(self, client: str, what: str) -> None:
        """Note what happened to a site: in the log, and with the next checkpoint in failures.csv."""
        event = Failure(self._round, client, what)
        self._events.append(event)
        _say(str(event))

    def _rounds(self, store: Store, sites: Sites, setup: Setup, progress: Progress) -> None:
        last, self._saved = setup.training.rounds, progress
        if progress.round == last and not progress.since.rounds:
            _say(f"{self._out} is finished: all {last} rounds are done")
            return
        while progress.round < last:
            begun, known = time.perf_counter(), set(self._nodes.facts)
            self._round = progress.round + 1
            setup = self._ready(setup, progress)
            evaluating = loop.due(setup, self._plan, progress.round)
            jobs = loop.round_jobs(setup, progress)
            results, evaluated = sites.ask(setup, progress, jobs, evaluating=evaluating)
            self._check_quorum(jobs, results)
            if evaluating:
                progress = self._noted(store, setup, progress, evaluated)
            progress = loop.after_round(setup, self._plan, progress, jobs, results)
            if broken := [n for n, t in progress.state.shared.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]:
                raise RunFailed(f"round {self._round}: the average of {broken[0]!r} is not finite; look for a site whose numbers are extreme")
            store.add("timings", [{"round": progress.round, "seconds": round(time.perf_counter() - begun, 4)}])
            self._events += progress.failures
            store.add("failures", [e.row for e in self._events])
            for failure in progress.failures:
                _say(str(failure))
            self._events = []
            store.save(progress)
            self._saved = progress
            if set(self._nodes.facts) != known:  # after the checkpoint, which has the event: who is not in the file joins again
                replace_file(self._out / "sites.json", self._sites_text())
        self._round = last
        setup = self._refreshed(setup)
        progress = self._noted(store, setup, progress, sites.ask(setup, progress, [], evaluating=True)[1])
        store.add("failures", [e.row for e in self._events])
        self._events = []
        store.amend(progress.since, "history", "clients", "failures")

    def _refreshed(self, setup: Setup) -> Setup:
        """Return the setup with the sites that have joined or come back since."""
        self._nodes.refresh()
        self._away -= set(self._nodes.by_client)
        return setup if set(self._nodes.facts) - self._away == set(setup.federation.ids) else self._setup()

    def _ready(self, setup: Setup, progress: Progress) -> Setup:
        """Return the setup once enough of those that train are connected; after a while, without those that are not."""
        while True:
            setup = self._refreshed(setup)
            chosen = [j.client for j in loop.round_jobs(setup, progress) if j.task == "train"]
            try:
                self._nodes.wait_for(self._needed(len(chosen)), lambda chosen=chosen: chosen, self._config.flower.wait)  # type: ignore[misc]
            except RunFailed:
                gone = set(setup.federation.ids) - set(self._nodes.by_client)
                if len(gone) == len(setup.federation.ids) or not gone:
                    raise
                self._away |= gone
                for client in sorted(gone):
                    self._tell(client, f"is away for more than {self._config.flower.wait:g} s: the run goes on without it until it is back")
                continue
            if set(self._nodes.facts) - self._away == set(setup.federation.ids):
                return setup

    def _needed(self, asked: int) -> int:
        return max(1, math.ceil(self._config.flower.quorum * asked))

    def _check_quorum(self, jobs: Sequence[Job], results: Sequence[Result]) -> None:
        asked = [j.client for j in jobs if j.task == "train"]
        done = [r.client for r, j in zip(results, jobs, strict=True) if j.task == "train" and r.update is not None]
        if len(done) < self._needed(len(asked)):
            self._events += [Failure(self._round, r.client, r.failure) for r in results if r.failure]
            failed = "\n  ".join(f'client "{r.client}": {r.failure}' for r in results if r.failure)
            raise RunFailed(
                f"round {self._round}: {len(done)} of {len(asked)} clients trained, flower.quorum = {self._config.flower.quorum:g} needs {self._needed(len(asked))}:\n  {failed}\n"
                "start the run again: it continues with this round"
            )

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


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  the run's log
