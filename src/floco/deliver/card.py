"""The card that goes with a model: what it takes and gives, how it was made, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from floco.client.setup import Setup
from floco.core.metrics import METRICS, Score
from floco.core.settings import plain
from floco.data.federation import Federation
from floco.data.schema import Form

_WORST = 3  # classes named as the worst

Card = dict[str, Any]


def card(setup: Setup, title: str, score: Score | None, versions: Mapping[str, Any], **more: Any) -> Card:
    """Return the card of one model, without what only its file has (name, format, checksum).

    Args:
        setup: what was fixed in its run.
        title: what the model is, in words.
        score: its metrics on data that it was not trained on.
        versions: of the packages and the machine that wrote it.
        more: further facts, e.g. `client`, `mixture`.
    """
    form, algorithm, training = setup.federation.form, setup.algorithm, setup.training
    return {
        "title": title,
        **more,
        "input": {
            "shape": list(form.shape),
            "dtype": form.dtype,
            "channels": form.channels,
            "divided_by": form.divisor,
            "mean": list(form.mean),
            "std": list(form.normalization.std),
        },
        "labels": {"names": list(form.names), "values": list(form.values)},
        "network": {"layers": str(setup.network.module), "parameters": sum(t.numel() for t in setup.network.parameters.values())},
        "algorithm": {"name": algorithm.name, **plain(algorithm)},
        "training": plain(training),
        "seed": setup.seed,
        "metrics": None if score is None else metrics(score, form),
        "versions": dict(versions),
    }


def metrics(score: Score, form: Form) -> dict[str, Any]:
    """Return the metrics of a model with its recall for each class that was tested, the worst first."""
    classes = [{"class": n, "samples": c, "recall": r / c} for n, c, r in zip(form.names, score.counts, score.right, strict=True) if c]
    return {"samples": score.n, **{m: getattr(score, m) for m in METRICS}, "classes": sorted(classes, key=lambda row: row["recall"])}


def data_facts(federation: Federation, train: torch.Tensor, source: str) -> dict[str, Any]:
    """Return what a model was trained on: where from, and how many samples of each label."""
    return {"source": source, "samples": len(train), "labels": dict(zip(federation.names, federation.label_counts(train), strict=True))}


def markdown(facts: Card) -> str:
    """Return a card for people."""
    given, labels, judged = facts["input"], facts["labels"], facts["metrics"]
    lines = [f"# {facts['title']}", "", f"File `{facts['file']}` ({facts['format']}), SHA-256 `{facts['sha256']}`.", ""]
    lines += ["## What it takes and gives", ""]
    lines += [f"- Input: {given['dtype']} samples of shape (N, {', '.join(map(str, given['shape']))}), as in the data it was trained on."]
    if facts["format"] == "safetensors":
        steps = ["channels moved to the front"] if given["channels"] == "last" else ["one channel added in front"] if given["channels"] == "none" else []
        steps += ["divided by 255"] if given["divided_by"] == 255 else []
        steps += [f"mean {_few(given['mean'])} subtracted and divided by {_few(given['std'])}, per channel"] if given["mean"] else []
        exact = " Subtract in float64: float32 cannot tell these numbers apart." if given["dtype"] == "float64" else ""
        lines += [f"- Before the network: {', '.join(steps) or 'nothing'}.{exact} All digits are in the JSON file beside this card."]
        lines += ["- The file is the state dict of the network below; nothing of floco is needed to use it."]
    else:
        lines += ["- The preprocessing is part of the graph. It returns logits and probabilities, (N, C) each."]
    lines += [f"- Output: {len(labels['names'])} classes, in this order: {', '.join(labels['names'])}.", "", "## How good it is", ""]
    lines += _metric_lines(judged, facts)
    lines += ["", "## How it was made", ""]
    data = facts["data"]
    lines += [f"- Data: {data['source']}; {data['samples']} training samples ({', '.join(f'{n} {c}' for n, c in data['labels'].items() if c)})."]
    lines += [
        f"- Method: {_settings(facts['algorithm'])}; round {facts['round']} of {facts['training']['rounds']}, seed {facts['seed']}.",
        f"- Training: {_settings(facts['training'])}.",
    ]
    lines += [f"- The client took part in {facts['participated']} rounds."] if "participated" in facts else []
    where = facts.get("at") or facts.get("placed_by")
    lines += [f"- Point on the simplex ({where}): {', '.join(f'{a:.4g}' for a in facts['mixture'])}."] if where else []
    lines += [f"- Versions: {', '.join(f'{k} {v}' for k, v in facts['versions'].items() if v)}.", "", f"{facts['network']['parameters']:,} parameters:", ""]
    return "\n".join([*lines, "```", facts["network"]["layers"], "```", ""])


def _metric_lines(judged: dict[str, Any] | None, facts: Card) -> list[str]:
    if judged is None:
        return [f"{r['rule']}: accuracy {100 * r['accuracy']:.1f} %, loss {r['loss']:.3f} on its own samples, left out in turn." for r in facts["left_out"] if r["chosen"]]
    where = facts["tested_on"]
    worst = [f"{c['class']} {100 * c['recall']:.0f} % of {c['samples']}" for c in judged["classes"][:_WORST]]
    return [
        f"On {judged['samples']} samples ({where}): accuracy {100 * judged['accuracy']:.1f} %, balanced accuracy {100 * judged['balanced_accuracy']:.1f} %, "
        f"loss {judged['loss']:.3f}, calibration error {judged['ece']:.3f}, Brier score {judged['brier']:.3f}.",
        "",
        f"Least recognised classes: {'; '.join(worst)}.",
    ]


def _few(values: list[float]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values[:4]) + (", ..." if len(values) > 4 else "") + ")"


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items() if v is not None)
