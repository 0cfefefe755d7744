"""The ClientApp: what a site's SuperNode runs for each message."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from floco.errors import FlocoError
from floco.flower.site import Place, VirtualPlace, answer, joined
from floco.flower.wire import FORMAT, Answer, Ask
from floco.jobs import Result


def client_app(mods: Sequence[Mod] = ()) -> ClientApp:
    """Return the ClientApp of a federation's app; `mods` are Flower's, e.g. `LocalDpMod` (docs/flower.md)."""
    app = ClientApp(mods=[*mods])
    app.query()(_join)
    app.train()(_answer)
    app.train("probe")(_answer)
    app.evaluate()(_answer)
    return app


def _place(context: Context, config: str) -> Place:
    """Return who this node is; one of Flower's simulation runtime has a number in place of an id."""
    if "partition-id" in context.node_config and "client-id" not in context.node_config:
        number = int(context.node_config["partition-id"])
        return VirtualPlace.at(number, config, Path(tempfile.gettempdir()) / f"floco-simulation-{context.run_id}" / str(number))
    return Place.of(context.node_config)


def _join(message: Message, context: Context) -> Message:
    """Say who this site is, and whether its data fit."""
    told: dict[str, Any] = {"format": FORMAT, "client": str(context.node_config.get("client-id", "")), "problem": ""}
    try:
        config = str(message.content.config_records["ask"]["config"])
        place = _place(context, config)
        told |= {"client": place.client, **joined(place, config)}
    except FlocoError as error:
        told["problem"] = str(error)
        print(f"this site cannot join: {error}", flush=True)  # noqa: T201  the SuperNode's log is where its engineer looks
    except Exception as error:  # noqa: BLE001  whatever it is, the server must hear of it
        traceback.print_exc()
        told["problem"] = f"{type(error).__name__}: {error}"
    return Message(RecordDict({"answer": ConfigRecord({k: v for k, v in told.items() if v != []})}), reply_to=message)


def _answer(message: Message, context: Context) -> Message:
    """Train, probe and evaluate as asked; whatever goes wrong is told by name, and ends neither the node nor the run."""
    torch.set_num_threads(1)
    share, client = False, str(context.node_config.get("client-id", ""))
    try:
        ask = Ask.of(message.content)
        place = _place(context, ask.config)
        share, client = place.share_labels, place.client
        given = answer(place, ask)
    except Exception as error:  # noqa: BLE001  it is named at the server, with client and round
        traceback.print_exc()
        failed = Result(client, failure=str(error) if isinstance(error, FlocoError) else f"{type(error).__name__}: {error}")
        given = Answer(client, failed, failed)
    return Message(given.records(share_labels=share), reply_to=message)
