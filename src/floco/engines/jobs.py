"""A job is one client's work in a round or an evaluation; `perform` carries it out, wherever an engine runs it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from floco.client.choice import deliver, list_trainings
from floco.client.predict import find_global_model, judge
from floco.client.round import Scores, conclude, prepare, score
from floco.client.setup import Setup
from floco.client.sgd import Work, train_client
from floco.core.errors import FlocoError
from floco.core.inputs import rows
from floco.core.metrics import Score
from floco.core.values import Message, Tensors, Update
from floco.storage.memories import Memory


@dataclass(frozen=True)
class Job:
    """One client's work; with purpose `test`, the global model is evaluated on a range of the global test part."""

    client: str
    purpose: Literal["train", "probe", "evaluate", "test"]
    message: Message
    memory: Memory | Tensors | None = None
    test_range: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Result:
    """The result of a job; `failure` says why there is none."""

    client: str
    update: Update | None = None
    memory: Tensors | None = None
    scores: Scores | None = None
    """Of the client's models on its own test part."""
    taken: str = ""
    """The candidate that the client has chosen as its personal model; "": there was no choice."""
    test_score: Score | None = None
    """Of the global model on a range of the global test part."""
    steps: int = 0
    """Optimiser steps taken."""
    failure: str | None = None
    trace: str = ""
    why_alone: str = ""
    """Why the client could not be trained together with others."""


def perform(
    setup: Setup,
    job: Job,
    work: Work | None = None,
    tensors: Tensors | None = None,
    trained: Mapping[str, Tensors] | None = None,
) -> Result:
    """Return the result of one job; any exception of the client's model, data or method becomes a failure.

    Args:
        setup: the setup of the run.
        job: what to do.
        work: its training, if already prepared.
        tensors: the trained tensors, if the client has been trained together with others.
        trained: those of its further trainings (`list_trainings`), likewise.
    """
    try:
        if job.purpose == "test":
            return _test(setup, job)
        work = work or prepare_job(setup, job)
        tensors = train_client(setup, work) if tensors is None else tensors
        if job.purpose == "evaluate":
            return _evaluate(setup, work, tensors, trained)
        update, memory = conclude(setup, work.client, work.message, work.facts, tensors)
        return Result(job.client, update, memory, steps=work.steps)
    except Exception as error:  # noqa: BLE001  no client's error may end the run; it is reported and counted
        kind = "" if isinstance(error, FlocoError) else f"{type(error).__name__}: "
        return Result(job.client, failure=f"{kind}{error}", trace=traceback.format_exc())


def _evaluate(setup: Setup, work: Work, tensors: Tensors, trained: Mapping[str, Tensors] | None) -> Result:
    steps = work.steps + sum(further.steps for further in list_trainings(setup, work, tensors).values())
    found = deliver(setup, work, tensors, trained)
    taken = found.taken if setup.delivery.model == "chosen" else ""
    return Result(work.client, scores=score(setup, work.client, found.models), taken=taken, steps=steps)


def prepare_job(setup: Setup, job: Job) -> Work:
    """Return the training of a job; a memory on disk is read."""
    memory = job.memory.tensors if isinstance(job.memory, Memory) else job.memory
    return prepare(setup, job.client, job.message, memory)


def _test(setup: Setup, job: Job) -> Result:
    tensors, x, y = find_global_model(setup, job.message), setup.federation.x_test, setup.federation.y_test
    if tensors is None or x is None or y is None:
        return Result(job.client)
    start, stop = job.test_range
    return Result(job.client, test_score=judge(setup, [tensors], rows(x, slice(start, stop)), y[start:stop])[0])
