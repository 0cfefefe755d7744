"""The training loop: select, send, train, average, evaluate. It does no I/O and knows no method by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from floco.client.predict import split_test_part
from floco.client.setup import Setup
from floco.core.errors import FlocoError, RunFailed
from floco.core.metrics import Score, pooled
from floco.core.random import one_thread, stream
from floco.core.values import Purpose, Row, ServerState, Tensors, Update
from floco.engines.engine import Engine
from floco.engines.jobs import Job, Result
from floco.server.evaluation import Counts, Evaluation, client_row, summarize, update_spread
from floco.storage.memories import Memories

_AT_ONCE = 1000  # jobs of an evaluation that are in memory at once
_TEST = "(global test part)"  # used as a client's name in jobs and failures


@dataclass(frozen=True)
class Failure:
    """A client that failed in a round, and why."""

    round: int
    client: str
    reason: str
    trace: str = field(default="", repr=False, compare=False)

    @property
    def row(self) -> Row:
        """The failure as a line of failures.csv."""
        return {"round": self.round, "client": self.client, "reason": self.reason}

    def __str__(self) -> str:
        """Return the failure as shown to users."""
        return f'round {self.round}, client "{self.client}": {self.reason}'


@dataclass(frozen=True)
class Progress:
    """The federation after `state.round` rounds: what the next round needs, and results of the last one."""

    state: ServerState
    memories: Memories = field(default_factory=Memories)
    """The clients' memories; clients that never trained are absent."""
    participated: Mapping[str, int] = field(default_factory=dict)
    """Number of rounds in which a client's update was averaged."""
    last: Mapping[str, int] = field(default_factory=dict)
    """The last round in which a client's update was averaged."""
    since: Counts = field(default_factory=Counts)
    """Counts since the last evaluation."""
    changed: tuple[str, ...] = ()
    """Clients whose memory changed in this round."""
    failures: tuple[Failure, ...] = ()
    """Clients that failed in this round."""
    evaluation: Evaluation | None = None

    @property
    def round(self) -> int:
        """Rounds completed."""
        return self.state.round


@dataclass(frozen=True)
class Plan:
    """When the loop evaluates, and how many failures it tolerates."""

    evaluate_every: int = 5
    max_failed: int = 5


def begin(setup: Setup, memories: Memories | None = None) -> Progress:
    """Return the progress before the first round; empty `memories` set the memory budget."""
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
        with one_thread():  # not around the yield, so that the caller's code is unaffected
            jobs = round_jobs(setup, progress)
            progress = after_round(setup, plan, progress, jobs, engine.run(jobs))
            if is_due(setup, plan, progress.round):
                progress = after_evaluation(setup, plan, progress, _run(engine, evaluation_jobs(setup, progress)))
        yield progress


def _run(engine: Engine, jobs: Iterator[Job]) -> Iterator[Result]:
    """Yield the results of jobs, run in parts that fit in memory."""
    while some := list(islice(jobs, _AT_ONCE)):
        yield from engine.run(some)


def is_due(setup: Setup, plan: Plan, round_: int) -> bool:
    """Return whether the models after a round are evaluated."""
    return round_ > 0 and (round_ % plan.evaluate_every == 0 or round_ == setup.training.rounds)


def round_jobs(setup: Setup, before: Progress) -> list[Job]:
    """Return the jobs of the round after `before`: some clients train, others only probe."""
    algorithm, state = setup.algorithm, before.state
    ids, generator = tuple(setup.clients), stream(setup.seed, "select", before.round + 1)
    train, probe = algorithm.select(state, ids, fraction=setup.training.fraction, generator=generator)
    tasks: list[tuple[str, Purpose]] = [*((c, "train") for c in train), *((c, "probe") for c in probe)]
    return [Job(c, task, algorithm.message(state, c, task), before.memories.of(c)) for c, task in tasks]


def after_round(setup: Setup, plan: Plan, before: Progress, jobs: Sequence[Job], results: Sequence[Result]) -> Progress:
    """Return the progress after a round, from the results of its jobs."""
    algorithm, state, number = setup.algorithm, before.state, before.round + 1
    failures = _failures(number, results)
    _check(failures, [j.client for j in jobs if j.task == "train"], plan, number)
    updates = [r.update for r in results if r.update is not None]
    new = {r.client: r.memory for r in results if r.memory}
    trained = {u.client for u in updates if u.task == "train"}
    participated = {c: before.participated.get(c, 0) + (c in trained) for c in {*before.participated, *trained}}
    down = count_elements(t for j in jobs for t in (j.message.shared, j.message.own))
    up = count_elements(t for u in updates for t in (u.shared, u.extra))
    steps, apart = sum(r.steps for r in results), _spread(setup, state, updates)
    counts = Counts(len(failures), 1, steps, down[0], up[0], down[1], up[1], apart)
    after = algorithm.aggregate(state, updates, clients=setup.sizes)
    if after.round != number:
        method = type(algorithm).__name__
        raise FlocoError(
            f"{method}.aggregate must return the state of round {number} (`average` does), got {after.round}"
        )
    memories, last = before.memories.updated(new), {**before.last, **dict.fromkeys(trained, number)}
    return Progress(after, memories, participated, last, before.since + counts, tuple(new), failures)


def _failures(number: int, results: Sequence[Result]) -> tuple[Failure, ...]:
    return tuple(Failure(number, r.client, r.failure, r.trace) for r in results if r.failure is not None)


def _check(failures: Sequence[Failure], train: Sequence[str], plan: Plan, number: int) -> None:
    """Raise if too many clients failed in a round or its evaluation, or all of them."""
    failed = {f.client for f in failures}
    if len(failed) > plan.max_failed or failed.issuperset(train):
        shown = "\n  ".join(str(f) for f in failures[:5])
        limit = (
            f"at most run.max_failed = {plan.max_failed} may" if len(failed) > plan.max_failed else "no client is left"
        )
        raise RunFailed(f"round {number}: {len(failed)} clients failed, {limit}:\n  {shown}")


def count_elements(groups: Iterable[Tensors]) -> tuple[int, int]:
    """Return the number of elements and of bytes."""
    sizes = [(t.numel(), t.nbytes) for tensors in groups for t in tensors.values()]
    return sum(n for n, _ in sizes), sum(b for _, b in sizes)


def _spread(setup: Setup, state: ServerState, updates: Sequence[Update]) -> dict[str, float]:
    trained = [u for u in updates if u.task == "train"]
    effective = setup.algorithm.effective
    after = [effective({**state.shared, **u.shared}) for u in trained]
    return update_spread(effective(state.shared), after, [u.weight for u in trained], setup.network.layout)


def evaluation_jobs(setup: Setup, progress: Progress) -> Iterator[Job]:
    """Yield the jobs to evaluate all clients, whether they trained or not, and the global model."""
    algorithm, state = setup.algorithm, progress.state
    for client in setup.clients:
        yield Job(client, "evaluate", algorithm.message(state, client, "evaluate"), progress.memories.of(client))
    for part in split_test_part(setup):
        yield Job(_TEST, "test", algorithm.message(state, _TEST, "evaluate"), part=part)


def after_evaluation(setup: Setup, plan: Plan, progress: Progress, results: Iterable[Result]) -> Progress:
    """Return the progress with the evaluation of its state, from the results of `evaluation_jobs`."""
    number = progress.round
    rows: list[Row] = []
    failures: list[Failure] = []
    judged: Score | None = None  # of the global model, on the parts so far
    whole, steps = setup.federation.y_test is not None, 0
    for result in results:
        failures += _failures(number, [result])
        steps += result.steps
        if result.scores is not None:
            client, took_part = setup.clients[result.client], progress.participated.get(result.client, 0)
            rows.append(client_row(setup.task, number, client, took_part, result.scores))
        found = result.score if whole else None if setup.local_buffers else result.scores and result.scores.global_
        judged = pooled(s for s in (judged, found) if s is not None)
    _check(failures, tuple(setup.clients), plan, number)
    if any(f.client == _TEST for f in failures):
        judged = None
    done = summarize(setup.task, number, rows, judged, progress.since + Counts(failed=len(failures)), steps)
    return replace(progress, evaluation=done, since=Counts(), failures=(*progress.failures, *failures))
