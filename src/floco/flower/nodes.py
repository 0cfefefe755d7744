"""Who is connected: nodes by the client id that their sites configured, and what sites told when they joined."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from floco.config import Config, as_dict
from floco.errors import RunFailed
from floco.federation import Client, Federation
from floco.flower.wire import FORMAT
from floco.form import Normalization, channels_first

_POLL = 0.5  # seconds between looks for answers
_LOOK = 10  # seconds between looks whether nodes are still there
_JOIN = 120.0  # seconds that a node has to say who it is
_MENDED = 60.0  # seconds after which a node that could not join is asked again
_SAME = 90.0  # seconds that an older node with the same id has to show that it lives: one that was killed is listed for a minute
Facts = dict[str, Any]


def exchange(grid: Grid, messages: Mapping[int, Message], deadline: float) -> dict[int, Message]:
    """Return the replies by node: as soon as all are there, or their nodes are gone, or after `deadline` seconds."""
    pushed = list(grid.push_messages(list(messages.values())))
    waiting = {name: node for name, node in zip(pushed, messages, strict=False) if name}
    replies: dict[int, Message] = {}
    end, look = time.monotonic() + deadline, time.monotonic() + _LOOK
    while waiting and time.monotonic() < end:
        for reply in grid.pull_messages(list(waiting)):
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                replies[node] = reply
        if waiting and time.monotonic() > look:
            there, look = set(grid.get_node_ids()), time.monotonic() + _LOOK
            waiting = {name: node for name, node in waiting.items() if node in there}
        if waiting:
            time.sleep(_POLL)
    return replies


class Nodes:
    """The nodes of one run, kept up to date."""

    def __init__(self, grid: Grid, settings: Config, known: Mapping[str, Facts], tell: Callable[[str, str], None]) -> None:
        """Start with no node.

        Args:
            grid: Flower's.
            settings: the run's configuration.
            known: what clients told that joined earlier in this run.
            tell: called with a client id (or `node N`) and what happened.
        """
        self._grid, self._settings, self._tell = grid, settings, tell
        self._config = json.dumps(as_dict(settings))
        self.facts: dict[str, Facts] = dict(known)
        self.by_client: dict[str, int] = {}
        self._ask_again: dict[int, float] = {}  # node -> when it may be asked again who it is
        self._problems: dict[int, str] = {}

    def refresh(self) -> None:
        """Ask nodes that are new who they are, and forget those that are gone.

        Raises:
            RunFailed: two nodes have the same client id.
        """
        there, now = set(self._grid.get_node_ids()), time.monotonic()
        self._ask_again = {n: t for n, t in self._ask_again.items() if n in there}
        for node, told in self._join(sorted(n for n in there if now >= self._ask_again.get(n, 0))).items():
            client = str(told.get("client", ""))
            if why := str(told.get("problem", "")) or ("" if client else "it has no client-id") or told_problem(told, self._settings, self.facts):
                self._refuse(node, client or f"node {node}", why)
                continue
            self._ask_again[node] = float("inf")
            self._check_identity(client, node, there)
            self.by_client[client] = node
            if client not in self.facts:
                self.facts[client] = told
                self._tell(client, "joined")
        self.by_client = {c: n for c, n in self.by_client.items() if n in there}

    def _refuse(self, node: int, name: str, problem: str) -> None:
        self._ask_again[node] = time.monotonic() + _MENDED
        if self._problems.get(node) != problem:
            self._problems[node] = problem
            self._tell(name, f"cannot join: {problem}")

    def doubt(self, client: str) -> None:
        """Ask a client's node again who it is: it may have been configured anew."""
        self._ask_again.pop(self.by_client.pop(client, -1), None)

    def _question(self, node: int) -> Message:
        return Message(RecordDict({"ask": ConfigRecord({"format": FORMAT, "config": self._config})}), node, "query")

    def _join(self, nodes: Sequence[int]) -> dict[int, Facts]:
        replies = exchange(self._grid, {n: self._question(n) for n in nodes}, _JOIN)
        told: dict[int, Facts] = {n: {"problem": f"it did not say who it is within {_JOIN:g} s"} for n in nodes}
        for node, reply in replies.items():
            if reply.has_error():
                told[node] = {"problem": reply.error.reason}
            elif "answer" not in reply.content.config_records:
                told[node] = {"problem": "it speaks another language: is it a node of this federation's app?"}
            else:
                told[node] = dict(reply.content.config_records["answer"])
        return told

    def _check_identity(self, client: str, node: int, there: set[int]) -> None:
        """Raise if another node of the same id lives: one that has been restarted may still be listed."""
        before = self.by_client.get(client)
        if before is None or before == node or before not in there:
            return
        replies = exchange(self._grid, {before: self._question(before)}, _SAME)
        if any(not r.has_error() for r in replies.values()):
            raise RunFailed(f'nodes {before} and {node} both have client-id "{client}": each site needs an id of its own; stop one of them, and start the run again: it continues')
        self._tell(client, "came back with another node")

    def wait_for(self, number: int, among: Callable[[], Sequence[str]], seconds: float) -> None:
        """Wait until `number` of the clients `among` are connected.

        Raises:
            RunFailed: they are not, after so many seconds.
        """
        end = time.monotonic() + seconds
        while True:
            self.refresh()
            wanted = among()
            connected = [c for c in wanted if c in self.by_client]
            if len(connected) >= number:
                return
            if time.monotonic() > end:
                raise RunFailed(f"{len(connected)} of the {number} sites that are needed are connected after {seconds:g} s ({', '.join(connected) or 'none'}): flower.wait")
            time.sleep(2 * _POLL)


def told_problem(told: Facts, config: Config, others: Mapping[str, Facts]) -> str:
    """Return what is wrong with what a site told when it joined, `""` if nothing is."""
    kind = (told.get("dtype"), told.get("channels"))
    numbers = [told.get("n_train"), told.get("n_test")]
    if told.get("format") != FORMAT or kind[0] not in ("uint8", "float32") or kind[1] not in ("first", "last", "none"):
        return "it has another version of floco"
    if not all(type(n) is int and 1 <= n < 2**40 for n in numbers):
        return f"it says that it has {numbers[0]} samples to train and {numbers[1]} to test"
    if (other := next(iter(others.values()), None)) and kind != (other["dtype"], other["channels"]):
        return f"its samples are {kind[0]} with channels {kind[1]}, and those of the other sites {other['dtype']} with channels {other['channels']}"
    if config.data.normalize == "train":
        wanted = channels_first(torch.zeros(1, *config.flower.shape), str(kind[1])).shape[1]
        lists = [list(told.get(name, ())) for name in ("sum", "square")]
        if type(told.get("count")) is not int or told["count"] < 1 or any(len(v) != wanted or not all(map(math.isfinite, v)) for v in lists):
            return "its sums for the normalisation are no finite numbers, one a channel"
    return ""


def sizes_only(config: Config, facts: Mapping[str, Facts], normal: Normalization) -> Federation:
    """Return a federation of whose samples only the shape and the numbers are known."""
    one: dict[str, Any] = next(iter(facts.values()))
    dtype = torch.uint8 if one["dtype"] == "uint8" else torch.float32
    x = channels_first(torch.zeros(4, *config.flower.shape, dtype=dtype), str(one["channels"]))
    place = torch.zeros(1, dtype=torch.int64)
    clients = tuple(Client(c, place.expand(int(facts[c]["n_train"])), place.expand(int(facts[c]["n_test"]))) for c in sorted(facts))
    return Federation(x, torch.zeros(4, dtype=torch.int64), clients, config.data.labels, normalization=normal, channels=str(one["channels"]))
