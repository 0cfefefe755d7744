"""Model cards: a model's inputs and outputs, how it was trained, and its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from floco.client.setup import Setup
from floco.core.metrics import METRICS, Score
from floco.core.settings import plain
from floco.data.federation import Federation
from floco.data.schema import Form

_WORST = 3  # classes listed as least recognised

Card = dict[str, Any]


def card(setup: Setup, title: str, score: Score | None, versions: Mapping[str, Any], **more: Any) -> Card:
    """Return the card of one model, without the facts about its file (name, format, checksum).

    Args:
        setup: the fixed part of its run.
        title: what the model is, in words.
        score: its metrics on data that it was not trained on.
        versions: versions of the packages, and the machine, that write the file.
        more: further facts, e.g. `client`, `mixture`.
    """
    form, algorithm, network = setup.federation.form, setup.algorithm, setup.network
    scaling = {"divided_by": form.divisor, "mean": list(form.mean), "std": list(form.normalization.std)}
    parameters = sum(t.numel() for t in network.parameters.values())
    return {
        "title": title,
        **more,
        "input": {"shape": list(form.shape), "dtype": form.dtype, "channels": form.channels, **scaling},
        "labels": {"names": list(form.names), "values": list(form.values)},
        "network": {"layers": str(network.module), "parameters": parameters},
        "algorithm": {"name": algorithm.name, **plain(algorithm)},
        "training": plain(setup.training),
        "seed": setup.seed,
        "metrics": None if score is None else metrics(score, form),
        "versions": dict(versions),
    }


def metrics(score: Score, form: Form) -> dict[str, Any]:
    """Return the metrics of a model, and its recall for each class in the test data, the worst first."""
    rows = zip(form.names, score.counts, score.right, strict=True)
    classes: list[dict[str, Any]] = [{"class": n, "samples": c, "recall": r / c} for n, c, r in rows if c]
    classes.sort(key=lambda row: row["recall"])
    return {"samples": score.n, **{m: getattr(score, m) for m in METRICS}, "classes": classes}


def data_facts(federation: Federation, train: torch.Tensor, source: str) -> dict[str, Any]:
    """Return the source of a model's training data, and its number of samples, in all and for each label."""
    labels = dict(zip(federation.names, federation.label_counts(train), strict=True))
    return {"source": source, "samples": len(train), "labels": labels}


def markdown(facts: Card) -> str:
    """Return a card as Markdown."""
    names, data, made = facts["labels"]["names"], facts["data"], facts["training"]
    counts = ", ".join(f"{n} {c}" for n, c in data["labels"].items() if c)
    lines = [f"# {facts['title']}", "", f"File `{facts['file']}` ({facts['format']}), SHA-256 `{facts['sha256']}`.", ""]
    lines += ["## What it takes and gives", "", *_input_lines(facts)]
    lines += [f"- Output: {len(names)} classes, in this order: {', '.join(names)}."]
    lines += ["", "## How good it is", "", *_metric_lines(facts), "", "## How it was made", ""]
    lines += [f"- Data: {data['source']}; {data['samples']} training samples ({counts})."]
    rounds = f"round {facts['round']} of {made['rounds']}, seed {facts['seed']}"
    lines += [f"- Method: {_settings(facts['algorithm'])}; {rounds}.", f"- Training: {_settings(made)}."]
    lines += [f"- The client took part in {facts['participated']} rounds."] if "participated" in facts else []
    where = facts.get("at") or facts.get("placed_by")
    lines += [f"- Point on the simplex ({where}): {', '.join(f'{a:.4g}' for a in facts['mixture'])}."] if where else []
    lines += [f"- Versions: {', '.join(f'{k} {v}' for k, v in facts['versions'].items() if v)}."]
    lines += ["", f"{facts['network']['parameters']:,} parameters:", "", "```", facts["network"]["layers"], "```", ""]
    return "\n".join(lines)


def _input_lines(facts: Card) -> list[str]:
    given = facts["input"]
    shape = ", ".join(map(str, given["shape"]))
    lines = [f"- Input: {given['dtype']} samples of shape (N, {shape}), as in the data it was trained on."]
    if facts["format"] != "safetensors":
        text = "- The preprocessing is part of the graph. It returns logits and probabilities, (N, C) each."
        return [*lines, text]
    moves = {"last": ["channels moved to the front"], "none": ["one channel added in front"]}
    steps = [*moves.get(given["channels"], []), *(["divided by 255"] if given["divided_by"] == 255 else [])]
    scaled = f"mean {_few(given['mean'])} subtracted and divided by {_few(given['std'])}, per channel"
    steps += [scaled] if given["mean"] else []
    exact = (
        " Subtract in float64: float32 is not precise enough for these numbers." if given["dtype"] == "float64" else ""
    )
    all_digits = "All digits are in the JSON file beside this card."
    lines += [f"- Before the network: {', '.join(steps) or 'nothing'}.{exact} {all_digits}"]
    return [*lines, "- The file is the state dict of the network below; nothing of floco is needed to use it."]


def _metric_lines(facts: Card) -> list[str]:
    score = facts["metrics"]
    if score is None:
        where = "on its own samples, left out in turn"
        chosen = (r for r in facts["left_out"] if r["chosen"])
        return [f"{r['rule']}: accuracy {100 * r['accuracy']:.1f} %, loss {r['loss']:.3f} {where}." for r in chosen]
    worst = [f"{c['class']} {100 * c['recall']:.0f} % of {c['samples']}" for c in score["classes"][:_WORST]]
    accuracies = f"accuracy {100 * score['accuracy']:.1f} %, balanced accuracy {100 * score['balanced_accuracy']:.1f} %"
    others = f"loss {score['loss']:.3f}, calibration error {score['ece']:.3f}, Brier score {score['brier']:.3f}"
    of_all = f"On {score['samples']} samples ({facts['tested_on']}): {accuracies}, {others}."
    return [of_all, "", f"Least recognised classes: {'; '.join(worst)}."]


def _few(values: list[float]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values[:4]) + (", ..." if len(values) > 4 else "") + ")"


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items() if v is not None)
