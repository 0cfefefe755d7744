"""Models as files with cards, for stacks in which there is no floco."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from floco.algorithms.floco import OnSimplex
from floco.card import Card, card, data_facts, markdown
from floco.errors import FlocoError
from floco.files import checksum, file_name, replace_file, to_json
from floco.inference import judge
from floco.loop import Progress
from floco.newcomers import Placement
from floco.personal import everyone, network_tensors, own_point
from floco.portable import FORMATS, Writer, writer
from floco.setup import Setup
from floco.streams import one_thread
from floco.values import Tensors

GLOBAL = "global"


def kind_of(path: Path, given: str | None) -> str:
    """Return the format of a file or folder to write: the one given, or else what the path ends in, or else safetensors."""
    ending = path.suffix.removeprefix(".")
    if given is not None and ending in FORMATS and ending != given:
        raise FlocoError(f"-o {path} ends in .{ending}, and --format is {given}: leave one of them out")
    return given or (ending if ending in FORMATS else FORMATS[0])


def export(
    setup: Setup, progress: Progress, clients: Sequence[str | None] | None, path: Path, *, source: str, versions: Mapping[str, Any], kind: str | None = None, at: str = "center"
) -> list[Path]:
    """Write the models of clients (None among them: the global model), each with a card as JSON and Markdown, and return their files.

    Args:
        setup: what is fixed in the run.
        progress: how far it came.
        clients: whose models; None: all there are.
        path: the file of a single model, if it ends in a format's name; else a folder, in which files are called after clients.
        source: where the data are from, for the cards.
        versions: for the cards.
        kind: one of `FORMATS` (None: what `path` ends in, or safetensors).
        at: see `personal.network_tensors`.

    Raises:
        FlocoError: a client or a model that is not there, files that are, or a format that does not suit the network.
    """
    kind = kind_of(path, kind)
    clients = everyone(setup, progress) if clients is None else clients
    files = _files(clients, path, kind)
    write = writer(setup, kind)
    for client, file in zip(clients, files, strict=True):
        with one_thread():
            tensors = network_tensors(setup, progress, client, at=at)
            facts = _card(setup, progress, client, tensors, source, versions, at)
        save(setup, tensors, facts, file, kind, write)
    return files


def export_placed(setup: Setup, round_: int, placed: Placement, labels: torch.Tensor, path: Path, *, source: str, versions: Mapping[str, Any], kind: str | None = None) -> Path:
    """Write the model of a newcomer, as `export` does, and return its file; `labels` are those it was placed with, (n,)."""
    kind = kind_of(path, kind)
    (file,) = _files([path.stem], path if path.suffix == f".{kind}" else path.with_name(f"{path.name}.{kind}"), kind)
    counts = torch.bincount(labels, minlength=setup.federation.classes).tolist()
    facts: Card = card(setup, f'Model of the newcomer "{path.stem}"', None, versions, client=path.stem, round=round_, mixture=placed.center.tolist(), placed_by=placed.chosen.rule)
    facts["data"] = {"source": source, "samples": len(labels), "labels": dict(zip(setup.federation.names, counts, strict=True))}
    facts["tested_on"] = "samples left out in turn"
    facts["left_out"] = [{"rule": c.rule, "loss": c.loss, "accuracy": c.accuracy} for c in placed.candidates]
    save(setup, placed.tensors, facts, file, kind, writer(setup, kind))
    return file


def _files(clients: Sequence[str | None], path: Path, kind: str) -> list[Path]:
    """Return one file for each client, none of which is there."""
    single = path.suffix == f".{kind}"
    if single and len(clients) > 1:
        raise FlocoError(f"-o {path} is one file, and there are {len(clients)} models: give a folder")
    files = [path] if single else [path / f"{GLOBAL if c is None else file_name(c)}.{kind}" for c in clients]
    if None in clients and GLOBAL in clients:
        raise FlocoError(f'a client is called "{GLOBAL}" as the file of the global model would be: export the two into different folders')
    for file in files:
        if there := next((f for f in (file, *_cards(file)) if f.exists()), None):
            raise FlocoError(f"{there} exists already: remove it, or choose another place with -o")
    return files


def _cards(file: Path) -> tuple[Path, Path]:
    return file.with_suffix(".json"), file.with_suffix(".md")


def save(setup: Setup, tensors: Tensors, facts: Card, file: Path, kind: str, write: Writer) -> None:
    """Write one model and its card; the model comes last, and each file in one step, so that no half of one is ever there."""
    data = write(setup.network.holding(tensors))
    facts = {**facts, "file": file.name, "format": kind, "sha256": checksum(data)}
    as_json, as_text = _cards(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for path, content in ((as_json, to_json(facts)), (as_text, markdown(facts).encode()), (file, data)):
            replace_file(path, content)
    except OSError as error:
        raise FlocoError(f"cannot write {file}: {error.strerror or error}") from error


def _card(setup: Setup, progress: Progress, client: str | None, tensors: Tensors, source: str, versions: Mapping[str, Any], at: str) -> Card:
    federation = setup.federation
    more: dict[str, Any] = {"client": client, "round": progress.round}
    if client is None:
        title, train, (x, y) = "The global model", torch.cat([c.train for c in federation.clients]), federation.common_test
        where = "the clients' own test parts together" if federation.x_test is None else "the global test part"
    else:
        own = federation.client(client)
        title, train, where = f'Model of client "{client}"', own.train, "its own test part"
        x, y = federation.x[own.test], federation.y[own.test]
        more["participated"] = progress.participated.get(client, 0)
        if isinstance(setup.algorithm, OnSimplex):
            more |= {"at": at, "mixture": own_point(setup, progress, client, at)[2].tolist()}
    facts = card(setup, title, judge(setup, [tensors], x, y)[0], versions, **more)
    return {**facts, "data": data_facts(federation, train, source), "tested_on": where}
