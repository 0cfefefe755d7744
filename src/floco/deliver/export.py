"""Export of models as files with cards, to be used without floco."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from floco.client.predict import judge
from floco.client.setup import Setup
from floco.core.errors import FlocoError, warn
from floco.core.inputs import rows
from floco.core.random import one_thread
from floco.core.values import Combined, Tensors
from floco.deliver.adapter import FILE, SETTINGS, backbone
from floco.deliver.card import Card, card, data_facts, markdown
from floco.deliver.graph import FORMATS, Writer, make_writer
from floco.deliver.personal import deliver, list_models
from floco.deliver.placement import Placement
from floco.server.progress import Progress
from floco.storage.files import checksum, file_name, replace_file, to_json

GLOBAL = "global"
Measured = Callable[[str | None], dict[str, Any] | None]
"""Function from a client, or None for the global model, to the metrics of an evaluation; None: there was none."""


def choose_file(path: Path, name: str, kind: str | None) -> tuple[Path, str]:
    """Return the file for a model called `name`, and its format; raises if the file exists.

    Args:
        path: the file, if it ends in a format's name; otherwise a folder, whose files are named after their models.
        name: the model's name.
        kind: one of `FORMATS` (None: the ending of `path`, or safetensors). With peft, each model has a folder.
    """
    ending = path.suffix.removeprefix(".")
    if kind not in (None, *FORMATS):
        raise FlocoError(f"--format must be one of {', '.join(FORMATS)}, got {kind!r}")
    if ending.lower() in FORMATS and ending not in (kind, None if kind else ending.lower()):
        raise FlocoError(
            f"-o {path} ends in .{ending}, and --format is {kind or ending.lower()}: "
            "leave one of them out, and write the ending in small letters"
        )
    kind = kind or (ending if ending in FORMATS else FORMATS[0])
    if kind == "peft":
        return _new(path / file_name(name) / FILE), kind
    return _new(path if ending == kind else path / f"{file_name(name)}.{kind}"), kind


def _new(file: Path) -> Path:
    if there := next((f for f in (file, *_cards(file)) if f.exists()), None):
        raise FlocoError(f"{there} exists already: remove it, or choose another place with -o")
    return file


def export(
    setup: Setup,
    progress: Progress,
    clients: Sequence[str | None] | None,
    path: Path,
    *,
    source: str,
    versions: Mapping[str, Any],
    changes: Sequence[str] = (),
    kind: str | None = None,
    at: str = "center",
    measured: Measured | None = None,
) -> list[Path]:
    """Write models of clients, each with a card as JSON and Markdown, and return the model files.

    Args:
        setup: the fixed part of the run.
        progress: the state of the run.
        clients: ids, and None among them for the global model; None: all models.
        path: see `choose_file`.
        source: source of the data, for the cards.
        versions: versions of packages and machine, for the cards.
        changes: what was changed in the run, in words, for the cards.
        kind: one of `FORMATS` (None: the ending of `path`, or safetensors).
        at: see `personal.deliver`.
        measured: a model's metrics in the run's last evaluation, for the cards if the samples are not here.

    Raises:
        FlocoError: an unknown client, a missing model, an existing file, or a format that does not support the network.
            No file is written then.
    """
    clients = _chosen(setup, progress, clients)
    targets = [choose_file(path, GLOBAL if c is None else c, kind) for c in clients]
    if len(clients) > 1 and len({file for file, _ in targets}) < len(clients):
        raise FlocoError(f"-o {path} is one file, and there are {len(clients)} models: give a folder")
    setup, measured = _with_test_parts(setup, measured)
    done: list[Path] = []
    write: Writer | None = None
    try:
        for client, (file, made) in zip(clients, targets, strict=True):
            with one_thread():
                model, mixture, taken = deliver(setup, progress, client, at=at)
                tensors = _one_network(setup, model)
                facts = _card(setup, progress, client, tensors, source, versions, measured)
            facts |= {"changes": list(changes), **({"delivered": taken} if taken else {})}
            where = "best" if taken == "best" else at
            facts |= {} if mixture is None else {"at": where, "mixture": mixture.tolist()}
            schema = setup.federation.schema_of(client)
            if write is None or any(c.forms for c in setup.federation.clients):  # a normalisation of each client's own
                write = make_writer(setup, made, schema)
            done.append(file)
            save(setup, tensors, facts, file, made, write)
    except BaseException:
        for file in [f for d in done for f in (d, *_cards(d), *_beside(d))]:  # all files, or none
            file.unlink(missing_ok=True)
        raise
    return done


def export_placed(
    setup: Setup,
    round_: int,
    placed: Placement,
    targets: torch.Tensor,
    path: Path,
    name: str,
    *,
    source: str,
    versions: Mapping[str, Any],
    changes: Sequence[str] = (),
    kind: str | None = None,
) -> Path:
    """Write the model of a newcomer called `name` as `export` does, and return its file.

    `targets` (n, ...) are those that it was placed with.
    """
    file, kind = choose_file(path, name, kind)
    chosen, title = placed.chosen, f'Model of the newcomer "{name}"'
    more = {"client": name, "round": round_, "mixture": placed.center.tolist(), "placed_by": chosen.rule}
    more["changes"] = list(changes)
    facts: Card = card(setup, title, None, versions, placed.schema, **more)
    alone = setup.federation.around(targets[:0], targets, ())
    facts["data"] = data_facts(alone, torch.arange(len(targets)), source)
    facts["tested_on"] = "samples left out in turn"
    facts["doubt"] = placed.compared if placed.doubtful else ""
    facts["left_out"] = [
        {"rule": c.rule, "loss": c.loss, setup.task.primary: c.value, "chosen": c is chosen} for c in placed.candidates
    ]
    save(setup, placed.tensors, facts, file, kind, make_writer(setup, kind, placed.schema))
    return file


def _chosen(setup: Setup, progress: Progress, clients: Sequence[str | None] | None) -> list[str | None]:
    """Return the models to export, checked; see `export`."""
    if not progress.round:
        raise FlocoError("there is nothing to export yet: no round is done")
    every = list_models(setup, progress) if clients is None else clients
    named: list[str | None] = []
    named += [every] if isinstance(every, str) else every
    if not named or len({GLOBAL if c is None else c for c in named}) < len(named):
        raise FlocoError(f"name one model at least, and none twice (nor {GLOBAL!r} and the global one), got {named}")
    return named


def _one_network(setup: Setup, model: Tensors | Combined) -> Tensors:
    """Return the tensors of a model of one network; raises for others."""
    if isinstance(model, Combined):
        raise FlocoError(
            f"a personal model of {setup.algorithm.name} is no one network, and so no file of one: use the run itself, "
            "with floco predict or run.personal"
        )
    return model


def _cards(file: Path) -> tuple[Path, Path]:
    return file.with_name(f"{file.name}.json"), file.with_name(f"{file.name}.md")


def _beside(file: Path) -> tuple[Path, ...]:
    """Return the files without which a model's file is of no use."""
    return (file.with_name(SETTINGS),) if file.name == FILE else ()


def save(setup: Setup, tensors: Tensors, facts: Card, file: Path, kind: str, write: Writer) -> None:
    """Write one model and its card, the model last; each file is written atomically."""
    made = setup.network.holding(tensors, own=False)
    data, beside = write(made)
    facts = {**facts, "file": file.name, "format": kind, "sha256": checksum(data)}
    facts |= {"backbone": backbone(made)} if kind == "peft" else {}
    as_json, as_text = _cards(file)
    files = {as_json: to_json(facts), as_text: markdown(facts).encode()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for path, content in {**files, **{file.with_name(n): b for n, b in beside.items()}, file: data}.items():
            replace_file(path, content)
    except OSError as error:
        raise FlocoError(f"cannot write {file}: {error.strerror or error}; choose another place with -o") from error


def _with_test_parts(setup: Setup, measured: Measured | None) -> tuple[Setup, Measured | None]:
    """Return the setup with samples, and None; or, if they are not here, what the run has measured before."""
    try:
        return setup.with_samples("measuring models for their cards"), None
    except FlocoError as error:
        warn(f"{error}; the cards have the metrics of the run's last evaluation instead")
        return setup, measured or (lambda client: None)


def _card(
    setup: Setup,
    progress: Progress,
    client: str | None,
    tensors: Tensors,
    source: str,
    versions: Mapping[str, Any],
    measured: Measured | None,
) -> Card:
    if setup.delivery.model == "chosen":
        setup = setup.with_samples("counting the samples that models were trained on")
    federation, schema = setup.federation, setup.federation.schema_of(client)
    more: dict[str, Any] = {"client": client, "round": progress.round}
    if client is None:
        title, train = "The global model", torch.cat([setup.divide(c.id)[0] for c in federation.clients])
        where = "the clients' own test parts together" if federation.tested is None else "the global test part"
    else:
        own = federation.client(client)
        title, train, where = f'Model of client "{client}"', setup.divide(own.id)[0], "its own test part"
        more["participated"] = progress.participated.get(client, 0)
    more["data"] = data_facts(federation, train, source)
    if measured is not None:
        found = measured(client)
        more["tested_on"] = "the run directory" if found is None else f"{where}, in the run's last evaluation"
        return {**card(setup, title, None, versions, schema, **more), "metrics": found}
    x, y = federation.common_test if client is None else (rows(federation.x, own.test), federation.y[own.test])
    score = judge(setup.float32, [tensors], x, y)[0] if len(y) else None
    return card(setup, title, score, versions, schema, **more, tested_on=where)
