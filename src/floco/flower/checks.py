"""Validation of a site's answers: reject those that no honest client could have sent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from floco.client.round import Scores
from floco.core.metrics import Score
from floco.core.values import Update
from floco.engines.jobs import Result
from floco.flower.protocol import Answer, Ask, short

_GROWTH = 1e3  # limit on the largest entry of a parameter, as a multiple of max(1, the largest entry sent to the site)
_STATISTICS = 1e6  # the same for floating-point buffers: a variance grows with the square of its input
_ORDINARY = 10.0  # parameters up to this size do not inflate statistics and gradients
_COUNTED = 10**6  # largest increase of an integer buffer in one round, unless the client takes more steps
_LOSS = 1e6  # cap on a mean loss: nats, or for regression 1000 standard deviations squared


@dataclass(frozen=True)
class Expected:
    """What an honest answer of a client looks like."""

    update: Update | None
    """An update with the expected tensor names, shapes and dtypes; None if the site need not train or probe."""
    parameters: frozenset[str]
    """Names of the network's parameters."""
    buffers: frozenset[str]
    """Names of the network's buffers."""
    models: tuple[bool, bool]
    """Whether the method has a global and a personal model."""
    n_test: int
    outputs: int
    """Outputs of the network, for classification the number of classes."""
    steps: tuple[int, int]
    """Optimiser steps of the training and of the adaptation before evaluation."""
    places: int = 1
    """Values of a target: pixels, tokens."""
    taken: tuple[str, ...] = ("",)
    """Names of the model that it may have chosen."""


def check_answer(answer: Answer, ask: Ask, expected: Expected) -> Answer:
    """Return the answer with an invalid training or evaluation replaced by a failure that states the reason.

    Mean losses above 1e6 are capped, and a note says so.
    """
    trained, evaluated, notes = answer.trained, answer.evaluated, answer.notes
    if trained is not None and trained.update is not None:
        why = _steps_problem(trained, expected.steps[0]) or _update_problem(trained.update, ask, expected)
        trained = trained if why is None else Result(answer.client, failure=short(why))
    if evaluated is not None and (scores := evaluated.scores) is not None:
        why = _steps_problem(evaluated, expected.steps[1]) or _scores_problem(scores, expected)
        if why is None and evaluated.taken not in expected.taken:
            why = f"it has chosen {short(evaluated.taken)!r}, and can choose {', '.join(expected.taken) or 'nothing'}"
        if why is not None:
            evaluated = Result(answer.client, failure=short(why))
        elif (most := max((s.loss for s in scores if s is not None), default=0.0)) > _LOSS:
            evaluated = replace(evaluated, scores=_capped(scores))
            notes = (*notes, f"its mean loss is {most:.3g}, and is counted as {_LOSS:g}")
    return replace(answer, trained=trained, evaluated=evaluated, notes=notes)


def _steps_problem(result: Result, steps: int) -> str | None:
    return None if result.steps == steps else f"it says {result.steps} steps, and should have taken {steps}"


def _update_problem(update: Update, ask: Ask, expected: Expected) -> str | None:
    wanted = expected.update
    if wanted is None or (update.purpose, update.weight) != (wanted.purpose, wanted.weight):
        has = f" and has {wanted.weight} samples" if wanted else ""
        return f"it answered {update.purpose} with weight {update.weight}, and was asked to {ask.purpose}{has}"
    for sent, like in ((update.shared, wanted.shared), (update.extra, wanted.extra)):
        if missing := sorted(like.keys() - sent.keys()):
            return f"its update lacks {', '.join(missing)}"
        for name, now in sent.items():
            if why := _form_problem(name, now, like.get(name)) or _size_problem(name, now, ask, expected):
                return why
    return None


def _form_problem(name: str, now: torch.Tensor, like: torch.Tensor | None) -> str | None:
    if like is None or like.shape != now.shape or like.dtype != now.dtype:
        was = "nothing of that name" if like is None else f"{tuple(like.shape)} {like.dtype}"
        return f"it sent {name!r} as {tuple(now.shape)} {now.dtype}, and should have sent {was}"
    return None if bool(torch.isfinite(now).all()) else f"it sent a {name!r} that is not finite"


def _size_problem(name: str, now: torch.Tensor, ask: Ask, expected: Expected) -> str | None:
    """Return why a tensor's values are out of range, given the tensor that was sent to the site.

    An oversized value would stay in the average and spoil every later round.
    """
    before = ask.shared.get(name, torch.zeros_like(now))
    if not now.numel() or now.dtype == torch.bool:
        return None
    if not (now.is_floating_point() or now.is_complex()):
        return _counter_problem(name, now.long(), before.long(), max(_COUNTED, expected.steps[0]))
    reach, had = _largest(now), _largest(before)
    limit = (_STATISTICS if name in expected.buffers else _GROWTH) * max(1.0, had)
    if reach > limit and (name in expected.parameters or reach > limit * _stretch(ask, expected)):
        return f"it sent a {name!r} of up to {reach:.3g}, and had got one of up to {had:.3g}"
    if name in expected.buffers and name.rpartition(".")[2] == "running_var" and float(now.min()) < 0:
        had_got = f"had got one down to {float(before.min()):.3g}"
        return f"it sent a {name!r} down to {float(now.min()):.3g}, and {had_got}: it is never negative"
    return None


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _stretch(ask: Ask, expected: Expected) -> float:
    """Return the factor by which large parameters sent to the site widen the limits on statistics and gradients.

    Another site may have spoiled the parameters within its limits; refusing the honest answers would end the run.
    """
    return max([1.0, *(_largest(t) / _ORDINARY for n, t in ask.shared.items() if n in expected.parameters)]) ** 2


def _counter_problem(name: str, now: torch.Tensor, before: torch.Tensor, most: int) -> str | None:
    grown = now - before
    wrong = ((now < before) | (grown < 0) | (grown > most)).flatten()  # a difference that overflows int64 is negative
    if not bool(wrong.any()):
        return None
    i = int(wrong.nonzero()[0])
    return f"it sent a {name!r} of {int(now.flatten()[i])}, and had got one of {int(before.flatten()[i])}"


def _scores_problem(scores: Scores, expected: Expected) -> str | None:
    for has, score in zip(expected.models, scores, strict=True):
        n, outputs = expected.n_test, expected.outputs
        fits = score is None or (score.plausible(n, outputs) and score.places <= n * expected.places)
        if has != (score is not None) or not fits:
            return f"its evaluation is not one of {n} samples and {outputs} outputs, or not finite"
    return None


def _capped(scores: Scores) -> Scores:
    """Return the scores with mean losses of at most `_LOSS`.

    Large losses are capped rather than refused: honest sites report them for a model that another site has spoiled,
    and a round without any valid evaluation ends the run.
    """
    capped = (s if s is None else _with_losses(s, min(s.losses, _LOSS * s.places)) for s in scores)
    return Scores(*capped)


def _with_losses(score: Score, losses: float) -> Score:
    return replace(score, losses=losses)  # type: ignore[type-var]  # scores are dataclasses
