"""Persistent worker processes, and the transfer of tensors to and from them."""

from __future__ import annotations

import ctypes
import gc
import io
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch

from floco.client.setup import Setup
from floco.core.errors import WorkerDied
from floco.engines.jobs import Job, Result
from floco.engines.units import Performer, group_jobs, own_files, warn_once
from floco.storage.memories import Memory
from floco.storage.on_disk import aside, delete_later, scratch_name

_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


def _viewed(raw: Any, dtype: torch.dtype) -> torch.Tensor:
    found: torch.Tensor = torch.from_numpy(raw).view(dtype)
    return found


class _Pickler(pickle.Pickler):
    """Pickles tensors as numpy arrays: torch opens a shared-memory file for each, and containers have few of those."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Memory):
            return obj.by_file()
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        plain = obj.detach()
        if plain.is_floating_point() and plain.dtype not in _NUMPY_FLOATS:
            return _viewed, (plain.view(torch.uint8 if plain.element_size() == 1 else torch.int16).numpy(), plain.dtype)
        return torch.from_numpy, (plain.numpy(),)


class _Naming(_Pickler):
    """Pickles tensors that the receiver already has as their number."""

    def __init__(self, file: io.BytesIO, known: Mapping[int, int]) -> None:
        super().__init__(file, protocol=5)
        self._known = known

    def persistent_id(self, obj: Any) -> int | None:
        return self._known.get(id(obj)) if isinstance(obj, torch.Tensor) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, known: Sequence[torch.Tensor]) -> None:
        super().__init__(io.BytesIO(data))
        self._known = known

    def persistent_load(self, pid: Any) -> torch.Tensor:
        return self._known[int(pid)]


def _dumps(value: Any, known: Mapping[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    (_Naming(buffer, known) if known else _Pickler(buffer, protocol=5)).dump(value)
    return buffer.getvalue()


def _end_with_parent() -> None:
    """Wait for the parent to die, and end this process at once, even during a job."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory, instead of returning it to the system after each step (no effect elsewhere)."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            library.mallopt(parameter, 2**25)


def _work(setup: Setup, pipe: Connection, scratch: str) -> None:
    """Serve jobs until the parent closes the pipe or dies."""
    torch.set_num_threads(1)
    _keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    perform_unit = Performer(setup, scratch)
    known: Sequence[torch.Tensor] = []
    while True:
        try:
            kind, value = _Unpickler(pipe.recv_bytes(), known).load()
        except EOFError:
            return
        if kind == "known":
            known = [*value.values()]
            continue
        number, unit = value
        pipe.send_bytes(_dumps((number, perform_unit(unit))))


class Processes:
    """Persistent forked worker processes of one thread each; data, model and algorithm are shared, not copied."""

    def __init__(self, setup: Setup, workers: int, together: int = 1) -> None:
        self._setup, self._together = setup, together
        self._warned: set[str] = set()
        self._scratch, self._delete = scratch_name(self)
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._workers: list[BaseProcess] = []
        gc.collect()
        gc.freeze()  # the workers never collect existing objects, so that their pages stay shared
        try:
            for _ in range(workers):
                here, there = context.Pipe()
                worker = context.Process(target=_work, args=(setup, there, self._scratch), daemon=True)
                worker.start()
                there.close()
                self._pipes.append(here)
                self._workers.append(worker)
        finally:
            gc.unfreeze()

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Return one result for each job, in the same order; idle workers take the next job."""
        if not jobs:
            return []
        known = jobs[0].message.shared  # the same objects in most jobs: sent to each worker once
        numbers = {id(t): i for i, t in enumerate(known.values())}
        sent = aside(known, self._scratch)
        delete_later([sent])
        body = _dumps(("known", sent))
        positions = group_jobs(self._setup, jobs, self._together, len(self._workers))
        parts = [[jobs[i] for i in unit] for unit in positions]
        results: list[list[Result]] = [[] for _ in parts]
        running: dict[Connection, int] = {}
        todo = iter(range(len(parts)))
        for pipe in self._pipes[: len(parts)]:
            self._send(pipe, body, None)
            running |= self._next(pipe, todo, parts, numbers)
        while running:
            for ready in wait(list(running)):
                pipe = cast(Connection, ready)
                try:
                    number, found = pickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionResetError) as error:
                    raise self._died(pipe, parts[running[pipe]]) from error
                own_files(found)
                results[number] = found
                del running[pipe]
                running |= self._next(pipe, todo, parts, numbers)
        found = {i: r for unit, got in zip(positions, results, strict=True) for i, r in zip(unit, got, strict=True)}
        warn_once([*found.values()], self._warned)
        return [found[i] for i in range(len(jobs))]

    def _next(
        self, pipe: Connection, todo: Iterator[int], parts: Sequence[Sequence[Job]], known: Mapping[int, int]
    ) -> dict[Connection, int]:
        number = next(todo, None)
        if number is None:
            return {}
        self._send(pipe, _dumps(("unit", (number, parts[number])), known), parts[number])
        return {pipe: number}

    def _send(self, pipe: Connection, data: bytes, unit: Sequence[Job] | None) -> None:
        try:
            pipe.send_bytes(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died(pipe, unit) from error

    def _died(self, pipe: Connection, unit: Sequence[Job] | None) -> WorkerDied:
        worker = self._workers[self._pipes.index(pipe)]
        worker.join(timeout=5)
        clients = ", ".join(f'"{job.client}"' for job in unit or ())
        where = f"round {unit[0].message.round}, client{'s' if len(unit) > 1 else ''} {clients}: " if unit else ""
        return WorkerDied(
            f"{where}worker process {worker.pid} died (exit code {worker.exitcode}); "
            f"if memory ran out, use fewer workers: run.workers (got {len(self._workers)})"
        )

    def close(self) -> None:
        """End the workers."""
        for pipe in self._pipes:
            pipe.close()
        for worker in self._workers:
            worker.terminate()
            worker.join()
        self._delete()
