"""The nodes of a run: which client each one serves, and the facts that sites reported when they joined."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from floco.core.errors import FlocoError, RunFailed
from floco.flower.facts import SiteFacts
from floco.flower.joining import admit
from floco.flower.protocol import FORMAT, short
from floco.runs.config import Config
from floco.runs.toml import as_dict

_POLL = 0.5  # seconds between polls for replies
_LOOK = 10.0  # seconds between checks which nodes are connected
_WAKES = 3  # largest number of wake messages to a node in one exchange; a SuperNode that is training gets them later
_JOIN = 120.0  # seconds for a node to identify itself
_MENDED = 60.0  # seconds until a node that could not join is asked again; doubled after each failure
_SAME = 90.0  # seconds for an older node with the same id to reply; a killed node stays listed for about a minute


@dataclass
class _Node:
    """State of a node, apart from its client."""

    ask_at: float = 0.0
    """Time from which it may be asked to identify itself."""
    patience: float = _MENDED
    problem: str = ""
    behind: bool = False
    """Whether it holds each reply back until its next message."""


class Nodes:
    """The connected nodes of one run, and the clients they serve."""

    def __init__(
        self, grid: Grid, settings: Config, known: Mapping[str, SiteFacts] | None, tell: Callable[[str, str], None]
    ) -> None:
        """Start with no node.

        Args:
            grid: Flower's connection to the nodes.
            settings: the run's configuration; of a run that has started, the agreed one.
            known: facts of the clients that joined this run earlier; None before the run has started.
            tell: called with a client id (or `node N`) and an event.
        """
        self._grid, self._settings, self._tell = grid, settings, tell
        self._config = json.dumps(as_dict(settings))
        self._nodes: defaultdict[int, _Node] = defaultdict(_Node)
        self.facts: dict[str, SiteFacts] = dict(known or {})
        self.by_client: dict[str, int] = {}
        self._begun = known is not None
        """Whether the run has started; until then, sites may leave and return with other ids and data."""
        self._seen: dict[str, float] = dict.fromkeys(self.facts, time.monotonic())
        self.running = False
        """Whether rounds have started; a second node with a known client id is then refused, without ending the run."""

    def begin(self, agreed: Config) -> None:
        """Start the run: sites that join from now on get the agreed configuration, and need not tell any sums."""
        self._settings, self._config, self._begun = agreed, json.dumps(as_dict(agreed)), True

    def exchange(
        self, messages: Mapping[int, Message], deadline: float, *, joining: bool = False
    ) -> dict[int, Message | Exception]:
        """Return the reply of each node, or the exception from reading it.

        Wait until every node has replied or disconnected, but at most `deadline` seconds.

        A SuperNode of Flower 1.41 that was receiving a message when its run was stopped holds every later reply back
        until it gets another message. A node that is slow to identify itself therefore gets empty wake messages, and
        if they help, it gets them in later exchanges too.
        """
        pushed = list(self._grid.push_messages(list(messages.values())))
        waiting = {name: node for name, node in zip(pushed, messages, strict=False) if name}
        replies, woken, wakes = dict[int, Message | Exception](), set[int](), _WAKES
        end, look = time.monotonic() + deadline, time.monotonic() + _LOOK
        while waiting and time.monotonic() < end:
            looked = time.monotonic() > look
            gone = set(waiting.values()) - set(self._grid.get_node_ids()) if looked else set()
            for name, node in list(waiting.items()):
                if (reply := self._pull(name)) is not None:
                    replies[node] = reply
                if reply is not None or node in gone:
                    del waiting[name]
            if looked:
                look = time.monotonic() + _LOOK
                wake = {n for n in waiting.values() if joining or self._nodes[n].behind} if wakes else set()
                self._grid.push_messages([Message(RecordDict(), node, "query.wake", ttl=_LOOK) for node in wake])
                woken, wakes = woken | wake, max(0, wakes - 1)
            if waiting:
                time.sleep(_POLL)
        for node in replies:
            self._nodes[node].behind = node in woken
        return replies

    def _pull(self, name: str) -> Message | Exception | None:
        """Return the reply to one message.

        Replies are pulled singly: Flower discards a batch before parsing it, so one bad reply would lose the others.
        """
        try:
            return next(iter(self._grid.pull_messages([name])), None)
        except (httpx.HTTPError, OSError):  # an error of the connection, not of the reply
            raise
        except Exception as error:  # noqa: BLE001  a malformed reply
            return error

    def refresh(self) -> None:
        """Ask new nodes to identify themselves, and remove those that have disconnected.

        Raises:
            RunFailed: two nodes have the same client id, before the first round.
        """
        there, now = set(self._grid.get_node_ids()), time.monotonic()
        self._nodes = defaultdict(_Node, {n: self._nodes[n] for n in there})
        self._drop(there)
        for node, report in self._join(sorted(n for n in there if now >= self._nodes[n].ask_at)).items():
            try:
                client, facts = admit(report, self._settings, self.facts)
                self._check_identity(client, node, there)
            except RunFailed:
                raise
            except FlocoError as error:
                self._refuse(node, report, str(error))
                continue
            except Exception as error:  # noqa: BLE001  a malformed report
                self._refuse(node, report, f"what it says of itself cannot be read: {type(error).__name__}: {error}")
                continue
            self._nodes[node] = _Node(math.inf, behind=self._nodes[node].behind)
            self.by_client[client] = node
            if client not in self.facts:
                self.facts[client] = facts
                self._tell(client, "joined")
        self._drop(there)
        self._seen |= dict.fromkeys(self.by_client, time.monotonic())

    def _drop(self, there: set[int]) -> None:
        """Remove disconnected nodes and, before the run has started, the facts of their clients."""
        self.by_client = {c: n for c, n in self.by_client.items() if n in there}
        if not self._begun:
            self.facts = {c: f for c, f in self.facts.items() if c in self.by_client}

    def forget(self, keep: Collection[str], seconds: float) -> None:
        """Remove the clients that have been disconnected for more than `seconds`, except those in `keep`."""
        now = time.monotonic()
        self.facts = {c: f for c, f in self.facts.items() if c in keep or now - self._seen[c] <= seconds}

    def _refuse(self, node: int, report: SiteFacts, problem: str) -> None:
        known = self._nodes[node]
        known.ask_at, known.patience = time.monotonic() + known.patience, 2 * known.patience
        if known.problem != problem:
            known.problem = problem
            self._tell(short(str(report.get("client", ""))) or f"node {node}", f"cannot join: {short(problem)}")

    def doubt(self, client: str) -> None:
        """Ask a client's node to identify itself again: its configuration may have changed."""
        self._nodes[self.by_client.pop(client)].ask_at = 0.0

    def _question(self, node: int) -> Message:
        return Message(RecordDict({"ask": ConfigRecord({"format": FORMAT, "config": self._config})}), node, "query")

    def _join(self, nodes: Sequence[int]) -> dict[int, SiteFacts]:
        replies = self.exchange({n: self._question(n) for n in nodes}, _JOIN, joining=True)
        reports: dict[int, SiteFacts] = {n: {"problem": f"it did not say who it is within {_JOIN:g} s"} for n in nodes}
        for node, reply in replies.items():
            if isinstance(reply, Exception):
                reports[node] = {"problem": f"what it sends cannot be read: {type(reply).__name__}: {reply}"}
            elif reply.has_error():
                reports[node] = {"problem": reply.error.reason or "an error without a reason"}
            elif "answer" not in reply.content.config_records:
                reports[node] = {"problem": "it runs another app: is it a node of this federation?"}
            else:
                reports[node] = dict(reply.content.config_records["answer"])
        return reports

    def _check_identity(self, client: str, node: int, there: set[int]) -> None:
        """Raise if another live node has this client id; a restarted node may still be listed under its old id."""
        before = self.by_client.get(client)
        if before is None or before == node or before not in there:
            return
        replies = self.exchange({before: self._question(before)}, _SAME, joining=True)
        if any(isinstance(r, Exception) or not r.has_error() for r in replies.values()):
            both = f'nodes {before} and {node} both have client-id "{client}": each site needs an id of its own'
            if self.running:
                raise FlocoError(f"{both}; it may be that node {before} is the wrong one")
            raise RunFailed(f"{both}; stop one of them, and start the run again: it continues")
        self._tell(client, "came back with another node")

    def wait_for(self, number: int, among: Callable[[], Sequence[str]], seconds: float) -> bool:
        """Wait until `number` of the clients `among` are connected; return False after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            self.refresh()
            if sum(c in self.by_client for c in among()) >= number:
                return True
            if time.monotonic() > end:
                return False
            time.sleep(2 * _POLL)
