"""The ClientApp, which a site's SuperNode runs for each message."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from floco.core.errors import FlocoError
from floco.flower.answering import answer
from floco.flower.protocol import FORMAT, LOG, Answer, Ask
from floco.flower.site import SiteConfig, VirtualSite, introduce


def client_app(mods: Sequence[Mod] = ()) -> ClientApp:
    """Return the ClientApp of a federation; `mods` are Flower mods, e.g. `LocalDpMod` (docs/flower.md)."""
    app = ClientApp()
    app.query()(_join)
    app.query("wake")(_nothing)
    app.train(mods=[*mods])(_answer)
    app.train("probe", mods=[*mods])(_answer)
    app.evaluate()(_answer)  # no mods: they reject replies without parameters
    return app


def _nothing(message: Message, context: Context) -> Message:
    """Reply to a message that only wakes the SuperNode (`Nodes.exchange`)."""
    return Message(RecordDict(), reply_to=message)


def _site(context: Context, config: str) -> SiteConfig:
    """Return this node's configuration; in Flower's simulation runtime it has a partition number and no client id."""
    if "partition-id" in context.node_config and "client-id" not in context.node_config:
        number = int(context.node_config["partition-id"])
        return VirtualSite.at(number, config, Path.home() / ".cache" / "floco" / "simulation")
    return SiteConfig.of(context.node_config)


def _join(message: Message, context: Context) -> Message:
    """Reply with this site's identity and sizes, or the reason why it cannot join."""
    report: dict[str, Any] = {"format": FORMAT, "client": str(context.node_config.get("client-id", "")), "problem": ""}
    try:
        config = str(message.content.config_records["ask"]["config"])
        site = _site(context, config)
        report |= {"client": site.client, **introduce(site, config)}
    except FlocoError as error:
        report["problem"] = str(error)
        LOG.error("this site cannot join: %s", error)
    except Exception as error:  # noqa: BLE001  report any error to the server
        LOG.exception("this site cannot join")
        report["problem"] = f"{type(error).__name__}: {error}"
    return Message(RecordDict({"answer": ConfigRecord(report)}), reply_to=message)


def _answer(message: Message, context: Context) -> Message:
    """Train, probe and evaluate as asked; an error becomes a failure in the reply and stops neither node nor run."""
    torch.set_num_threads(1)
    share, client = False, str(context.node_config.get("client-id", ""))
    try:
        ask = Ask.of(message.content)
        site = _site(context, ask.config)
        share, client = site.share_labels, site.client
        given = answer(site, ask)
    except FlocoError as error:
        LOG.error("this site cannot answer: %s", error)
        given = Answer.failed(client, str(error))
    except Exception as error:  # noqa: BLE001  the server logs it with client and round
        LOG.exception("this site cannot answer")
        given = Answer.failed(client, f"{type(error).__name__}: {error}")
    return Message(given.records(share_labels=share), reply_to=message)
