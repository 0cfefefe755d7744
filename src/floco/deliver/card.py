"""Model cards: a model's inputs and outputs, how it was trained, and its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from floco.client.setup import Setup
from floco.core.inputs import columns
from floco.core.metrics import Metrics, Score
from floco.core.settings import plain
from floco.data.federation import Federation
from floco.data.schema import Form, Schema

_WORST = 3  # classes listed as least recognised

Card = dict[str, Any]


def card(
    setup: Setup, title: str, score: Score | None, versions: Mapping[str, Any], schema: Schema, **more: Any
) -> Card:
    """Return the card of one model, without the facts about its file (name, format, checksum).

    Args:
        setup: the fixed part of its run.
        title: what the model is, in words.
        score: its metrics on data that it was not trained on.
        versions: versions of the packages, and the machine, that write the file.
        schema: of the rows that the model takes.
        more: further facts, e.g. `client`, `mixture`.
    """
    algorithm, network, task = setup.algorithm, setup.network, setup.task
    inputs = {name: _input(form) for name, form in columns(schema.forms).items()}
    parameters = sum(t.numel() for t in network.parameters.values())
    return {
        "title": title,
        **more,
        **({"input": inputs[""]} if isinstance(schema.forms, Form) else {"inputs": inputs}),
        "task": {"name": task.name, "metrics": task.metrics.plain(), **plain(task)},
        "outputs": list(task.graph_names),
        "labels": schema.labels._asdict(),
        "network": {"layers": network.text, "parameters": parameters},
        "algorithm": {"name": algorithm.name, **plain(algorithm)},
        "training": plain(setup.training),
        "seed": setup.seed,
        "metrics": None if score is None else metrics(setup, score),
        "versions": dict(versions),
    }


def _input(form: Form) -> dict[str, Any]:
    named = {"columns": list(form.features)} if form.features else {}
    scaling = {"divided_by": form.divisor, "mean": list(form.mean), "std": list(form.normalization.std)}
    scaling |= {"by_client": True} if form.own else {}
    kind = {"shape": list(form.shape), "dtype": form.dtype, "channels": form.channels, "missing": form.missing}
    return {**kind, **scaling, **named}


def metrics(setup: Setup, score: Score) -> dict[str, Any]:
    """Return the metrics of a model, and for classification its recall for each class in the test data."""
    return {"samples": score.n, **setup.task.values(score), **score.details(setup.federation.names)}


def data_facts(federation: Federation, train: torch.Tensor, source: str) -> dict[str, Any]:
    """Return the source of a model's training data, and its number of samples, in all and for each label."""
    labels = dict(zip(federation.names, federation.label_counts(train), strict=False))
    return {"source": source, "samples": len(train), "labels": labels}


def markdown(facts: Card) -> str:
    """Return a card as Markdown."""
    names, data, made = facts["labels"]["names"], facts["data"], facts["training"]
    counts = ", ".join(f"{n} {c}" for n, c in data["labels"].items() if c)
    gives = f"{len(names)} classes, in this order: {', '.join(names)}" if names else f"task {facts['task']['name']}"
    lines = [f"# {facts['title']}", "", f"File `{facts['file']}` ({facts['format']}), SHA-256 `{facts['sha256']}`.", ""]
    lines += ["## What it takes and gives", "", *_input_lines(facts)]
    lines += [f"- Output: {gives}."]
    lines += ["", "## How good it is", "", *_metric_lines(facts), "", "## How it was made", ""]
    lines += [f"- Data: {data['source']}; {data['samples']} training samples{f' ({counts})' if counts else ''}."]
    rounds = f"round {facts['round']} of {made['rounds']}, seed {facts['seed']}"
    lines += [f"- Method: {_settings(facts['algorithm'])}; {rounds}.", f"- Training: {_settings(made)}."]
    lines += [f"- Changed {line}." for line in facts["changes"]]
    lines += [f"- The client took part in {facts['participated']} rounds."] if "participated" in facts else []
    lines += [f"- Of the client's candidates, this is: {facts['delivered']}."] if "delivered" in facts else []
    where = facts.get("at") or facts.get("placed_by")
    lines += [f"- Point on the simplex ({where}): {', '.join(f'{a:.4g}' for a in facts['mixture'])}."] if where else []
    lines += [f"- Versions: {', '.join(f'{k} {v}' for k, v in facts['versions'].items() if v)}."]
    lines += ["", f"{facts['network']['parameters']:,} parameters:", "", "```", facts["network"]["layers"], "```", ""]
    return "\n".join(lines)


def _input_lines(facts: Card) -> list[str]:
    given = facts.get("inputs", {"": facts.get("input")})
    lines = [_input_line(name, column) for name, column in given.items()]
    if facts["format"] in ("pt2", "onnx"):
        both = " and ".join(facts["outputs"])
        return [*lines, f"- The preprocessing is part of the graph. It returns {both}, (N, ...) each."]
    steps = [line for name, column in given.items() for line in _step_line(name, column)]
    all_digits = "All digits are in the JSON file beside this card."
    lines += [f"{' '.join(steps)} {all_digits}" if len(steps) == 1 else "\n".join([*steps, f"- {all_digits}"])]
    if facts["format"] == "safetensors":
        return [*lines, "- The file is the state dict of the network below; nothing of floco is needed to use it."]
    below = facts["backbone"]
    return [
        *lines,
        "- The folder is an adapter, for `peft.PeftModel.from_pretrained(backbone, folder)`.",
        f"- Its backbone has {below['parameters']:,} parameters, of SHA-256 `{below['sha256']}` "
        "(`floco.deliver.adapter.backbone` has the rule). Others make it another model.",
    ]


def _input_line(name: str, given: Mapping[str, Any]) -> str:
    shape = ", ".join(["N", *map(str, given["shape"])])
    called = f"Input `{name}`" if name else "Input"
    names = given.get("columns", [])
    more = f": {', '.join(names)}" if names else ""
    more += "; NaN stands for a missing value, in whose place the mean is used" if given["missing"] == "mean" else ""
    return f"- {called}: {given['dtype']} samples of shape ({shape}), as in the data it was trained on{more}."


def _step_line(name: str, given: Mapping[str, Any]) -> list[str]:
    moves = {"last": ["channels moved to the front"], "none": ["one channel added in front"]}
    steps = [*moves.get(given["channels"], []), *(["divided by 255"] if given["divided_by"] == 255 else [])]
    scaled = f"mean {_few(given['mean'])} subtracted and divided by {_few(given['std'])}, per channel"
    steps += [scaled] if given["mean"] else []
    steps += ["mean and deviation of the client's own training part, per channel"] if "by_client" in given else []
    steps += ["then missing values (NaN) replaced by 0, which is the mean"] if given["missing"] == "mean" else []
    large = given["dtype"] == "float64"
    exact = " Subtract in float64: float32 is not precise enough for these numbers." if large else ""
    return [f"- Before the network{f', `{name}`' if name else ''}: {', '.join(steps) or 'nothing'}.{exact}"]


def _metric_lines(facts: Card) -> list[str]:
    score, known = facts["metrics"], Metrics.of(facts["task"]["metrics"])
    if score is None and "left_out" not in facts:
        return [f"Not evaluated: there are no samples in {facts['tested_on']}."]
    if score is None:
        where = "on its own samples, left out in turn"
        chosen = (r for r in facts["left_out"] if r["chosen"])
        made = [f"{r['rule']}: {_number(known, known.primary, r)}, loss {r['loss']:.3f} {where}." for r in chosen]
        return [*made, "", f"**Not shown to be better than a guess**: {facts['doubt']}."] if facts["doubt"] else made
    numbers = ", ".join(_number(known, name, score) for name in known if score[name] is not None)
    lines = [f"On {score['samples']} samples ({facts['tested_on']}): {numbers}."]
    worst = [f"{c['class']} {100 * c['recall']:.0f} % of {c['samples']}" for c in score.get("classes", [])[:_WORST]]
    return [*lines, "", f"Least recognised classes: {'; '.join(worst)}."] if worst else lines


_SHOWN = {"ece": "calibration error", "brier": "Brier score"}


def _number(metrics: Metrics, name: str, values: Mapping[str, Any]) -> str:
    return f"{_SHOWN.get(name, name.replace('_', ' '))} {metrics.text(name, values[name])}"


def _few(values: list[float]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values[:4]) + (", ..." if len(values) > 4 else "") + ")"


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items() if v is not None)
