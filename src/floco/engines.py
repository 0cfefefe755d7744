"""Where jobs run and how many at once. Engines know nothing of algorithms; results are the same bits from each."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, Protocol, cast

import torch

from floco.errors import FlocoError, WorkerDied
from floco.metrics import Score
from floco.training import Scores, Setup, evaluate, global_model, judge, optimiser_steps, train
from floco.values import Message, Tensors, Update


@dataclass(frozen=True)
class Job:
    """One client's work; task `test` is the global model on a range of the global test part."""

    client: str
    task: Literal["train", "probe", "evaluate", "test"]
    message: Message
    memory: Tensors | None = None
    part: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Result:
    """What came out of a job; `failure` says why nothing did."""

    client: str
    update: Update | None = None
    memory: Tensors | None = None
    scores: Scores | None = None
    score: Score | None = None
    steps: int = 0
    """Optimiser steps taken."""
    failure: str | None = None
    trace: str = ""


def perform(setup: Setup, job: Job) -> Result:
    """Return the result of one job. Whatever the client's model, data or method raises becomes a named failure."""
    try:
        if job.task == "test":
            return _test(setup, job)
        if job.task == "evaluate":
            scores = evaluate(setup, job.client, job.message, job.memory)
            return Result(job.client, scores=scores, steps=optimiser_steps(setup, job.client, setup.algorithm.adapt(setup.facts(job.client))))
        update, memory = train(setup, job.client, job.message, job.memory)
        return Result(job.client, update, memory, steps=optimiser_steps(setup, job.client, setup.algorithm.phases(job.message, setup.facts(job.client))))
    except Exception as error:  # noqa: BLE001  a client's fault of any kind must not end the run; it is named and counted
        kind = "" if isinstance(error, FlocoError) else f"{type(error).__name__}: "
        return Result(job.client, failure=f"{kind}{error}", trace=traceback.format_exc())


def _test(setup: Setup, job: Job) -> Result:
    tensors, x, y = global_model(setup, job.message), setup.federation.x_test, setup.federation.y_test
    if tensors is None or x is None or y is None:
        return Result(job.client)
    start, stop = job.part
    return Result(job.client, score=judge(setup, tensors, x[start:stop], y[start:stop]))


class Engine(Protocol):
    """Runs jobs; results come in job order."""

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Return one result for each job, in the same order."""

    def close(self) -> None:
        """Give back what the engine holds."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block with torch on one thread: another number gives other bits in convolutions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Serial:
    """One job after the other, in this process."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Return one result for each job, in the same order."""
        return [perform(self._setup, job) for job in jobs]

    def close(self) -> None:
        """Do nothing: nothing is held."""


def _tensor(raw: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(raw).view(dtype).reshape(shape)


class _Pickler(pickle.Pickler):
    """Tensors as plain bytes: torch's own way opens a shared-memory file for each, and containers have few of those."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            return _tensor, (obj.detach().contiguous().reshape(-1).view(torch.uint8).numpy(), obj.dtype, tuple(obj.shape))
        return NotImplemented


def _dumps(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def _end_with_parent() -> None:
    """Wait for the parent to die, and end this process at once, in the middle of a job too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(setup: Setup, pipe: Connection) -> None:
    """Serve jobs until the parent closes the pipe or dies."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    shared: Tensors = {}
    while True:
        try:
            kind, value = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        if kind == "shared":
            shared = value
            continue
        number, job = value
        if kind == "job of shared":
            job = replace(job, message=replace(job.message, shared=shared))
        pipe.send_bytes(_dumps((number, perform(setup, job))))


class Processes:
    """Persistent worker processes of one thread each, forked: data, model and algorithm are shared, not copied."""

    def __init__(self, setup: Setup, workers: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._workers: list[BaseProcess] = []
        for _ in range(workers):
            here, there = context.Pipe()
            worker = context.Process(target=_work, args=(setup, there), daemon=True)
            worker.start()
            there.close()
            self._pipes.append(here)
            self._workers.append(worker)

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Return one result for each job, in the same order; idle workers take the next job."""
        if not jobs:
            return []
        shared = jobs[0].message.shared  # the same object in most jobs of a call: sent to each worker once
        body = _dumps(("shared", shared))
        results: list[Result | None] = [None] * len(jobs)
        running: dict[Connection, int] = {}
        todo = iter(range(len(jobs)))
        for pipe in self._pipes[: len(jobs)]:
            self._send(pipe, body, None)
            running |= self._next(pipe, todo, jobs, shared)
        while running:
            for ready in wait(list(running)):
                pipe = cast(Connection, ready)
                try:
                    number, result = pickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionResetError) as error:
                    raise self._died(pipe, jobs[running[pipe]]) from error
                results[number] = result
                del running[pipe]
                running |= self._next(pipe, todo, jobs, shared)
        return [r for r in results if r is not None]

    def _next(self, pipe: Connection, todo: Iterator[int], jobs: Sequence[Job], shared: Tensors) -> dict[Connection, int]:
        number = next(todo, None)
        if number is None:
            return {}
        job, kind = jobs[number], "job"
        if job.message.shared is shared:
            job, kind = replace(job, message=replace(job.message, shared={})), "job of shared"
        self._send(pipe, _dumps((kind, (number, job))), job)
        return {pipe: number}

    def _send(self, pipe: Connection, data: bytes, job: Job | None) -> None:
        try:
            pipe.send_bytes(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died(pipe, job) from error

    def _died(self, pipe: Connection, job: Job | None) -> WorkerDied:
        worker = self._workers[self._pipes.index(pipe)]
        worker.join(timeout=5)
        where = f'round {job.message.round}, client "{job.client}": ' if job else ""
        return WorkerDied(f"{where}worker process {worker.pid} died (exit code {worker.exitcode}); if memory ran out, use fewer workers: run.workers (got {len(self._workers)})")

    def close(self) -> None:
        """End the workers."""
        for pipe in self._pipes:
            pipe.close()
        for worker in self._workers:
            worker.terminate()
            worker.join()


def engine(setup: Setup, kind: str, workers: int | None) -> Engine:
    """Return the engine `kind`; see `resolve` for what stands behind `auto`."""
    kind, workers = resolve(kind, workers, setup.device)
    return Serial(setup) if kind == "serial" else Processes(setup, workers)


def resolve(kind: str, workers: int | None, device: torch.device) -> tuple[str, int]:
    """Return the engine and the number of workers meant by `auto` and by no number: processes, one a core.

    Systems that cannot fork, and devices other than the CPU, get `serial`.
    """
    can_fork = "fork" in multiprocessing.get_all_start_methods() and device.type == "cpu"
    if kind == "processes" and not can_fork:
        raise FlocoError(f"engine processes needs a system that can fork, and the CPU (device {device}); use engine serial")
    if kind == "auto":
        kind = "processes" if can_fork else "serial"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return kind, workers or (cores if kind == "processes" else 1)
