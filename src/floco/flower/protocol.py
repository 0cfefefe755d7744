"""What travels over Flower: a server's question to a site, and the site's answer, as Flower's records and back.

The tensors that the method shares are the message's one ArrayRecord, so that Flower's own mods find them; what is one client's own
goes as bytes beside them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from floco.client.round import Scores
from floco.core.errors import FlocoError
from floco.core.metrics import Score
from floco.core.values import Message, Task, Tensors, Update
from floco.engines.jobs import Result
from floco.storage.files import to_safetensors

FORMAT = 2
LOG = logging.getLogger("flwr")  # Flower's own: what is said at a site and in a run stands among what Flower says
_MODELS = ("global_", "personal")
_NOTES = 8


@dataclass(frozen=True)
class Ask:
    """What the server asks of one site: to evaluate the model it is sent, to train or to probe on it, or both."""

    run: str
    """The run's own id: a site keeps the runs apart."""
    round: int
    """Of the state that is sent."""
    task: Task
    """`train` or `probe`; `evaluate`: neither."""
    evaluate: bool
    shared: Tensors
    own: Tensors
    accepted: int
    """The last round in which this client's update was averaged: its memory is that of this round."""
    config: str
    """The run's configuration, as JSON."""
    model: str
    """Fingerprint of the network with its initial values."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def message(self, task: Task) -> Message:
        """Return the message that a client would have received in one process."""
        return Message(self.round + (task != "evaluate"), task, self.shared, self.own)

    def records(self) -> RecordDict:
        """Return the question as Flower's records."""
        plain: dict[str, Any] = {n: getattr(self, n) for n in ("run", "round", "task", "evaluate", "accepted", "config", "model")}
        floats = {n: list(getattr(self, n)) for n in ("mean", "std") if getattr(self, n)}
        return RecordDict({"arrays": ArrayRecord(dict(self.shared)), "ask": ConfigRecord({"format": FORMAT, **plain, **floats, "own": to_safetensors(self.own)})})

    @staticmethod
    def of(records: RecordDict) -> Ask:
        """Return the question that Flower's records hold."""
        plain: dict[str, Any] = dict(records.config_records["ask"])
        if plain.pop("format") != FORMAT:
            raise FlocoError("the server speaks another version of floco: install the same version at all sites")
        if not re.fullmatch(r"[0-9a-z]{1,64}", plain["run"]):
            raise FlocoError(f"the run's id is no plain word, but {plain['run'][:80]!r}")  # it names a folder here
        shared, own = tensors_of(records), safetensors.torch.load(plain.pop("own"))
        mean, std = (tuple(plain.pop(n, ())) for n in ("mean", "std"))
        return Ask(**plain, mean=mean, std=std, shared=shared, own=own)


def tensors_of(records: RecordDict) -> Tensors:
    """Return the tensors of a message's ArrayRecord."""
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in records.array_records["arrays"].items()}


@dataclass(frozen=True)
class Answer:
    """What a site answers: the results of its training and of its evaluation, each if it was asked for."""

    client: str
    trained: Result | None = None
    evaluated: Result | None = None
    notes: tuple[str, ...] = field(default=())
    """What the server should know, e.g. that the client's own state was lost."""

    @staticmethod
    def failed(client: str, why: str) -> Answer:
        """Return the answer of a client of which nothing can be used."""
        nothing = Result(client, failure=short(why))
        return Answer(client, nothing, nothing)

    def records(self, *, share_labels: bool) -> RecordDict:
        """Return the answer as Flower's records; without `share_labels`, counts by label are summed up before they leave."""
        plain: dict[str, Any] = {"format": FORMAT, "client": self.client, "notes": list(self.notes)}
        records = RecordDict()
        for name, result in (("trained", self.trained), ("evaluated", self.evaluated)):
            if result is not None:
                plain |= {f"{name}.steps": result.steps, f"{name}.failure": result.failure or "", f"{name}.failed": result.failure is not None}
        update = self.trained.update if self.trained is not None else None
        if update is not None:
            plain |= {"weight": update.weight, "task": update.task, "extra": to_safetensors(update.extra)}
            records["arrays"] = ArrayRecord(dict(update.shared))
        scores = self.evaluated.scores if self.evaluated is not None else None
        for name in _MODELS if scores is not None else ():
            if (score := getattr(scores, name)) is not None:
                records[name] = MetricRecord(_metrics(score if share_labels else summed_up(score)))
        records["answer"] = ConfigRecord(plain)
        return records

    @staticmethod
    def of(records: RecordDict) -> Answer:
        """Return the answer that Flower's records hold."""
        plain: dict[str, Any] = dict(records.config_records["answer"])
        if plain["format"] != FORMAT:
            raise FlocoError("the site has another version of floco")
        client, results = str(plain["client"]), {}
        for name in ("trained", "evaluated"):
            if f"{name}.steps" in plain:
                failure = short(str(plain[f"{name}.failure"])) if plain[f"{name}.failed"] else None
                results[name] = Result(client, steps=int(plain[f"{name}.steps"]) if failure is None else 0, failure=failure)
        if "weight" in plain and results["trained"].failure is None:
            update = Update(client, plain["task"], int(plain["weight"]), tensors_of(records), safetensors.torch.load(plain["extra"]))
            results["trained"] = Result(client, update, steps=results["trained"].steps)
        if "evaluated" in results and results["evaluated"].failure is None:
            scores = Scores(*(_score(records.metric_records[m]) if m in records.metric_records else None for m in _MODELS))
            results["evaluated"] = Result(client, scores=scores, steps=results["evaluated"].steps)
        return Answer(client, results.get("trained"), results.get("evaluated"), tuple(short(str(n)) for n in plain["notes"][:_NOTES]))


def summed_up(score: Score) -> Score:
    """Return a score that says nothing of single labels: the balanced accuracy is told as a number."""
    return Score((score.n,), (sum(score.right),), score.losses, score.squares, score.gaps, score.balanced_accuracy)


def _metrics(score: Score) -> dict[str, Any]:
    told = {} if score.balanced is None else {"balanced": score.balanced}
    return {"counts": list(score.counts), "right": list(score.right), "losses": score.losses, "squares": score.squares, "gaps": list(score.gaps), **told}


def _score(metrics: Mapping[str, Any]) -> Score:
    balanced = metrics.get("balanced")
    return Score(tuple(metrics["counts"]), tuple(metrics["right"]), metrics["losses"], metrics["squares"], tuple(metrics["gaps"]), balanced)


def short(text: str) -> str:
    """Return what a site says as one line of at most 500 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 500 else f"{line[:500]} ..."
