"""Who is connected: nodes by the client id that their sites configured, and what sites told when they joined."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from floco.config import Config
from floco.errors import RunFailed
from floco.federation import Client, Federation
from floco.flower.wire import FORMAT
from floco.form import Normalization, channels_first

_POLL = 0.5  # seconds between looks for answers
_LOOK = 10  # seconds between looks whether nodes are still there
_JOIN = 120.0  # seconds that a node has to say who it is
_MENDED = 60.0  # seconds after which a node that could not join is asked again
_SAME = 30.0  # seconds that an older node with the same id has to show that it lives
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

    def __init__(self, grid: Grid, config: str, known: Mapping[str, Facts], tell: Callable[[str, str], None]) -> None:
        """Start with no node.

        Args:
            grid: Flower's.
            config: the run's configuration, as JSON.
            known: what clients told that joined earlier in this run.
            tell: called with a client id (or `node N`) and what happened.
        """
        self._grid, self._config, self._tell = grid, config, tell
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
            client, problem = str(told.get("client", "")), str(told.get("problem", ""))
            if problem or not client:
                self._refuse(node, client or f"node {node}", problem or "it has no client-id")
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

    def _join(self, nodes: Iterable[int]) -> dict[int, Facts]:
        ask = ConfigRecord({"format": FORMAT, "config": self._config})
        replies = exchange(self._grid, {n: Message(RecordDict({"ask": ask}), n, "query") for n in nodes}, _JOIN)
        told: dict[int, Facts] = {}
        for node, reply in replies.items():
            if reply.has_error():
                told[node] = {"problem": reply.error.reason}
            else:
                told[node] = dict(reply.content.config_records["answer"])
        return told

    def _check_identity(self, client: str, node: int, there: set[int]) -> None:
        """Raise if another node of the same id lives: one that has been restarted may still be listed."""
        before = self.by_client.get(client)
        if before is None or before == node or before not in there:
            return
        ask = Message(RecordDict({"ask": ConfigRecord({"format": FORMAT, "config": self._config})}), before, "query")
        if exchange(self._grid, {before: ask}, _SAME):
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


def sizes_only(config: Config, facts: Mapping[str, Facts], normal: Normalization) -> Federation:
    """Return a federation of whose samples only the shape and the numbers are known."""
    one: dict[str, Any] = next(iter(facts.values()))
    dtype = torch.uint8 if one["dtype"] == "uint8" else torch.float32
    x = channels_first(torch.zeros(4, *config.flower.shape, dtype=dtype), str(one["channels"]))
    place = torch.zeros(1, dtype=torch.int64)
    clients = tuple(Client(c, place.expand(int(facts[c]["n_train"])), place.expand(int(facts[c]["n_test"]))) for c in sorted(facts))
    return Federation(x, torch.zeros(4, dtype=torch.int64), clients, config.data.labels, normalization=normal, channels=str(one["channels"]))
