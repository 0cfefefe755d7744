"""The run across organisations: SuperLinks, SuperNodes and runs as processes on loopback, and a site without them."""

import csv
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.common.config import flatten_dict
from flwr.supercore.task_identity import TaskIdentity

import floco as package
from conftest import ANY_NETWORK, PATIENCE, Clock, alone, dealt, ending, floco, rows, same, two_classes_move_west
from floco.core.errors import FlocoError
from floco.core.values import ClientInfo, Tensors
from floco.flower import answering, client_app, demo, roster
from floco.flower.answering import answer
from floco.flower.checks import Expected, check_answer
from floco.flower.demo import SITES, LocalFederation
from floco.flower.dispatch import expect
from floco.flower.facts import check_settings
from floco.flower.joining import admit
from floco.flower.protocol import FORMAT, Answer, Ask
from floco.flower.roster import Nodes
from floco.flower.scaffold import read_settings as run_settings
from floco.flower.scaffold import write
from floco.flower.site import SiteConfig, introduce
from floco.runs import session, source
from floco.runs.checkpoint import Store
from floco.runs.config import Config, Flower
from floco.runs.toml import as_dict, read
from floco.server.rounds import initialize
from floco.storage.files import read_json, read_tensors
from floco.tasks import Classification
from floco.tasks.scores import ClassificationScore as Score

SETTINGS = [
    "training.fraction=0.67",
    "run.evaluate_every=2",
    "run.engine=serial",
    "flower.sites=3",
    f"flower.wait={PATIENCE}",
    f"flower.deadline={PATIENCE}",
]


def read_settings(folder: Path, name: str, *more: str) -> Config:
    own = ["algorithm.assign_at=2", "algorithm.endpoints=3"] if name.startswith(("floco", "my_floco")) else []
    data = [f"data.source=npz:{folder / 'data' / 'all.npz'}", "data.split=natural"]
    given = [*data, f"algorithm.name={name}", *own, "training.rounds=4", *SETTINGS, *more]
    return source.resolve_paths(read(None, given))


def node(folder: Path, site: str, **more: Any) -> dict[str, Any]:
    return {"client-id": site, "data": folder / "data" / f"{site}.npz", "state-dir": folder / "sites" / site, **more}


@contextmanager
def processes(folder: Path) -> Iterator[LocalFederation]:
    """A SuperLink as a process; whatever comes of it ends here, whoever started it."""
    with pytest.MonkeyPatch.context() as patch, ending():
        patch.setattr(demo, "_PATIENCE", PATIENCE)
        with LocalFederation(folder / "logs") as running:
            yield running


@dataclass(frozen=True)
class Federated:
    """Runs over the same three sites: their folder, how many rounds, and what each said."""

    folder: Path
    rounds: int
    logs: dict[str, str]

    def ids(self) -> dict[str, str]:
        return {name: read_json(self.folder / f"run-{name}" / "run.json")["id"] for name in self.logs}


EXAMPLES = Path(__file__).parents[1] / "examples"
OWN = "fedavgm:FedAvgM"
MINE = "my_floco:MyFloco"
"""Methods in files outside the package, which `floco flower new` copies into the app."""
MY_FLOCO = """
from dataclasses import dataclass
from typing import ClassVar

from floco.algorithms import FlocoPlus


@dataclass(frozen=True)
class MyFloco(FlocoPlus):
    name: ClassVar[str] = "my-floco"
"""
CHOICE = {MINE: ("deliver.model=chosen", "deliver.local_epochs=1")}
"""Further settings of a method."""
ONE, ALL = ((MINE,), 3), ((*ANY_NETWORK, OWN, MINE), 4)


@pytest.fixture(scope="module", params=[ONE, pytest.param(ALL, marks=pytest.mark.soak)], ids=["one", "all methods"])
def federation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Federated:
    """Methods, each run on Flower; four at a time, at the same sites."""
    folder = tmp_path_factory.mktemp("federation")
    dealt(folder)
    (methods, rounds), logs, user = request.param, {}, folder / "user"
    user.mkdir()
    (user / "my_floco.py").write_text(MY_FLOCO)
    (user / "fedavgm.py").write_text((EXAMPLES / "fedavgm.py").read_text())
    with pytest.MonkeyPatch.context() as patch, processes(folder) as running:
        patch.chdir(user)  # the processes of the federation run in other folders
        patch.syspath_prepend(str(user))
        for site in SITES:
            running.node(site, node(folder, site, **{"share-labels": True}))
        for i in range(0, len(methods), 4):
            started = {}
            for name in methods[i : i + 4]:
                write(folder / name, read_settings(folder, name, f"training.rounds={rounds}", *CHOICE.get(name, ())))
                started[name] = running.run(folder / name, "--run-config", f'out="{folder / f"run-{name}"}"')
            for name, process in started.items():
                logs[name] = "".join(running.lines(process))
        for name in methods:
            settings = read_settings(folder, name, f"training.rounds={rounds}", *CHOICE.get(name, ()))
            alone(settings, folder / f"local-{name}")
    return Federated(folder, rounds, logs)


def test_a_run_on_flower_is_the_run_in_one_process_to_the_bit(federation: Federated) -> None:
    for name, log in federation.logs.items():
        remote, local = (federation.folder / f"{where}-{name}" for where in ("run", "local"))
        for table in ("history.csv", "clients.csv"):
            assert (remote / table).read_bytes() == (local / table).read_bytes(), (name, log[-2000:])
        state = f"checkpoint/{federation.rounds}/state.safetensors"
        assert same(read_tensors(remote / state), read_tensors(local / state)), name
        assert len(rows(remote / "history.csv")) == 2


def test_bytes_are_printed_by_round_and_client_and_add_up_to_those_of_the_history(federation: Federated) -> None:
    for name, log in federation.logs.items():
        lines = re.findall(r"^round (\d+): (\w+ .*bytes down.*)$", log, re.M)
        assert [int(number) for number, _ in lines] == list(range(1, federation.rounds + 1))
        history = rows(federation.folder / f"run-{name}" / "history.csv")
        for i, kind in ((0, "down"), (1, "up")):
            printed = [
                int(found[i].replace(",", ""))
                for _, line in lines
                for found in re.findall(r"([\d,]+) bytes down, ([\d,]+) up", line)
            ]
            assert sum(printed) == sum(int(r[f"bytes_{kind}"]) for r in history)


def test_a_site_takes_its_model_home_without_the_server(federation: Federated, tmp_path: Path) -> None:
    folder, site, ids = federation.folder, federation.folder / "sites" / "north", federation.ids()
    x = np.load(folder / "data" / "north.npz")["x"][:40]
    np.savez(tmp_path / "new.npz", x=x)
    for name in ids.keys() & {"floco+", "ditto", MINE}:
        own, file = site / ids[name], tmp_path / f"{name}.safetensors"
        done = floco("export", own, "--client", "north", "-o", file)
        assert done.exit_code == 0, done.output
        local = package.open_run(folder / f"local-{name}")
        assert same(read_tensors(file), dict(local.personal("north").state_dict()))
        done = floco("predict", own, "--client", "north", tmp_path / "new.npz", "-o", tmp_path / f"{name}.csv")
        assert done.exit_code == 0, done.output
    assert floco("export", site, "--global", "-o", tmp_path / "last.onnx").exit_code == 0
    assert (site / "current").read_text().strip() in ids.values()


def test_the_servers_directory_holds_no_state_of_a_client_and_no_labels(federation: Federated, tmp_path: Path) -> None:
    told = {"n_train", "n_test", "inputs", "columns", "table", "target", "statistics"}
    for name in federation.logs:
        run = federation.folder / f"run-{name}"
        assert not list((run / "checkpoint" / "memories").iterdir())
        state = read_tensors(run / f"checkpoint/{federation.rounds}/state.safetensors")
        assert not any("personal" in n for n in state)
        assert set(read_json(run / "sites.json")["sites"]["north"]) == told
        done = floco("report", run, "-o", tmp_path / "report.html")
        assert done.exit_code == 0, done.output
        page = (tmp_path / "report.html").read_text()
        assert "the data of this run and its models are at its sites" in page
        assert "Who has what" not in page


def test_a_servers_directory_without_one_model_for_all_says_where_models_are(
    federation: Federated, tmp_path: Path
) -> None:
    run = federation.folder / f"run-{next(iter(federation.logs))}"
    done = floco("export", run, "--global", "-o", tmp_path / "global.safetensors")
    assert done.exit_code == 2
    assert "use the state directory of a site" in done.output


CORRUPT = """
from flwr.app import ArrayRecord
from floco.flower import client_app
import numpy as np
import torch

def corrupt(message, context, call_next):
    reply = call_next(message, context)
    ask = message.content.config_records.get("ask")
    arrays = reply.content.array_records.get("arrays")
    if context.node_config["client-id"] == "south" and ask is not None and ask.get("round") == ROUND and arrays:
        broken = {n: a.numpy() * np.nan for n, a in arrays.items()}
        reply.content["arrays"] = ArrayRecord({n: torch.from_numpy(a) for n, a in broken.items()})
    return reply

app = client_app(mods=[corrupt])
"""


def follow(process: Any, seen: list[str], wanted: str) -> None:
    """Read a run's log until a line matches."""
    for line in LocalFederation.lines(process):
        seen.append(line)
        if re.search(wanted, line):
            return
    raise AssertionError(f"{wanted} was never said:\n{''.join(seen[-40:])}")


def stop(running: LocalFederation, process: Any, seen: list[str]) -> None:
    """Stop a run as `flwr stop` does, and wait for its log to end."""
    running.flwr("stop", re.findall(r"started run (\d+)", "".join(seen))[-1], "local")
    process.wait(timeout=PATIENCE)


@dataclass(frozen=True)
class Survivor:
    """A federation that has been through much: its folder, what its runs said, and the lines of failures.csv."""

    folder: Path
    rounds: int
    evaluated: tuple[int, ...]
    broken: int
    """The round in which the site `south` sent NaN."""
    said: str
    failures: list[tuple[int, str, str]]

    def happened(self, client: str, words: str) -> list[int]:
        return [number for number, name, reason in self.failures if name == client and words in reason]

    def clients(self, number: int) -> dict[str, dict[str, str]]:
        found = rows(self.folder / "run" / "clients.csv")
        return {r["client"]: r for r in found if r["round"] == str(number)}


def begun(folder: Path, rounds: int, broken: int, *more: str) -> None:
    """The app and the data of a federation that will misbehave: sites with unlike data, and one that sends NaN."""
    dealt(folder)
    two_classes_move_west(folder / "data")
    base = [f"training.rounds={rounds}", "training.fraction=1.0", "flower.quorum=0.3", *more]
    write(folder / "app", read_settings(folder, "floco+", *base))
    (folder / "app" / "federation" / "client_app.py").write_text(CORRUPT.replace("ROUND", str(broken - 1)))


def shortly(folder: Path, seen: list[str]) -> None:
    """Two nodes are killed in round 2, one comes back, a fourth joins, and the server's app is stopped in round 3."""
    begun(folder, 3, 1, "algorithm.assign_at=1", "run.evaluate_every=3")
    out = f'out="{folder / "run"}"'
    with processes(folder) as running:
        for site in SITES:
            running.node(site, node(folder, site))
        first = running.run(folder / "app", "--run-config", out)
        follow(first, seen, r"^round 1: east")
        for site in ("north", "south"):  # south never comes back
            running.kill(site)
        running.node("west", node(folder, "west"))
        follow(first, seen, r'client "north": it (did not answer|is not connected)')
        running.node("north", node(folder, "north"))
        follow(first, seen, r'client "west": joined')
        stop(running, first, seen)
        second = running.run(folder / "app", "--run-config", f"{out} flower.quorum=1.0 flower.wait=15.0")
        follow(second, seen, r"^the run is in")
        second.wait(timeout=PATIENCE)


def at_length(folder: Path, seen: list[str]) -> None:
    """A node is killed and comes back, another sends NaN and later leaves for ever, a fourth joins late.

    The server's app is stopped three times. At last a second node takes the id of the first, in another run.
    """
    begun(folder, 9, 4, "run.evaluate_every=3")
    out = f'out="{folder / "run"}"'
    with processes(folder) as running:
        for site in SITES:
            running.node(site, node(folder, site))
        first = running.run(folder / "app", "--run-config", out)
        follow(first, seen, r"^round 3: east")
        running.kill("north")  # after the assignment in round 2
        follow(first, seen, r'client "north": it (did not answer|is not connected)')
        running.node("north", node(folder, "north"))
        running.node("west", node(folder, "west"))
        follow(first, seen, r'client "west": joined')
        stop(running, first, seen)
        second = running.run(folder / "app", "--run-config", out)
        follow(second, seen, r"^round 7: .*west")
        running.kill("south")  # and never comes back
        follow(second, seen, r"^round 8: ")
        stop(running, second, seen)
        third = running.run(folder / "app", "--run-config", f"{out} flower.quorum=1.0 flower.wait=15.0")
        follow(third, seen, r"^round 9: .*bytes")
        time.sleep(1)
        stop(running, third, seen)  # while the last state is being evaluated
        fourth = running.run(folder / "app", "--run-config", f"{out} flower.quorum=1.0 flower.wait=15.0")
        follow(fourth, seen, r"^the run is in|is finished")
        fourth.wait(timeout=PATIENCE)
        running.node("twin", {**node(folder, "north"), "state-dir": folder / "twin"})
        fifth = running.run(folder / "app", "--run-config", f'out="{folder / "other"}"')
        follow(fifth, seen, r"^error: ")


SHORT, LONG = (shortly, 3, (3,), 1), (at_length, 9, (3, 6, 9), 4)


@pytest.fixture(
    scope="module", params=[SHORT, pytest.param(LONG, marks=pytest.mark.soak)], ids=["shortly", "at length"]
)
def survivor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Survivor:
    """A federation that misbehaves."""
    folder, seen = tmp_path_factory.mktemp("survivor"), list[str]()
    scenario, rounds, evaluated, broken = request.param
    scenario(folder, seen)
    failures = [(int(r["round"]), r["client"], r["reason"]) for r in rows(folder / "run" / "failures.csv")]
    return Survivor(folder, rounds, evaluated, broken, "".join(seen), failures)


def test_a_run_that_was_stopped_is_whole(survivor: Survivor) -> None:
    history = rows(survivor.folder / "run" / "history.csv")
    assert [int(r["round"]) for r in history] == list(survivor.evaluated), survivor.said[-4000:]
    last = [r["client"] for r in rows(survivor.folder / "run" / "clients.csv") if r["round"] == str(survivor.rounds)]
    assert sorted(last) == sorted(set(last))


def test_a_node_that_sends_nan_is_left_out_and_named(survivor: Survivor) -> None:
    assert survivor.happened("south", "not finite") == [survivor.broken]
    before = [number for number in survivor.evaluated if number < survivor.broken]  # none in the short scenario
    assert all("south" in survivor.clients(number) for number in before)


def test_a_node_that_was_killed_goes_on_with_its_own_model(survivor: Survivor) -> None:
    missed = survivor.happened("north", "did not answer") + survivor.happened("north", "is not connected")
    assert missed
    assert "starts again from the global model" not in survivor.said
    assert 2 <= int(survivor.clients(survivor.rounds)["north"]["participated"]) < survivor.rounds
    with_own = package.open_run(survivor.folder / "sites" / "north").progress.memories["north"]
    assert with_own.keys() >= {"personal/3.weight"}


def test_a_node_that_joins_after_the_assignment_has_a_model_better_than_the_global_one(survivor: Survivor) -> None:
    assert survivor.happened("west", "joined")[0] > 2
    west = survivor.clients(survivor.rounds)["west"]
    assert float(west["loss_personal"]) < float(west["loss_global_local"])
    assert float(west["accuracy_personal"]) >= float(west["accuracy_global_local"])


def test_a_node_that_leaves_for_ever_does_not_stop_the_run(survivor: Survivor) -> None:
    away = survivor.happened("south", "is away for more than 15 s: the run goes on without it")
    if survivor.rounds == 3:  # it never took part: it may be forgotten before it is found away
        away += survivor.happened("south", "did not answer") + survivor.happened("south", "is not connected")
    assert away
    assert set(survivor.clients(survivor.rounds)) == {"east", "north", "west"}


@pytest.mark.soak  # test_flower_server has it in one process, before there is a run and while rounds are under way
@pytest.mark.parametrize("survivor", [LONG], ids=["at length"], indirect=True)
def test_two_nodes_with_one_id_are_refused(survivor: Survivor) -> None:
    refused = r'^error: nodes \d+ and \d+ both have client-id "north": each site needs an id of its own'
    assert re.search(refused, survivor.said, re.M)
    assert not (survivor.folder / "other").exists()


def test_no_site_gave_its_counts_by_label_away(survivor: Survivor) -> None:
    assert not rows(survivor.folder / "run" / "history.csv")[-1]["balanced_accuracy_global"]


@pytest.fixture
def in_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages can be made, as in a process of Flower's, which knows who it is."""
    for key in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, key, 1, raising=False)


class OneBehind:
    """A Grid whose node 1 holds every answer back until its next message.

    A SuperNode of Flower 1.41 does that after a message of a stopped run.
    """

    def __init__(self) -> None:
        self.number = 0
        self.held: Message | None = None
        self.ready: list[Message] = []
        self.woken: list[int] = []

    def get_node_ids(self) -> list[int]:
        return [1, 2]

    def push_messages(self, messages: list[Message]) -> list[str]:
        for message in messages:
            self.number += 1
            message.metadata.__dict__["_message_id"] = str(self.number)
            reply = Message(RecordDict(), reply_to=message)
            self.woken += [message.metadata.dst_node_id] * (message.metadata.message_type == "query.wake")
            if message.metadata.dst_node_id == 2:
                self.ready.append(reply)
            else:
                self.ready += [] if self.held is None else [self.held]
                self.held = reply
        return [m.metadata.message_id for m in messages]

    def pull_messages(self, names: list[str]) -> list[Message]:
        found = [m for m in self.ready if m.metadata.reply_to_message_id in names]
        self.ready = [m for m in self.ready if m not in found]
        return found


@pytest.mark.usefixtures("in_flower")
def test_a_node_that_is_one_message_behind_is_woken_and_a_busy_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "time", Clock())
    grid = OneBehind()
    nodes = Nodes(grid, read(None), {}, lambda client, what: None)  # type: ignore[arg-type]

    def asked() -> dict[int, Message]:
        return {n: Message(RecordDict(), n, "train") for n in (1, 2)}

    assert set(nodes.exchange(asked(), 40)) == {
        2
    }  # nobody knows yet that it is behind; its training may take this long
    assert not grid.woken
    assert set(nodes.exchange(asked(), 40, joining=True)) == {1, 2}
    assert set(nodes.exchange(asked(), 40)) == {1, 2}
    assert set(grid.woken) == {1}


@pytest.fixture
def site_alone(tmp_path: Path) -> tuple[Path, SiteConfig, str, Any]:
    """A site without Flower: its folder and configuration, the run's, and a question that trains Floco+ in round 3."""
    dealt(tmp_path)
    config = read_settings(
        tmp_path,
        "floco+",
        "data.labels=" + json.dumps([str(i) for i in range(10)]),
        "flower.shape=[8,8]",
        "data.normalize=none",
    )
    site = SiteConfig("north", f"npz:{tmp_path / 'data' / 'north.npz'}", tmp_path / "state")
    text = json.dumps(as_dict(config))
    setup = session.prepare(site.config(text))
    state = initialize(setup).state

    def ask(**changes: Any) -> Ask:
        return replace(
            Ask("run1", 2, "train", False, state.shared, {}, 0, text, setup.network.fingerprint()), **changes
        )

    return tmp_path, site, text, ask


def tensors(found: Answer) -> Tensors:
    assert found.trained is not None
    assert found.trained.update is not None, found.trained.failure
    return found.trained.update.shared


def test_a_question_that_is_asked_again_is_answered_without_training_again(
    site_alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, site, _, ask = site_alone
    first = tensors(answer(site, ask()))
    monkeypatch.setattr(answering, "perform", lambda *a: pytest.fail("it trained again"))
    assert same(tensors(answer(site, ask())), first)


def test_a_clients_memory_advances_only_when_the_server_has_its_update(site_alone: Any) -> None:
    _, site, _, ask = site_alone
    answer(site, ask())
    lost = answer(
        site, ask(round=3)
    )  # the server never got the answer of round 3, and asks for round 4 as if there had been none
    fresh = answer(replace(site, state=site.state.with_name("fresh")), ask(round=3))
    assert same(tensors(lost), tensors(fresh))
    own, new = (
        read_tensors(p / "run1" / "answers" / "4.safetensors") for p in (site.state, site.state.with_name("fresh"))
    )
    assert same(own, new)


def test_accepted_memory_is_the_one_that_training_starts_from(site_alone: Any) -> None:
    _, site, _, ask = site_alone
    answer(site, ask())
    going_on = answer(site, ask(round=3, accepted=3))
    assert not going_on.notes
    a = read_tensors(site.state / "run1" / "answers" / "4.safetensors")
    again = replace(site, state=site.state.with_name("again"))
    answer(again, ask(round=3))
    b = read_tensors(again.state / "run1" / "answers" / "4.safetensors")
    assert same(
        {n: t for n, t in a.items() if n.startswith("shared/")}, {n: t for n, t in b.items() if n.startswith("shared/")}
    )
    assert not same(
        {n: t for n, t in a.items() if n.startswith("memory/")}, {n: t for n, t in b.items() if n.startswith("memory/")}
    )
    assert {p.name for p in (site.state / "run1" / "answers").iterdir()} == {
        f"{r}.{e}" for r in (3, 4) for e in ("json", "safetensors")
    }


def test_a_lost_state_directory_is_told_and_the_client_begins_anew(site_alone: Any) -> None:
    _, site, _, ask = site_alone
    found = answer(site, ask(round=5, accepted=4))
    assert found.notes == (
        "what this client kept after round 4 is not in its state-dir any more, or damaged: "
        "its own model starts again from the global model",
    )
    assert tensors(found)


def test_a_site_is_told_what_does_not_fit(site_alone: Any) -> None:
    folder, site, text, ask = site_alone
    told = introduce(site, text)
    assert (told["n_train"], told["n_test"], json.loads(told["facts"])["columns"][0]["count"]) == (320, 80, 0)
    data = np.load(folder / "data" / "north.npz")
    np.savez(folder / "wide.npz", x=np.zeros((9, 8, 9), np.uint8), y=np.arange(9) % 3)
    with pytest.raises(
        FlocoError, match=r"wide.npz: the run is about samples of shape \(8, 8\), and these have \(8, 9\)"
    ):
        introduce(replace(site, data=f"npz:{folder / 'wide.npz'}"), text)
    np.savez(folder / "other.npz", x=data["x"], y=data["y"] + 5)
    with pytest.raises(FlocoError, match=r"labels 10, 11, 12, 13, 14 are not among data.labels"):
        introduce(replace(site, data=f"npz:{folder / 'other.npz'}"), text)
    with pytest.raises(FlocoError, match="the network here is not the server's"):
        answer(site, ask(model="0123"))
    for key in ("client-id", "data", "state-dir"):
        config = {"client-id": "a", "data": "b.npz", "state-dir": "c"}
        del config[key]
        with pytest.raises(FlocoError, match=f"this node has no '{key}'"):
            SiteConfig.of(config)


def problem(found: Answer, question: Ask, honest: Expected) -> str | None:
    judged = check_answer(found, question, honest)
    return next((r.failure for r in (judged.trained, judged.evaluated) if r is not None and r.failure), None)


def test_what_a_site_sends_is_checked(site_alone: Any) -> None:
    _, site, text, ask = site_alone
    question = ask()
    found = answer(site, question)
    honest = expect(session.prepare(site.config(text)), "north", question)
    assert problem(found, question, honest) is None
    judged = answer(site, ask(evaluate=True))
    assert problem(judged, question, honest) is None
    assert "not one of 79 samples" in str(problem(judged, question, replace(honest, n_test=79)))
    assert found.trained is not None
    update = found.trained.update
    assert update is not None
    name = next(iter(update.shared))

    def changed(shared: Tensors, **more: Any) -> str | None:
        made = replace(update, shared=shared, **more)
        return problem(replace(found, trained=replace(found.trained, update=made)), question, honest)

    assert "lacks" in str(changed({n: t for n, t in update.shared.items() if n != name}))
    assert "nothing of that name" in str(changed({**update.shared, "more": torch.zeros(1)}))
    assert "and should have sent" in str(changed({**update.shared, name: update.shared[name][:1]}))
    assert "not finite" in str(changed({**update.shared, name: update.shared[name] * float("nan")}))
    assert "of up to 1e+30, and had got one of up to" in str(
        changed({**update.shared, name: update.shared[name] * 0 + 1e30})
    )
    assert "lacks" in str(
        changed({n: t for n, t in update.shared.items() if n != name}, extra={name: update.shared[name]})
    )
    assert "nothing of that name" in str(changed(dict(update.shared), extra={name: update.shared[name]}))
    assert "weight 0" in str(changed(dict(update.shared), weight=0))


def test_questions_and_answers_survive_the_way(site_alone: Any) -> None:
    _, site, _, ask = site_alone
    question = ask(own={"center": torch.tensor([0.5, 0.5], dtype=torch.float64)}, evaluate=True, round=0)
    back = Ask.of(question.records())
    assert same(back.shared, question.shared)
    assert same(back.own, question.own)
    assert replace(back, shared={}, own={}) == replace(question, shared={}, own={})
    found = answer(site, ask(evaluate=True))
    for share in (True, False):
        again = Answer.of(found.records(share_labels=share), Classification())
        assert same(tensors(again), tensors(found))
        assert again.evaluated is not None
        assert found.evaluated is not None
        one, other = again.evaluated.scores, found.evaluated.scores
        assert one is not None
        assert other is not None
        assert isinstance(one.global_, Score)
        assert isinstance(other.global_, Score)
        assert (one.global_ == other.global_) == share
        for metric in ("n", "accuracy", "balanced_accuracy", "loss", "ece", "brier"):
            assert getattr(one.global_, metric) == getattr(other.global_, metric)
    hidden = Answer.of(found.records(share_labels=False), Classification()).evaluated
    assert hidden is not None
    assert hidden.scores is not None
    assert hidden.scores.global_ is not None
    assert len(hidden.scores.global_.counts) == 1
    assert (hidden.scores.global_ + hidden.scores.global_).balanced_accuracy is None


def test_a_state_directory_is_written_by_one_at_a_time_and_read_meanwhile(site_alone: Any) -> None:
    _, site, _, ask = site_alone
    answer(site, ask())
    with closing(Store(site.state / "run1")):
        with pytest.raises(FlocoError, match="in use by another process"):
            Store(site.state / "run1", wait=0.1)
        assert package.open_run(site.state).progress.round == 2


def test_a_second_supernode_on_a_machine_is_told_of_its_port(tmp_path: Path) -> None:
    known = subprocess.run(
        [Path(sys.executable).with_name("flower-supernode"), "--help"], capture_output=True, text=True, check=True
    )
    assert "HTTP API (default: 9094)" in " ".join(known.stdout.split())
    assert floco("flower", "new", tmp_path / "app").exit_code == 0
    for page in (tmp_path / "app" / "README.md", Path(__file__).parents[1] / "docs" / "flower.md"):
        assert "--port 9095" in page.read_text()
        assert "9094" in page.read_text()


def test_an_app_needs_what_all_sites_share(tmp_path: Path) -> None:
    done = floco("flower", "new", tmp_path / "app", "-s", "data.source=sites")
    assert done.exit_code == 2
    assert "the sites must agree on data.labels, flower.shape: give" in done.output
    assert floco("flower", "new", tmp_path / "app").exit_code == 0
    made = run_settings(run_config(tmp_path / "app") | {"training.rounds": 70})
    assert (made.training.rounds, made.algorithm.assign_at) == (70, 35)
    assert (made.data.labels, made.flower.shape) == (tuple("0123456789"), (8, 8))
    assert floco("flower", "new", tmp_path / "app").exit_code == 2
    built = subprocess.run(
        [Path(sys.executable).with_name("flwr"), "build", "--app", tmp_path / "app"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert len(list(tmp_path.glob("*.fab"))) == 1


def test_an_app_takes_the_users_own_modules_along_and_what_they_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = (
        "from torch import nn\nimport widths\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    files = {n: (EXAMPLES / n).read_text() for n in ("fedavgm.py", "power_law.py")}
    files |= {"nets/__init__.py": "", "nets/small.py": net, "widths.py": "WIDTH = 10\n"}
    files["changes.py"] = "def none(batch, generator):\n    return batch\n"
    (tmp_path / "nets").mkdir()
    for name, text in {**files, "other.py": "raise SystemExit"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = [f"algorithm.name={OWN}", "model.name=nets.small:net", "data.split=power_law:PowerLaw", "data.clients=4"]
    chosen += ["data.augment=changes:none"]
    done = floco("flower", "new", "nets/app", *(part for text in chosen for part in ("-s", text)))
    assert done.exit_code == 0, done.output
    app = Path("nets/app")
    copied = {str(f.relative_to(app)): f.read_text() for f in app.rglob("*.py") if f.parent.name != "federation"}
    assert copied == files
    Path("federation.py").write_text((EXAMPLES / "fedavgm.py").read_text())
    done = floco("flower", "new", "second", "-s", "algorithm.name=federation:FedAvgM")
    assert done.exit_code == 2
    assert "a module of an app cannot be called federation" in done.output
    assert not Path("second").exists()


def test_an_app_of_sequences_reads_its_shape_as_data_channels_says(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "series.npz", x=draw.normal(size=(40, 9, 3)), y=np.arange(40) % 2)
    given = [f"data.source=npz:{tmp_path / 'series.npz'}", "data.split=iid", "data.clients=2", "data.channels=last"]
    done = floco("flower", "new", tmp_path / "app", *(part for text in given for part in ("-s", text)))
    assert done.exit_code == 0, done.output
    assert run_settings(run_config(tmp_path / "app")).flower.shape == (9, 3)


def run_config(app: Path) -> dict[str, Any]:
    """Return the settings that Flower hands to a ServerApp."""
    values = flatten_dict(tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"])
    assert values.pop("out") == "floco-run"
    return values


def test_settings_pass_through_flowers_run_configuration(tmp_path: Path) -> None:
    config = read(
        None,
        [
            'data.labels=["it\'s", "8]  # \\u007f"]',
            "flower.shape=[8, 8]",
            'algorithm.mix=["a", "b"]',
            "algorithm.radius=0.3",
        ],
    )
    write(tmp_path / "app", config)
    flat = run_config(tmp_path / "app")
    assert all(isinstance(v, str | int | float | bool) for v in flat.values())
    assert run_settings(flat) == config
    with pytest.raises(FlocoError, match=r"flower: unknown key 'site'; did you mean 'sites'"):
        run_settings({"flower.site": 3})


def test_the_demonstration_refuses_other_data(tmp_path: Path) -> None:
    done = floco("flower", "demo", "--out", tmp_path / "demo", "-s", "data.source=digits")
    assert done.exit_code == 2
    assert "has its own data and model" in done.output


def test_csv_of_failures_is_whole(federation: Federated) -> None:
    for name in federation.logs:
        with (federation.folder / f"run-{name}" / "failures.csv").open(newline="") as file:
            assert [r["reason"] for r in csv.DictReader(file)] == ["joined"] * 3


@pytest.mark.usefixtures("in_flower")
@pytest.mark.parametrize("name", ["fedavg", "floco"])
def test_flowers_local_privacy_clips_and_blurs_what_leaves(name: str, tmp_path: Path) -> None:
    from flwr.app import Context
    from flwr.clientapp.mod import LocalDpMod

    dealt(tmp_path)
    config = read_settings(
        tmp_path,
        name,
        "data.labels=" + json.dumps([str(i) for i in range(10)]),
        "flower.shape=[8,8]",
        "data.normalize=none",
    )
    text = json.dumps(as_dict(config))
    context = Context(1, 1, node(tmp_path, "north"), RecordDict(), {})
    setup = session.prepare(SiteConfig.of(context.node_config).config(text))
    question = Ask("run1", 0, "train", True, initialize(setup).state.shared, {}, 0, text, setup.network.fingerprint())

    def asked(mods: list[Any], state: str) -> Answer:
        own = Context(1, 1, {**node(tmp_path, "north"), "state-dir": str(tmp_path / state)}, RecordDict(), {})
        reply = client_app(mods=mods)(Message(question.records(), dst_node_id=1, message_type="train"), own)
        assert not reply.has_error(), reply.error
        return Answer.of(reply.content, setup.task)

    def moved(found: Answer) -> float:
        return float(sum((t - question.shared[n]).square().sum() for n, t in tensors(found).items())) ** 0.5

    plain = asked([], "plain")
    clipped = asked([LocalDpMod(0.01, 0.0, 1.0, 1e-5)], "clipped")
    noisy = asked([LocalDpMod(0.01, 0.01, 1.0, 1e-5)], "noisy")
    assert moved(plain) > 0.1
    assert moved(clipped) == pytest.approx(0.01, rel=1e-3)
    assert moved(noisy) > 2 * moved(clipped)
    assert problem(noisy, question, expect(setup, "north", question)) is None
    assert noisy.evaluated is not None
    assert noisy.evaluated.scores == plain.evaluated.scores if plain.evaluated else False


@pytest.mark.parametrize("name", ANY_NETWORK)
def test_every_methods_answer_is_one_that_the_server_takes(name: str, tmp_path: Path) -> None:
    check_an_answer(name, tmp_path)


@pytest.mark.parametrize("name", ["fedavg", "fedavg+ft", "floco", "local"])
@pytest.mark.parametrize("model", ["finetuned", "chosen"])
def test_a_site_takes_home_what_it_likes_and_says_so(name: str, model: str, tmp_path: Path) -> None:
    found, question, honest = check_an_answer(name, tmp_path, f"deliver.model={model}", "deliver.local_epochs=2")
    assert found.evaluated is not None
    assert bool(found.evaluated.taken) == (model == "chosen")
    odd = replace(found, evaluated=replace(found.evaluated, taken="another"))
    assert "it has chosen 'another', and can choose" in str(problem(odd, question, honest))


def test_samples_in_order_are_not_held_back_on_flower() -> None:
    settings = ["deliver.model=chosen", "data.order=position", "flower.shape=[2]", 'data.labels=["a", "b"]']
    with pytest.raises(
        FlocoError, match=r'deliver\.model = "chosen" holds samples back at random .* leave data\.order'
    ):
        check_settings(read(None, settings))


def check_an_answer(name: str, tmp_path: Path, *more: str) -> tuple[Answer, Ask, Expected]:
    """What a site says of one round, to which question, and what was expected."""
    dealt(tmp_path)
    raw = ["data.normalize=none", "training.rounds=2", "training.lr=0.001"]  # numbers up to 16: a small step
    config = read_settings(
        tmp_path, name, "data.labels=" + json.dumps([str(i) for i in range(10)]), "flower.shape=[8,8]", *raw, *more
    )
    text, site = (
        json.dumps(as_dict(config)),
        SiteConfig("north", f"npz:{tmp_path / 'data' / 'north.npz'}", tmp_path / "state"),
    )
    setup = session.prepare(site.config(text))
    state = initialize(setup).state
    message = setup.algorithm.message(state, "north", "train")
    question = Ask("run1", 0, "train", True, message.shared, message.own, 0, text, setup.network.fingerprint())
    found = Answer.of(answer(site, Ask.of(question.records())).records(share_labels=False), setup.task)
    told = ClientInfo(
        "north", *(len(part) for part in (setup.federation.clients[0].train, setup.federation.clients[0].test))
    )
    honest = expect(replace(setup, remote=(told,)), "north", question)
    assert problem(found, question, honest) is None
    assert found.trained is not None
    assert found.trained.update is not None
    setup.algorithm.aggregate(state, [found.trained.update], clients={"north": found.trained.update.weight})
    return found, question, honest


TOLD = {"format": FORMAT, "client": "west", "problem": "", "n_train": 3, "n_test": 1}
COLUMN = {"name": "", "shape": [8, 8], "dtype": "uint8", "channels": "none", "features": []}
COLUMN |= {"count": 192, "sum": [1.0], "square": [1.0]}
FACTS = {"inputs": "one", "table": [], "target": {"shape": [], "dtype": "int64", "names": []}, "statistics": []}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_train": -1}, "-1 samples to train"),
        ({"n_test": "x"}, "'x' to test"),
        ({"n_train": 4}, "n_train was 3, and is 4"),
        ({"dtype": "object"}, "type 'object' of an input must be one of uint8, int64, float32"),
        ({"format": 9}, "another version"),
        ({"problem": "no data"}, "no data"),
        ({"client": ""}, "1 to 100 printable characters"),
        ({"client": "a\nb"}, "1 to 100 printable characters"),
        ({"client": "(global test part)"}, "not begin with a bracket"),
        ({"sum": []}, "not those of its samples"),
        ({"square": [float("nan")]}, "not those of its samples"),
        ({"square": [-1.0]}, "not those of its samples"),
        ({"sum": [1.7e308]}, "not those of its samples"),
        ({"count": 2**61}, "not those of its samples"),
        ({"dtype": "float32"}, "and before they were uint8"),
        ({"client": "south", "dtype": "float32"}, "those of the other sites uint8"),
    ],
)
def test_what_a_site_tells_when_it_joins_is_checked(change: dict[str, Any], words: str) -> None:
    config = replace(read(None), flower=Flower(shape=(8, 8)), data=replace(read(None).data, labels=("0", "1")))

    def report(change: dict[str, Any]) -> dict[str, Any]:
        column = {k: change.get(k, v) for k, v in COLUMN.items()}
        text = json.dumps({**FACTS, "columns": [column]})
        return {**TOLD, **{k: v for k, v in change.items() if k not in column}, "facts": text}

    client, facts = admit(report({}), config, {})
    assert (client, facts) == ("west", {"n_train": 3, "n_test": 1, **FACTS, "columns": [COLUMN]})
    with pytest.raises(FlocoError, match=words):
        admit(report(change), config, {"west": facts})


def test_share_labels_is_yes_or_no() -> None:
    config = {"client-id": "a", "data": "b.npz", "state-dir": "c"}
    assert [SiteConfig.of({**config, "share-labels": v}).share_labels for v in (True, False, "true", "false")] == [
        True,
        False,
        True,
        False,
    ]
    with pytest.raises(FlocoError, match="true or false, got 'yes'"):
        SiteConfig.of({**config, "share-labels": "yes"})


def test_a_damaged_answer_is_trained_again_and_a_damaged_memory_is_told(site_alone: Any) -> None:
    _, site, _, ask = site_alone
    first = {n: t.clone() for n, t in tensors(answer(site, ask())).items()}
    file = site.state / "run1" / "answers" / "3.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert same(tensors(answer(site, ask())), first)
    file.write_bytes(file.read_bytes()[:100])
    assert "starts again from the global model" in answer(site, ask(round=3, accepted=3)).notes[0]


def test_a_damaged_copy_is_whole_again_after_the_same_question(site_alone: Any) -> None:
    _, site, _, ask = site_alone
    answer(site, ask())
    (site.state / "run1" / "checkpoint" / "2" / "state.safetensors").write_bytes(b"")
    answer(site, ask())
    assert same(package.open_run(site.state).progress.state.shared, dict(ask().shared))


def test_a_state_directory_of_another_client_is_refused_when_it_joins(site_alone: Any) -> None:
    _, site, text, ask = site_alone
    answer(site, ask())
    with pytest.raises(FlocoError, match='belongs to client "north": give client "nroth" one of its own'):
        introduce(replace(site, client="nroth"), text)


def test_what_is_added_to_a_checkpoint_stays_when_the_run_is_continued(tmp_path: Path) -> None:
    run = package.fit(
        package.model("mlp", package.load("digits").split(package.Folds(5), clients=10)),
        package.load("digits").split(package.Folds(5), clients=10),
        package.FedAvg(),
        rounds=1,
        out=tmp_path / "run",
    )
    assert run.path is not None
    with closing(Store(run.path)) as store:
        progress = store.load()
        store.add("failures", [{"round": 1, "client": "north", "reason": "told late"}])
        store.add("history", [{"round": 7}])
        store.amend(progress.counts, "failures")
    with closing(Store(run.path)) as store:
        store.rewind()
    assert [r["reason"] for r in rows(run.path / "failures.csv")] == ["told late"]
    assert [r["round"] for r in rows(run.path / "history.csv")] == ["1"]


@pytest.mark.soak
def test_a_regression_on_flower_is_the_run_in_one_process_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    parts = {}
    for n, site in zip((14, 30, 46), SITES, strict=True):
        x = np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)
        parts[site] = {"x": x, "y": np.stack([3e4 + 2e3 * x[:, 0] + n, x[:, 1]], 1)}
        np.savez(tmp_path / "data" / f"{site}.npz", **parts[site])
    joined = {name: np.concatenate([p[name] for p in parts.values()]) for name in ("x", "y")}
    np.savez(tmp_path / "data" / "all.npz", **joined, client=np.repeat(list(parts), (14, 30, 46)))
    config = read_settings(tmp_path, "floco+", "task.name=regression", "flower.shape=[4]")
    write(tmp_path / "app", config)
    with processes(tmp_path) as running:
        for site in SITES:
            running.node(site, node(tmp_path, site))
        run = running.run(tmp_path / "app", "--run-config", f'out="{tmp_path / "run"}"')
        log = "".join(running.lines(run))
    local = alone(config, tmp_path / "local")
    assert (tmp_path / "run" / "history.csv").read_bytes() == (local / "history.csv").read_bytes(), log
    done = floco("predict", tmp_path / "sites" / "north", "--client", "north", tmp_path / "data" / "north.npz")
    assert done.exit_code == 0, done.output
