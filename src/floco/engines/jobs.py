"""Jobs of single clients, their results, and how to carry them out, alone or together."""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from floco.client.predict import find_global_model, judge
from floco.client.round import Scores, conclude, prepare, score
from floco.client.setup import Setup
from floco.client.sgd import Work, train_client
from floco.core.errors import FlocoError, warn
from floco.core.inputs import rows
from floco.core.metrics import Score
from floco.core.values import Message, Tensors, Update
from floco.storage.memories import Memory

if TYPE_CHECKING:
    from floco.engines.cohort import Cohorts


@dataclass(frozen=True)
class Job:
    """One client's work; task `test` evaluates the global model on a range of the global test part."""

    client: str
    task: Literal["train", "probe", "evaluate", "test"]
    message: Message
    memory: Memory | Tensors | None = None
    part: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Result:
    """The result of a job; `failure` says why there is none."""

    client: str
    update: Update | None = None
    memory: Tensors | None = None
    scores: Scores | None = None
    score: Score | None = None
    steps: int = 0
    """Optimiser steps taken."""
    failure: str | None = None
    trace: str = ""
    alone: str = ""
    """Why the client could not be trained together with others."""


def perform(setup: Setup, job: Job, work: Work | None = None, tensors: Tensors | None = None) -> Result:
    """Return the result of one job; any exception of the client's model, data or method becomes a failure.

    Args:
        setup: the setup of the run.
        job: what to do.
        work: its training, if already prepared.
        tensors: the trained tensors, if the client has been trained together with others.
    """
    try:
        if job.task == "test":
            return _test(setup, job)
        work = work or _prepare(setup, job)
        tensors = train_client(setup, work) if tensors is None else tensors
        if job.task == "evaluate":
            return Result(job.client, scores=score(setup, work, tensors), steps=work.steps)
        update, memory = conclude(setup, work.client, work.message, work.facts, tensors)
        return Result(job.client, update, memory, steps=work.steps)
    except Exception as error:  # noqa: BLE001  no client's error may end the run; it is reported and counted
        kind = "" if isinstance(error, FlocoError) else f"{type(error).__name__}: "
        return Result(job.client, failure=f"{kind}{error}", trace=traceback.format_exc())


def _prepare(setup: Setup, job: Job) -> Work:
    memory = job.memory.tensors if isinstance(job.memory, Memory) else job.memory
    return prepare(setup, job.client, job.message, memory)


def _test(setup: Setup, job: Job) -> Result:
    tensors, x, y = find_global_model(setup, job.message), setup.federation.x_test, setup.federation.y_test
    if tensors is None or x is None or y is None:
        return Result(job.client)
    start, stop = job.part
    return Result(job.client, score=judge(setup, [tensors], rows(x, slice(start, stop)), y[start:stop])[0])


def perform_together(setup: Setup, jobs: Sequence[Job], cohorts: Cohorts) -> list[Result]:
    """Return the results of several jobs, trained as one program where possible; the others are done alone."""
    works = [None if job.task == "test" else _tried(setup, job) for job in jobs]
    todo = [w for w in works if w is not None and w.phases]
    outcomes = dict(zip(map(id, todo), cohorts.run(todo), strict=True))
    results = []
    for job, work in zip(jobs, works, strict=True):
        outcome = outcomes.get(id(work), "")
        if isinstance(outcome, str):
            results.append(replace(perform(setup, job, work), alone=outcome))
        else:
            results.append(perform(setup, job, work, outcome))
    return results


def _tried(setup: Setup, job: Job) -> Work | None:
    try:
        return _prepare(setup, job)
    except Exception:  # noqa: BLE001  raised again, and reported, when the job is done alone
        return None


class Performer:
    """Carries out units of jobs, larger ones as a cohort."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._cohorts: Cohorts | None = None

    def __call__(self, unit: Sequence[Job]) -> list[Result]:
        """Return one result for each job of a unit."""
        if len(unit) == 1:
            return [perform(self._setup, unit[0])]
        if self._cohorts is None:
            from floco.engines.cohort import Cohorts  # imported here, since it takes half a second

            self._cohorts = Cohorts(self._setup)
        return perform_together(self._setup, unit, self._cohorts)


def group_jobs(setup: Setup, jobs: Sequence[Job], together: int, workers: int) -> list[list[int]]:
    """Return positions of jobs in units of at most `together`, largest clients first.

    Units are as even as possible, and no fewer than workers. Parts of the global test are units of one.
    """
    tests = [[i] for i, job in enumerate(jobs) if job.task == "test"]
    order = sorted(
        (i for i, job in enumerate(jobs) if job.task != "test"),
        key=lambda i: -len(setup.federation.client(jobs[i].client).train),
    )
    if together == 1 or not order:
        return tests + [[i] for i in order]
    number = max(math.ceil(len(order) / together), min(workers, len(order)))
    bounds = [len(order) * i // number for i in range(number + 1)]
    return tests + [order[a:b] for a, b in pairwise(bounds)]


def warn_once(results: Sequence[Result], told: set[str]) -> None:
    """Warn once of each reason why clients could not be trained together."""
    for reason in {r.alone for r in results} - told - {""}:
        told.add(reason)
        warn(f"some clients train one at a time, because their training cannot be batched: {reason}")
