"""The training loop: select, send, train, average, evaluate. It does no I/O of its own and knows no method by name.

The `Algorithm` decides what happens in a round: its `select`, `message` and `aggregate` here, its other methods on the
clients. An engine runs `engines.jobs.perform` for each job: `client.round.prepare`, `client.sgd.train_client`, and then
`conclude` or, in an evaluation, `score`. Whatever a client raises there becomes the `failure` of its result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from floco.client.predict import split_test_part
from floco.client.setup import Setup
from floco.core.errors import FlocoError, RunFailed
from floco.core.metrics import Score, pooled
from floco.core.random import one_thread, stream
from floco.core.values import Row
from floco.engines.engine import Engine
from floco.engines.jobs import Job, Result
from floco.server.evaluation import Counts, client_row, count_round, global_score, summarize
from floco.server.progress import Failure, Plan, Progress
from floco.storage.memories import Memories

_AT_ONCE = 1000  # jobs of an evaluation that are in memory at once
_TEST = "(global test part)"  # stands for a client in jobs and failures: no client may be called so


def initialize(setup: Setup, memories: Memories | None = None) -> Progress:
    """Return the progress before the first round; `memories` are empty, and know how much RAM they may use."""
    memories = Memories() if memories is None else memories
    with one_thread():
        return Progress(setup.algorithm.init(setup.network, seed=setup.seed), memories)


def rounds(setup: Setup, engine: Engine, plan: Plan, start: Progress) -> Iterator[Progress]:
    """Yield the progress after every round from `start` to the last.

    Raises:
        RunFailed: more than `plan.max_failed` clients failed in a round, or all of them.
    """
    progress = start
    while progress.round < setup.training.rounds:
        with one_thread():  # bits do not depend on the number of cores; the caller's code after the yield is unaffected
            jobs = round_jobs(setup, progress)
            progress = after_round(setup, plan, progress, jobs, engine.run(jobs))
            if is_due(setup, plan, progress.round):
                results = _run_in_parts(engine, evaluation_jobs(setup, progress))
                progress = after_evaluation(setup, plan, progress, results)
        yield progress


def is_due(setup: Setup, plan: Plan, round_: int) -> bool:
    """Return whether the models after a round are evaluated."""
    return round_ > 0 and (round_ % plan.evaluate_every == 0 or round_ == setup.training.rounds)


def round_jobs(setup: Setup, before: Progress) -> list[Job]:
    """Return the jobs of the round after `before`: of the clients that train, and of those that only probe."""
    algorithm, state, number = setup.algorithm, before.state, before.round + 1
    generator = stream(setup.seed, "select", number)
    chosen = algorithm.select(state, tuple(setup.clients), fraction=setup.training.fraction, generator=generator)
    everyone = [*chosen.train, *chosen.probe]
    if not chosen.train or len({*everyone}) < len(everyone) or not {*everyone} <= setup.clients.keys():
        rule = "must choose at least one client to train, each client once, and only clients it was given"
        raise FlocoError(f"round {number}: {type(algorithm).__name__}.select {rule}, got {chosen}")
    train = [Job(c, "train", algorithm.message(state, c, "train"), before.memories.of(c)) for c in chosen.train]
    probe = [Job(c, "probe", algorithm.message(state, c, "probe"), before.memories.of(c)) for c in chosen.probe]
    return train + probe


def after_round(setup: Setup, plan: Plan, before: Progress, jobs: Sequence[Job], results: Sequence[Result]) -> Progress:
    """Return the progress after a round, from the results of its jobs."""
    algorithm, number = setup.algorithm, before.round + 1
    failures = _failures(number, results)
    _stop_if_too_many(failures, [j.client for j in jobs if j.purpose == "train"], plan, number)

    updates = [r.update for r in results if r.update is not None]
    state = algorithm.aggregate(before.state, updates, clients=setup.sizes)
    if state.round != number:
        method = type(algorithm).__name__
        raise FlocoError(
            f"{method}.aggregate must return the state of round {number} (`average` does), got {state.round}"
        )

    trained = [u.client for u in updates if u.purpose == "train"]
    memories = {r.client: r.memory for r in results if r.memory}
    return Progress(
        state=state,
        memories=before.memories.updated(memories),
        participated={**before.participated, **{c: before.participated.get(c, 0) + 1 for c in trained}},
        last_trained={**before.last_trained, **dict.fromkeys(trained, number)},
        counts=before.counts + count_round(setup, before.state, jobs, results),
        changed=tuple(memories),
        failures=failures,
    )


def evaluation_jobs(setup: Setup, progress: Progress) -> Iterator[Job]:
    """Yield the jobs to evaluate all clients with a test part, whether they trained or not, and the global model."""
    algorithm, state = setup.algorithm, progress.state
    for client in setup.evaluated:
        yield Job(client, "evaluate", algorithm.message(state, client, "evaluate"), progress.memories.of(client))
    for part in split_test_part(setup):
        yield Job(_TEST, "test", algorithm.message(state, _TEST, "evaluate"), test_range=part)


def _run_in_parts(engine: Engine, jobs: Iterator[Job]) -> Iterator[Result]:
    """Yield the results of jobs, of which only some are in memory at once."""
    while some := list(islice(jobs, _AT_ONCE)):
        yield from engine.run(some)


def after_evaluation(setup: Setup, plan: Plan, progress: Progress, results: Iterable[Result]) -> Progress:
    """Return the progress with the evaluation of its state, from the results of `evaluation_jobs`."""
    number, steps = progress.round, 0
    rows: list[Row] = []
    failures: list[Failure] = []
    score: Score | None = None  # of the global model, on the samples so far
    for result in results:
        known = {f.client for f in failures}  # the global test part has several jobs
        failures += [f for f in _failures(number, [result]) if f.client not in known]
        steps += result.steps
        if result.scores is not None:
            client, took_part = setup.clients[result.client], progress.participated.get(result.client, 0)
            rows.append(client_row(setup.task, number, client, took_part, result.scores, result.taken))
        score = pooled(s for s in (score, global_score(setup, result)) if s is not None)
    _stop_if_too_many(failures, setup.evaluated, plan, number)
    if any(f.client == _TEST for f in failures):
        score = None
    counts = progress.counts + Counts(failed=len(failures))
    done = summarize(setup.task, number, rows, score, counts, steps)
    return replace(progress, evaluation=done, counts=Counts(), failures=(*progress.failures, *failures))


def _failures(number: int, results: Sequence[Result]) -> tuple[Failure, ...]:
    return tuple(Failure(number, r.client, r.failure, r.trace) for r in results if r.failure is not None)


def _stop_if_too_many(failures: Sequence[Failure], needed: Sequence[str], plan: Plan, number: int) -> None:
    """Raise if more than `plan.max_failed` clients failed, or all of the `needed` ones."""
    if not needed:
        raise RunFailed(f"round {number}: no client has a test part, on which models are evaluated: see data.small")
    failed = {f.client for f in failures}
    if len(failed) > plan.max_failed or failed.issuperset(needed):
        shown = "\n  ".join(str(f) for f in failures[:5])
        limit = (
            f"at most run.max_failed = {plan.max_failed} may" if len(failed) > plan.max_failed else "no client is left"
        )
        raise RunFailed(f"round {number}: {len(failed)} clients failed, {limit}:\n  {shown}")
