"""Engines: where jobs run, and how many at once. They know nothing of algorithms."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from typing import Protocol

from torch import nn

from floco.client.setup import Setup
from floco.core.errors import FlocoError, warn
from floco.engines.jobs import Job, Result
from floco.engines.processes import Processes
from floco.engines.units import Performer, group_jobs, own_files, warn_once
from floco.storage.on_disk import scratch_name


class Engine(Protocol):
    """Runs jobs and returns results in the same order."""

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Return one result for each job, in the same order."""

    def close(self) -> None:
        """Release the engine's resources."""


class Serial:
    """Runs jobs in this process, one after the other or up to `together` clients at once."""

    def __init__(self, setup: Setup, together: int = 1) -> None:
        self._setup, self._together = setup, together
        scratch, self._delete = scratch_name(self)
        self._perform = Performer(setup, scratch)
        self._warned: set[str] = set()

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Return one result for each job, in the same order."""
        found: dict[int, Result] = {}
        for unit in group_jobs(self._setup, jobs, self._together, 1):
            done = self._perform([jobs[i] for i in unit])
            own_files(done)
            found |= zip(unit, done, strict=True)
        results = [found[i] for i in range(len(jobs))]
        warn_once(results, self._warned)
        return results

    def close(self) -> None:
        """Delete the files of updates."""
        self._delete()


def _warn_about_network(setup: Setup) -> None:
    """Warn of properties of the network that slow down the run; workers inherit the cached results."""
    if setup.hidden_state is not None:
        warn(
            f"clients train one at a time, each on a fresh copy of the network: {setup.hidden_state}, "
            "and state outside its tensors is not part of a model"
        )
    if setup.head_disagrees:
        warn("evaluations run the whole network for every model: its output is not that of its last linear layer alone")


_COHORT_SIZE = {"cpu": 16, "cuda": 64}  # clients per cohort; on the CPU, more exceed a core's cache
_SLOW_IN_COHORTS = 200_000  # parameters up to which dispatch takes longer than computing, on the CPU
_LARGE_MODEL = 256_000_000  # bytes
_HEAVY_LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.RNNBase,
)


def start_engine(setup: Setup, kind: str, workers: int | None) -> Engine:
    """Return the engine `kind`; `resolve` explains `auto`."""
    kind, workers = resolve(setup, kind, workers)
    _warn_about_network(setup)
    together = 1
    if kind == "cohort":
        if (reason := _why_no_cohort(setup)) is not None and reason != setup.hidden_state:
            why = "the network cannot be batched over clients"
            warn(f"engine cohort: clients train one at a time, because {why}: {reason}")
        elif reason is None:
            from floco.engines.tracing import warm_up

            warm_up()
            together = _COHORT_SIZE.get(setup.device.type, 16)
    alone = kind == "serial" or (kind == "cohort" and workers == 1)
    return Serial(setup, together) if alone else Processes(setup, workers, together)


def resolve(setup: Setup, kind: str, workers: int | None) -> tuple[str, int]:
    """Return the engine for `kind` (resolving `auto`) and the number of workers (None: one per core).

    `auto` means `cohort` if at least four clients train in a round and the network can be batched over clients; on the
    CPU it must also be small (200,000 trained parameters), without convolutions and recurrent layers. Otherwise it
    means `processes`, or `serial` where a process may not fork, on devices other than the CPU, and for a model of more
    than 256 MB of trained parameters if the number of workers is not given, with a warning.
    """
    can_fork = _may_fork() and setup.device.type == "cpu"
    if not can_fork and (kind == "processes" or (kind != "serial" and (workers or 1) > 1)):
        raise FlocoError(
            f"worker processes need a system that can fork, the CPU (device {setup.device}), and a process that may "
            "start others, which a worker of a multiprocessing.Pool may not; "
            "use engine serial or cohort, and one worker"
        )
    if kind == "auto" and _is_cohort_faster(setup) and _why_no_cohort(setup) is None:
        kind = "cohort"
    elif kind == "auto" and can_fork and workers is None and (size := _trained_bytes(setup)) > _LARGE_MODEL:
        kind = "serial"
        warn(
            f"the model has {size / 1e6:.0f} MB of trained parameters: clients train one at a time, on one core, as "
            "each worker needs two copies of it; set run.workers for more"
        )
    elif kind == "auto":
        kind = "processes" if can_fork else "serial"
    return kind, workers or (default_workers() if can_fork and kind != "serial" else 1)


def _may_fork() -> bool:
    """Return whether this process can have workers: daemonic ones, e.g. those of a pool, may not start others."""
    return "fork" in multiprocessing.get_all_start_methods() and not multiprocessing.current_process().daemon


def default_workers() -> int:
    """Return the number of cores that this process may use; 1 where it may not fork."""
    if not _may_fork():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_cohort_faster(setup: Setup) -> bool:
    clients = round(setup.training.fraction * len(setup.federation.clients))
    numbers = sum(t.numel() for t in setup.network.parameters.values())
    small = numbers <= _SLOW_IN_COHORTS and not any(
        isinstance(m, _HEAVY_LAYERS) for m in setup.network.module.modules()
    )
    return clients >= 4 and (small or setup.device.type != "cpu")


def _trained_bytes(setup: Setup) -> int:
    return sum(t.nbytes for t in setup.network.parameters.values())


def _why_no_cohort(setup: Setup) -> str | None:
    from floco.engines.cohort import refusal  # imported here, since it takes half a second

    return refusal(setup)
