"""What travels over Flower: a server's question to a site, and the site's answer, as Flower's records and back.

The tensors that the method shares are the message's one ArrayRecord, so that Flower's own mods find them; what is one client's own
goes as bytes beside them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import safetensors.torch
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from floco.client import Scores
from floco.errors import FlocoError
from floco.files import to_safetensors
from floco.jobs import Result
from floco.metrics import BINS, Score
from floco.values import Message, Task, Tensors, Update

FORMAT = 1
LOG = logging.getLogger("flwr")  # Flower's own: what is said at a site and in a run stands among what Flower says
_MODELS = ("global_", "personal")
_GROWTH = 1e3  # how much larger than what was sent, or than 1, a parameter may be
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
        nothing = Result(client, failure=why)
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
                results[name] = Result(client, steps=int(plain[f"{name}.steps"]), failure=failure)
        if "weight" in plain:
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


@dataclass(frozen=True)
class Form:
    """What an honest answer of a client looks like."""

    update: Update | None
    """One with the same tensors, as to names, shapes and types; None if it is not asked to train or probe."""
    parameters: frozenset[str]
    """Those of them that are trained."""
    models: tuple[bool, bool]
    """Whether the method has a global and a personal model."""
    n_test: int
    classes: int


def checked(answer: Answer, ask: Ask, form: Form) -> Answer:
    """Return an answer in which what cannot be used, its training or its evaluation, is a failure that says why."""
    trained, evaluated = answer.trained, answer.evaluated
    if trained is not None and trained.update is not None and (why := _update_problem(trained.update, ask, form)):
        trained = Result(answer.client, failure=why)
    if evaluated is not None and evaluated.scores is not None:
        fits = all(has == (s is not None) and (s is None or _plausible(s, form.n_test, form.classes)) for has, s in zip(form.models, evaluated.scores, strict=True))
        evaluated = evaluated if fits else Result(answer.client, failure=f"its evaluation is not one of {form.n_test} samples and {form.classes} classes, or not finite")
    if any(r is not None and not 0 <= r.steps < 2**40 for r in (trained, evaluated)):
        trained = evaluated = Result(answer.client, failure="it tells an impossible number of steps")
    return replace(answer, trained=trained, evaluated=evaluated)


def _update_problem(update: Update, ask: Ask, form: Form) -> str | None:
    wanted = form.update
    if wanted is None or (update.task, update.weight) != (wanted.task, wanted.weight):
        return f"it answered {update.task} with weight {update.weight}, and was asked to {ask.task}{f' and has {wanted.weight} samples' if wanted else ''}"
    for sent, like in ((update.shared, wanted.shared), (update.extra, wanted.extra)):
        if missing := sorted(like.keys() - sent.keys()):
            return f"its update lacks {', '.join(missing)}"
        if why := next((w for n, t in sent.items() if (w := _tensor_problem(n, t, like.get(n)))), None):
            return why
    for name in form.parameters & update.shared.keys():  # what is too large stays in the average, and spoils every later round
        before, now = (float(t[name].abs().max()) if t[name].numel() else 0.0 for t in (ask.shared, update.shared))
        if now > _GROWTH * max(1.0, before):
            return f"it sent a {name!r} of up to {now:.3g}, and had got one of up to {before:.3g}"
    return None


def _tensor_problem(name: str, tensor: torch.Tensor, like: torch.Tensor | None) -> str | None:
    if like is None or like.shape != tensor.shape or like.dtype != tensor.dtype:
        was = "nothing of that name" if like is None else f"{tuple(like.shape)} {like.dtype}"
        return f"it sent {name!r} as {tuple(tensor.shape)} {tensor.dtype}, and should have sent {was}"
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        return f"it sent a {name!r} that is not finite"
    return None


def _plausible(score: Score, n_test: int, classes: int) -> bool:
    """Return whether a score can be one of that many samples."""
    n, counts, right = n_test * (1 + 1e-6), score.counts, score.right
    counted = len(counts) == len(right) and len(counts) in (1, classes) and all(type(v) is int for v in (*counts, *right))
    if not counted or score.n != n_test or not all(0 <= r <= c for r, c in zip(right, counts, strict=True)):
        return False
    balanced = score.balanced is None if len(counts) == classes else score.balanced is not None and 0 <= score.balanced <= 1
    return balanced and len(score.gaps) == BINS and all(abs(g) <= n for g in score.gaps) and 0 <= score.squares <= 2 * n and 0 <= score.losses < 1e300


def short(text: str) -> str:
    """Return what a site says as one line of at most 500 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 500 else f"{line[:500]} ..."
