"""Messages between server and sites: a question, an answer, and their conversion to and from Flower records.

The shared tensors are the message's only ArrayRecord, so that Flower mods find them; a client's own tensors travel as
safetensors bytes in the ConfigRecord.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import safetensors.torch
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from floco.client.round import Scores
from floco.core.errors import FlocoError
from floco.core.metrics import Score
from floco.core.task import Task
from floco.core.values import Message, Purpose, Tensors, Update
from floco.engines.jobs import Result
from floco.storage.files import to_safetensors

FORMAT = 5
LOG = logging.getLogger("flwr")  # Flower's logger, so that our lines appear in its log
_PLAIN = ("run", "round", "purpose", "evaluate", "accepted", "config", "model")
_MODELS = ("global_", "personal")
_NOTES = 8


@dataclass(frozen=True)
class Ask:
    """A question to one site: evaluate the model in it, train or probe on it, or both."""

    run: str
    """Id of the run; a site keeps each run in its own folder."""
    round: int
    """Round of the state that is sent."""
    purpose: Purpose
    """`train` or `probe`; `evaluate` for neither."""
    evaluate: bool
    shared: Tensors
    own: Tensors
    accepted: int
    """Last round in which this client's update was averaged; training starts from its memory of that round."""
    config: str
    """The configuration that all sites share, as JSON, with the numbers for normalisation and task."""
    model: str
    """Fingerprint of the network with its initial values."""

    def message(self, purpose: Purpose) -> Message:
        """Return the message that the client would receive in a local run."""
        return Message(self.round + (purpose != "evaluate"), purpose, self.shared, self.own)

    def records(self) -> RecordDict:
        """Return the question as Flower records."""
        plain: dict[str, Any] = {"format": FORMAT, **{n: getattr(self, n) for n in _PLAIN}}
        ask = ConfigRecord({**plain, "own": to_safetensors(self.own)})
        return RecordDict({"arrays": ArrayRecord(dict(self.shared)), "ask": ask})

    @staticmethod
    def of(records: RecordDict) -> Ask:
        """Return the question in Flower records."""
        plain: dict[str, Any] = dict(records.config_records["ask"])
        if plain.pop("format") != FORMAT:
            raise FlocoError("the server has another version of floco: install the same version at all sites")
        if not re.fullmatch(r"[0-9a-z]{1,64}", plain["run"]):  # it becomes a folder name
            raise FlocoError(f"the run's id must be 1 to 64 lower-case letters and digits, got {plain['run'][:80]!r}")
        shared, own = tensors_of(records), safetensors.torch.load(plain.pop("own"))
        return Ask(**plain, shared=shared, own=own)


def tensors_of(records: RecordDict) -> Tensors:
    """Return the tensors of a message's ArrayRecord."""
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in records.array_records["arrays"].items()}


@dataclass(frozen=True)
class Answer:
    """A site's answer: the results of its training and its evaluation, as far as they were asked for."""

    client: str
    trained: Result | None = None
    evaluated: Result | None = None
    notes: tuple[str, ...] = field(default=())
    """Events that the server should log, e.g. that the client's own state was lost."""

    @staticmethod
    def failed(client: str, why: str) -> Answer:
        """Return the answer of a client that failed in everything."""
        nothing = Result(client, failure=short(why))
        return Answer(client, nothing, nothing)

    def records(self, *, share_labels: bool) -> RecordDict:
        """Return the answer as Flower records; without `share_labels`, counts by label are summed first."""
        plain: dict[str, Any] = {"format": FORMAT, "client": self.client, "notes": list(self.notes)}
        records = RecordDict()
        for name, result in (("trained", self.trained), ("evaluated", self.evaluated)):
            if result is not None:
                failed, reason = result.failure is not None, result.failure or ""
                plain |= {f"{name}.steps": result.steps, f"{name}.failure": reason, f"{name}.failed": failed}
                plain |= {"taken": result.taken} if result.taken else {}
        update = self.trained.update if self.trained is not None else None
        if update is not None:
            plain |= {"weight": update.weight, "purpose": update.purpose, "extra": to_safetensors(update.extra)}
            records["arrays"] = ArrayRecord(dict(update.shared))
        scores = self.evaluated.scores if self.evaluated is not None else None
        for name in _MODELS if scores is not None else ():
            if (score := getattr(scores, name)) is not None:
                records[name] = MetricRecord(_metrics(score if share_labels else score.coarse()))
        records["answer"] = ConfigRecord(plain)
        return records

    @staticmethod
    def of(records: RecordDict, task: Task) -> Answer:
        """Return the answer in Flower records; the task knows what its scores look like."""
        plain: dict[str, Any] = dict(records.config_records["answer"])
        if plain["format"] != FORMAT:
            raise FlocoError("the site has another version of floco")
        client, results = str(plain["client"]), {}
        for name in ("trained", "evaluated"):
            if f"{name}.steps" in plain:
                failure = short(str(plain[f"{name}.failure"])) if plain[f"{name}.failed"] else None
                steps = int(plain[f"{name}.steps"]) if failure is None else 0
                results[name] = Result(client, steps=steps, failure=failure)
        if "weight" in plain and results["trained"].failure is None:
            shared, extra = tensors_of(records), safetensors.torch.load(plain["extra"])
            update = Update(client, plain["purpose"], int(plain["weight"]), shared, extra)
            results["trained"] = Result(client, update, steps=results["trained"].steps)
        if "evaluated" in results and results["evaluated"].failure is None:
            metrics = records.metric_records
            scores = Scores(*(_score(task, metrics[m]) if m in metrics else None for m in _MODELS))
            taken = str(plain.get("taken", ""))
            results["evaluated"] = Result(client, scores=scores, taken=taken, steps=results["evaluated"].steps)
        notes = tuple(short(str(n)) for n in plain["notes"][:_NOTES])
        return Answer(client, results.get("trained"), results.get("evaluated"), notes)


def _metrics(score: Score) -> dict[str, Any]:
    """Return the numbers of a score; what is None or an empty tuple is left out, and a list has one type."""
    values = {f.name: getattr(score, f.name) for f in fields(score)}  # type: ignore[arg-type]
    return {n: _list(v) if isinstance(v, tuple) else v for n, v in values.items() if v not in (None, ())}


def _list(values: tuple[float, ...]) -> list[float]:
    return [float(v) for v in values] if any(isinstance(v, float) for v in values) else list(values)


def _score(task: Task, metrics: Mapping[str, Any]) -> Score:
    found: dict[str, Any] = {}
    for f in fields(task.score_type):  # type: ignore[arg-type]
        value = metrics.get(f.name)
        if value is not None:
            found[f.name] = tuple(value) if isinstance(value, list) else value
        elif f.default is MISSING and "tuple" in str(f.type):
            found[f.name] = ()
    return task.score_type(**found)


def short(text: str) -> str:
    """Return a site's text as one line of at most 500 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 500 else f"{line[:500]} ..."
