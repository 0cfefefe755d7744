"""Units: jobs that are carried out together, and how jobs are divided into them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from floco.client.choice import list_trainings
from floco.client.setup import Setup
from floco.client.sgd import Work
from floco.core.errors import FlocoError, warn
from floco.core.values import Lazy, Tensors
from floco.engines.jobs import Job, Result, perform, prepare_job
from floco.storage.on_disk import aside, delete_later

if TYPE_CHECKING:
    from floco.engines.cohort import Cohorts


def perform_together(setup: Setup, jobs: Sequence[Job], cohorts: Cohorts) -> list[Result]:
    """Return the results of several jobs, trained as one program where possible; the others are done alone."""
    works = [None if job.purpose == "test" else _tried(setup, job) for job in jobs]
    todo = [w for w in works if w is not None and w.phases]
    outcomes = dict(zip(map(id, todo), cohorts.run(todo), strict=True))
    further = [_list_trainings(setup, job, w, outcomes.get(id(w))) for job, w in zip(jobs, works, strict=True)]
    todo = [w for own in further for w in own.values()]
    outcomes |= dict(zip(map(id, todo), cohorts.run(todo), strict=True))
    results = []
    for job, work, own in zip(jobs, works, further, strict=True):
        outcome, more = outcomes.get(id(work), ""), {name: outcomes[id(w)] for name, w in own.items()}
        trained = {name: made for name, made in more.items() if not isinstance(made, str)}
        result = perform(setup, job, work, None if isinstance(outcome, str) else outcome, trained)
        reasons = [made for made in (outcome, *more.values()) if isinstance(made, str) and made]
        results.append(replace(result, why_alone=reasons[0]) if reasons else result)
    return results


def _list_trainings(setup: Setup, job: Job, work: Work | None, outcome: Tensors | str | None) -> dict[str, Work]:
    """Return the further trainings of an evaluation whose adaptation is done; no phases: there is none to do."""
    if work is None or job.purpose != "evaluate" or (work.phases and not isinstance(outcome, dict)):
        return {}
    try:
        return list_trainings(setup, work, outcome if isinstance(outcome, dict) else work.tensors)
    except Exception:  # noqa: BLE001  raised again, and reported, when the job is done
        return {}


def _tried(setup: Setup, job: Job) -> Work | None:
    try:
        return prepare_job(setup, job)
    except Exception:  # noqa: BLE001  raised again, and reported, when the job is done alone
        return None


class Performer:
    """Carries out units of jobs, larger ones as a cohort."""

    def __init__(self, setup: Setup, scratch: str) -> None:
        """Carry out jobs of a setup, and put large updates into files of a folder (`scratch_name`).

        Methods of one's own have theirs in memory: they may write to them, and use them as dictionaries.
        """
        self._setup = setup
        self._scratch = scratch if type(setup.algorithm).__module__.startswith("floco.algorithms.") else None
        self._cohorts: Cohorts | None = None

    def __call__(self, unit: Sequence[Job]) -> list[Result]:
        """Return one result for each job of a unit."""
        if len(unit) == 1:
            return [put_aside(perform(self._setup, unit[0]), self._scratch)]
        if self._cohorts is None:
            from floco.engines.cohort import Cohorts  # imported here, since it takes half a second

            self._cohorts = Cohorts(self._setup)
        return [put_aside(r, self._scratch) for r in perform_together(self._setup, unit, self._cohorts)]


def put_aside(result: Result, scratch: str | None) -> Result:
    """Return a result whose update, if it is large, is in files; one that cannot be written is a failure."""
    if (update := result.update) is None or scratch is None:
        return result
    made: list[Lazy] = []
    try:
        made.extend(aside(tensors, scratch) for tensors in (update.shared, update.extra))
    except FlocoError as error:
        delete_later(made)
        return Result(result.client, failure=str(error))
    return replace(result, update=replace(update, shared=made[0], extra=made[1]))


def own_files(results: Sequence[Result]) -> None:
    """Have the files of updates deleted with the updates, in this process."""
    updates = [r.update for r in results if r.update is not None]
    delete_later(tensors for update in updates for tensors in (update.shared, update.extra))


def group_jobs(setup: Setup, jobs: Sequence[Job], together: int, workers: int) -> list[list[int]]:
    """Return positions of jobs in units of at most `together`, largest clients first.

    Units are as even as possible, and no fewer than workers. Parts of the global test are units of one.
    """
    tests = [[i] for i, job in enumerate(jobs) if job.purpose == "test"]
    order = sorted(
        (i for i, job in enumerate(jobs) if job.purpose != "test"),
        key=lambda i: -len(setup.federation.client(jobs[i].client).train),
    )
    if together == 1 or not order:
        return tests + [[i] for i in order]
    number = max(math.ceil(len(order) / together), min(workers, len(order)))
    bounds = [len(order) * i // number for i in range(number + 1)]
    return tests + [order[a:b] for a, b in pairwise(bounds)]


def warn_once(results: Sequence[Result], warned: set[str]) -> None:
    """Warn once of each reason why clients could not be trained together."""
    for reason in {r.why_alone for r in results} - warned - {""}:
        warned.add(reason)
        warn(f"some clients train one at a time, because their training cannot be batched: {reason}")
