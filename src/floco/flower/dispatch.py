"""Dispatch of a round's jobs to the sites: send questions, return validated answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from flwr.app import Message

from floco.client.round import conclude, receive
from floco.client.setup import Setup
from floco.core.delivery import CANDIDATES
from floco.core.values import Purpose
from floco.engines.jobs import Job, Result
from floco.flower.checks import Expected, check_answer
from floco.flower.protocol import LOG, Answer, Ask
from floco.flower.roster import Nodes
from floco.runs.config import Config
from floco.runs.toml import as_dict
from floco.server.evaluation import count_elements
from floco.server.progress import Progress

_KINDS = {"train": "train", "probe": "train.probe", "evaluate": "evaluate"}


class Questions:
    """Sends the questions of one run."""

    def __init__(self, nodes: Nodes, config: Config, run: str, model: str, tell: Callable[[str, str], None]) -> None:
        """Store what every question contains.

        Args:
            nodes: the connected nodes.
            config: the configuration that all sites share.
            run: its id.
            model: fingerprint of its network.
            tell: called with a client id and an event.
        """
        self._nodes, self._config, self._id, self._model = nodes, config, run, model
        self._tell = tell
        self._text = json.dumps(as_dict(config))

    def ask(
        self, setup: Setup, progress: Progress, jobs: Sequence[Job], *, evaluating: bool
    ) -> tuple[list[Result], list[Result]]:
        """Send each client one question; return the job results, and the evaluations in the federation's order."""
        todo = {j.client: j for j in jobs}
        tested = setup.evaluated if evaluating else ()
        clients = [c for c in setup.clients if c in todo or evaluating]
        asks = {c: self._ask(setup, progress, c, todo.get(c), evaluating=c in tested) for c in clients}
        wait = self._config.flower.deadline
        there = {c: self._nodes.by_client[c] for c in clients if c in self._nodes.by_client}
        messages = {n: Message(asks[c].records(), n, _KINDS[asks[c].purpose], ttl=wait) for c, n in there.items()}
        replies = self._nodes.exchange(messages, wait)
        answers = {c: self._answer(setup, c, asks[c], replies.get(there[c]) if c in there else None) for c in clients}
        self._count(progress, asks, answers)
        trained = [_certain(answers[j.client].trained, j.client) for j in jobs]
        return trained, [_certain(answers[c].evaluated, c) for c in tested]

    def _ask(self, setup: Setup, progress: Progress, client: str, job: Job | None, *, evaluating: bool) -> Ask:
        purpose: Purpose = "evaluate" if job is None else job.message.purpose
        sent, accepted = setup.algorithm.message(progress.state, client, purpose), progress.last_trained.get(client, 0)
        known = (accepted, self._text, self._model)
        return Ask(self._id, progress.round, purpose, evaluating, sent.shared, sent.own, *known)

    def _answer(self, setup: Setup, client: str, ask: Ask, reply: Message | Exception | None) -> Answer:
        """Return a client's answer; anything wrong with it is a failure of that client."""
        why = "it is not connected"
        if client in self._nodes.by_client:
            why = f"it did not answer within {self._config.flower.deadline:g} s, or its node is gone"
        if isinstance(reply, Exception):
            why = f"its answer cannot be read: {type(reply).__name__}: {reply}"
        elif reply is not None and reply.has_error():
            why = f"it did not answer: {reply.error.reason or 'an error without a reason'}"
        elif reply is not None:
            try:
                answer = Answer.of(reply.content, setup.task)
                if answer.client == client:
                    answer = check_answer(answer, ask, expect(setup, client, ask))
                    for note in answer.notes:
                        self._tell(client, note)
                    return answer
                failures = [r.failure for r in (answer.trained, answer.evaluated) if r is not None and r.failure]
                why = f"it calls itself {answer.client!r} now" + "".join(f": {f}" for f in failures[:1])
                self._nodes.doubt(client)
            except Exception as error:  # noqa: BLE001  a malformed answer must not end the run
                why = f"its answer cannot be read: {type(error).__name__}: {error}"
        return Answer.failed(client, why)

    def _count(self, progress: Progress, asks: Mapping[str, Ask], answers: Mapping[str, Answer]) -> None:
        """Log the bytes that this round's training sends and receives per client; history.csv has their sums."""
        costs = []
        for client, ask in asks.items():
            if ask.purpose != "evaluate":
                update = trained.update if (trained := answers[client].trained) is not None else None
                down = count_elements([ask.shared, ask.own])[1]
                up = count_elements([update.shared, update.extra])[1] if update is not None else 0
                costs.append(f"{client} {'probes, ' if ask.purpose == 'probe' else ''}{down:,} bytes down, {up:,} up")
        if costs:
            LOG.info("round %d: %s", progress.round + 1, "; ".join(costs))


def expect(setup: Setup, client: str, ask: Ask) -> Expected:
    """Return what an honest answer looks like: that of a client after zero steps, but with the right step counts."""
    algorithm, layout = setup.algorithm, setup.network.layout
    message, facts, tensors = receive(setup, client, ask.message(ask.purpose), None)
    update = conclude(setup, client, message, facts, tensors)[0] if ask.purpose != "evaluate" else None
    both = setup.models(tensors, facts)
    models, n_test = (both.global_ is not None, both.personal is not None), setup.clients[client].n_test
    trained = 0 if update is None else facts.steps(algorithm.phases(message, facts))
    names = frozenset(layout.parameters), frozenset(layout.buffers)
    further = () if both.personal is None else setup.delivery.trainings(facts).values()
    adapting = sum(map(facts.steps, (algorithm.adapt(facts), *further)))
    steps = trained, adapting  # no list of batches: its length is up to the site
    places = setup.federation.y[0].numel()
    choices = CANDIDATES if setup.delivery.model == "chosen" else ("",)
    return Expected(update, *names, models, n_test, setup.federation.outputs, steps, places, choices)


def _certain(result: Result | None, client: str) -> Result:
    """Return the result, or a failure if it holds nothing."""
    if result is not None and (result.failure is not None or result.update is not None or result.scores is not None):
        return result
    return Result(client, failure="it did not do what it was asked")
