"""The server against sites that are broken, lie, or change: its own loop over the real ClientApp, in this process."""

import json
import math
import re
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp.mod import LocalDpMod
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from conftest import ANY_NETWORK, Clock, adapted, alone, dealt, rows, same, two_classes_move_west
from floco.core.errors import FlocoError, RunFailed
from floco.flower import client_app, roster
from floco.flower.demo import SITES
from floco.flower.joining import admit
from floco.flower.protocol import FORMAT
from floco.flower.server_app import _Server
from floco.runs import source
from floco.runs.config import Config
from floco.runs.toml import read
from floco.storage.files import read_tensors, to_safetensors

NODES = dict(zip((10, 11, 12), SITES, strict=True))
Tamper = Callable[[int, Message, Message], Message | None]


class InProcess:
    """A Grid whose nodes answer at once, in this process; `tamper` may change a reply, or take it away (None).

    What travels is what Flower makes of it for the wire.
    """

    def __init__(self, folder: Path, *, tamper: Tamper | None = None, mods: list[Any] | None = None) -> None:
        self.configs = {
            n: {"client-id": s, "data": str(folder / "data" / f"{s}.npz"), "state-dir": str(folder / "sites" / s)}
            for n, s in NODES.items()
        }
        self.app, self.tamper = client_app(mods=mods or []), tamper
        self.replies: dict[str, Message | Exception] = {}
        self.number = 0
        self.gone: set[int] = set()

    def get_node_ids(self) -> list[int]:
        return [n for n in self.configs if n not in self.gone]

    def push_messages(self, messages: list[Message]) -> list[str]:
        return [self._push(m) for m in messages]

    def _push(self, message: Message) -> str:
        self.number += 1
        name, node = str(self.number), message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = name
        if node in self.gone or node not in self.configs:
            return name
        sent = message_from_proto(message_to_proto(message))
        reply: Message | None = self.app(sent, Context(1, node, dict(self.configs[node]), RecordDict(), {}))
        if self.tamper is not None and reply is not None:
            reply = self.tamper(node, message, reply)
        if reply is not None:
            self.replies[name] = message_from_proto(message_to_proto(reply))
        return name

    def pull_messages(self, names: list[str]) -> list[Message]:
        return [self.replies.pop(n) for n in names if n in self.replies]


@pytest.fixture(autouse=True)
def in_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages can be made, as in a process of Flower's, which knows who it is; and waiting takes no time."""
    for key in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, key, 1, raising=False)
    monkeypatch.setattr(roster, "time", Clock())
    monkeypatch.setattr(roster, "_MENDED", 0.0)


def configuration(folder: Path, name: str, *more: str) -> Config:
    dealt_file = dealt(folder)
    own = ["algorithm.assign_at=2", "algorithm.endpoints=3"] if name.startswith("floco") else []
    data = [
        f"data.source=npz:{dealt_file}",
        "data.split=natural",
        "data.labels=" + json.dumps([str(i) for i in range(10)]),
        "flower.shape=[8,8]",
    ]
    base = [
        "training.rounds=3",
        "training.fraction=1.0",
        "run.evaluate_every=2",
        "run.engine=serial",
        "flower.sites=3",
        "flower.deadline=300",
        "flower.wait=40",
    ]
    return source.resolve_paths(read(None, [*data, f"algorithm.name={name}", *own, *base, *more]))


def carried(folder: Path, config: Config, grid: Any) -> list[tuple[int, str, str]]:
    """Carry a run to its end and return the lines of failures.csv, save who joined."""
    _Server(grid, config, folder / "run").run()
    assert [int(r["round"]) for r in rows(folder / "run" / "history.csv")][-1] == config.training.rounds
    assert all(
        torch.isfinite(t).all()
        for t in read_tensors(folder / f"run/checkpoint/{config.training.rounds}/state.safetensors").values()
    )
    return [
        (int(r["round"]), r["client"], r["reason"])
        for r in rows(folder / "run" / "failures.csv")
        if r["reason"] != "joined"
    ]


def assert_same_run(one: Path, other: Path, rounds: int) -> None:
    """The same tables and the same last model, to the bit."""
    for table in ("history.csv", "clients.csv"):
        assert (one / table).read_bytes() == (other / table).read_bytes(), table
    state = f"checkpoint/{rounds}/state.safetensors"
    assert same(read_tensors(one / state), read_tensors(other / state))


@pytest.mark.parametrize("name", ANY_NETWORK)
def test_a_run_over_messages_is_the_run_in_one_process_to_the_bit(name: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, name, "training.rounds=4", "training.fraction=0.67")
    grid = InProcess(tmp_path)
    for site in grid.configs.values():
        site["share-labels"] = "true"
    assert not carried(tmp_path, config, grid)
    assert_same_run(tmp_path / "run", alone(config, tmp_path / "alone"), 4)


@pytest.mark.parametrize("name", ["fedavg", "ffa-lora", "fedsa-lora", "floco"])
def test_adapters_over_messages_are_those_in_one_process_to_the_bit(name: str, tmp_path: Path) -> None:
    mixed = ["algorithm.mix=lora", "algorithm.centers=own"] if name == "floco" else []
    config = configuration(tmp_path, name, f"model.name={__name__}:with_adapters", *mixed)
    grid = InProcess(tmp_path)
    for site in grid.configs.values():
        site["share-labels"] = "true"
    assert not carried(tmp_path, config, grid)
    assert_same_run(tmp_path / "run", alone(config, tmp_path / "alone"), 3)


def with_adapters() -> nn.Module:
    return nn.Sequential(nn.Flatten(), adapted(64, 10))


def test_all_options_of_training_over_messages_are_those_in_one_process_to_the_bit(tmp_path: Path) -> None:
    options = ["optimizer=adamw", "lr=0.003", "schedule=linear", "warmup=1", "clip=1", "steps=7"]
    config = configuration(tmp_path, "fedavg+ft", "data.augment=flip+crop", *(f"training.{o}" for o in options))
    grid = InProcess(tmp_path)
    for site in grid.configs.values():
        site["share-labels"] = "true"
    assert not carried(tmp_path, config, grid)
    assert_same_run(tmp_path / "run", alone(config, tmp_path / "alone"), 3)


def with_arrays(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[RecordDict], None]:
    def tamper(content: RecordDict) -> None:
        if "arrays" in content:
            content["arrays"] = ArrayRecord(
                change({n: torch.from_numpy(a.numpy().copy()) for n, a in content.array_records["arrays"].items()})
            )

    return tamper


def elsewhere(content: RecordDict) -> None:
    """Send the tensors, but where a method's extra ones belong."""
    if "arrays" in content:
        sent = {n: torch.from_numpy(a.numpy().copy()) for n, a in content.array_records["arrays"].items()}
        content["arrays"], content.config_records["answer"]["extra"] = ArrayRecord({}), to_safetensors(sent)


def judged(**change: Any) -> Callable[[RecordDict], None]:
    """Change the numbers of an evaluation; None takes one away."""

    def tamper(content: RecordDict) -> None:
        for name in content.metric_records:
            for key, value in change.items():
                if value is None:
                    del content.metric_records[name][key]
                else:
                    content.metric_records[name][key] = value

    return tamper


def unjudged(content: RecordDict) -> None:
    for name in list(content.metric_records):
        del content[name]


def garbage(content: RecordDict) -> None:
    content.config_records["answer"]["extra"] = b"no tensors"


def answered(**change: Any) -> Callable[[RecordDict], None]:
    """Change what an answer says besides tensors and scores; what it does not say stays unsaid."""

    def tamper(content: RecordDict) -> None:
        answer = content.config_records["answer"]
        answer.update({key: value for key, value in change.items() if key in answer})

    return tamper


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[RecordDict], None]:
    """Change one tensor of an update, and none where it is not sent."""
    return with_arrays(lambda t: {n: change(v) if n == name else v for n, v in t.items()})


def extra(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[RecordDict], None]:
    """Change the tensors of an update that are sent beside the shared ones."""

    def tamper(content: RecordDict) -> None:
        answer = content.config_records["answer"]
        if "extra" in answer:
            answer["extra"] = to_safetensors({n: change(t) for n, t in safetensors.torch.load(answer["extra"]).items()})

    return tamper


def of_north(tamper: Callable[[RecordDict], None], *kinds: str) -> Tamper:
    """Change what the site `north` answers, to questions of these kinds (none: of all)."""

    def north_lies(node: int, message: Message, reply: Message) -> Message:
        kind = message.metadata.message_type
        if node == 11 and kind != "query" and (not kinds or kind in kinds):
            tamper(reply.content)
        return reply

    return north_lies


def normed(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A network with statistics and a counter."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(shape), 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes)
    )


NORMED = f"model.name={__name__}:normed"


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (elsewhere, "its update lacks"),
        (with_arrays(lambda t: {n: v * float("nan") for n, v in t.items()}), "not finite"),
        (with_arrays(lambda t: {n: torch.full_like(v, 3e38) for n, v in t.items()}), "of up to 3e\\+38"),
        (with_arrays(lambda t: {**t, "more": torch.zeros(2)}), "nothing of that name"),
        (with_arrays(lambda t: {n: v.double() for n, v in t.items()}), "torch.float64"),
        (garbage, "cannot be read"),
        (judged(gaps=[1.7e308] * 15), "not one of 80 samples"),
        (judged(balanced=None), "not one of 80 samples"),
        (judged(balanced=-77.0), "not one of 80 samples"),
        (judged(losses=[1.0]), "cannot be read"),
        (judged(counts=[79]), "not one of 80 samples"),
        (unjudged, "not one of 80 samples"),
    ],
)
def test_a_site_that_sends_anything_is_left_out_and_named(
    tamper: Callable[[RecordDict], None], words: str, tmp_path: Path
) -> None:
    failures = carried(
        tmp_path, configuration(tmp_path, "floco", "run.evaluate_every=1"), InProcess(tmp_path, tamper=of_north(tamper))
    )
    assert failures
    assert {client for _, client, _ in failures} == {"north"}
    for _, _, reason in failures:
        assert re.search(words, reason), reason


@pytest.mark.parametrize(
    ("name", "tamper", "words"),
    [
        (
            "fedavg",
            tensor("4.weight", lambda t: t * 0 + 1001),
            r"it sent a '4.weight' of up to 1e\+03, and had got one of up to 0\.\d+$",
        ),
        (
            "fedavg",
            tensor("2.running_mean", lambda t: t * 0 - 2e6),
            r"it sent a '2.running_mean' of up to 2e\+06, and had got one of up to \d",
        ),
        (
            "fedavg",
            tensor("2.running_var", lambda t: t * 0 + 3e7),
            r"it sent a '2.running_var' of up to 3e\+07, and had got one of up to \d",
        ),
        (
            "fedavg",
            tensor("2.running_var", lambda t: t - 2 * t.max()),
            r"it sent a '2.running_var' down to -\d\S*, and had got one down to \d\S*: it is never negative",
        ),
        ("fedavg", tensor("2.running_var", lambda t: t * float("inf")), "it sent a '2.running_var' that is not finite"),
        (
            "pfedme",
            tensor("2.num_batches_tracked", lambda t: t * 0 - 1),
            r"it sent a '2.num_batches_tracked' of -1, and had got one of \d+",
        ),
        (
            "fedavg",
            tensor("2.num_batches_tracked", lambda t: t + 1_000_000),
            r"it sent a '2.num_batches_tracked' of 10000\d0, and had got one of \d+",
        ),
        (
            "fedavg",
            tensor("2.num_batches_tracked", lambda t: t * 0 + 2**63 - 1),
            r"it sent a '2.num_batches_tracked' of 9223372036854775807, and",
        ),
        (
            "fedavg",
            tensor("2.num_batches_tracked", lambda t: t * 0 - 2**63),
            r"it sent a '2.num_batches_tracked' of -9223372036854775808, and",
        ),
        (
            "scaffold",
            extra(lambda t: t * 0 + 1001),
            r"it sent a 'variate/\S+' of up to 1e\+03, and had got one of up to \d",
        ),
        ("scaffold", extra(lambda t: t * float("nan")), r"it sent a 'variate/\S+' that is not finite"),
        ("fedavg", answered(weight=321), "with weight 321, and was asked to train and has 320 samples"),
        (
            "fedavg",
            answered(weight=2**62),
            "with weight 4611686018427387904, and was asked to train and has 320 samples",
        ),
        ("fedavg", answered(**{"trained.steps": 21}), "it says 21 steps, and should have taken 20$"),
        ("fedavg", answered(**{"trained.steps": 2**39}), "it says 549755813888 steps, and should have taken 20$"),
        ("fedavg", answered(**{"trained.steps": -20}), "it says -20 steps, and should have taken 20$"),
        ("pfedme", answered(**{"trained.steps": 0}), "it says 0 steps, and should have taken 120$"),
        ("fedavg", answered(**{"trained.steps": 2**39, "trained.failed": True, "trained.failure": "boom"}), "^boom$"),
        ("fedavg", answered(**{"evaluated.steps": 1}), "it says 1 steps, and should have taken 0$"),
        ("fedavg+ft", answered(**{"evaluated.steps": 2**39}), "it says 549755813888 steps, and should have taken 20$"),
        ("fedavg", judged(losses=8.1e7), r"its mean loss is 1.01e\+06, and is counted as 1e\+06$"),
        ("fedavg", judged(losses=1e299), r"its mean loss is 1.25e\+297, and is counted as 1e\+06$"),
        ("fedavg", judged(losses=-1e-3), "not one of 80 samples"),
        ("fedavg", judged(squares=161.0), "not one of 80 samples"),
        ("fedavg", judged(gaps=[80.0] * 15), "not one of 80 samples"),
        ("fedavg", judged(counts=[2**40], right=[2**40]), "not one of 80 samples"),
    ],
)
def test_every_number_and_tensor_of_a_site_is_checked(
    name: str, tamper: Callable[[RecordDict], None], words: str, tmp_path: Path
) -> None:
    config = configuration(tmp_path, name, NORMED, "training.epochs=1", "training.batch_size=16")
    failures = carried(tmp_path, config, InProcess(tmp_path, tamper=of_north(tamper)))
    assert {client for _, client, _ in failures} == {"north"}
    for _, _, reason in failures:
        assert re.search(words, reason), reason
    most = 3 * 2 * 20 * {"pfedme": 6}.get(name, 1)  # three sites, two rounds between two evaluations
    for row in rows(tmp_path / "run" / "history.csv"):
        assert 0 <= int(row["steps"]) <= most
        assert 0 <= int(row["steps_adapt"]) <= most
        assert 0 <= float(row["loss_global"]) <= 1e6 / 2  # of three sites, two or more are sound


def test_a_signal_for_the_assignment_is_checked_as_any_update(tmp_path: Path) -> None:
    probes = of_north(with_arrays(lambda t: {n: v * 0 - 2e3 for n, v in t.items()}), "train.probe")
    failures = carried(
        tmp_path, configuration(tmp_path, "floco", "training.fraction=0.34", NORMED), InProcess(tmp_path, tamper=probes)
    )
    assert [(round_, client) for round_, client, _ in failures] == [(2, "north")]
    assert re.search(r"it sent a '4.weight' of up to 2e\+03, and had got one of up to 0\.\d+$", failures[0][2])


@pytest.mark.parametrize("name", ANY_NETWORK)
def test_what_an_honest_site_sends_is_taken(name: str, tmp_path: Path) -> None:
    """Of a network with statistics and counters, several epochs, some who only probe."""
    more = [
        "training.epochs=2",
        "training.fraction=0.67",
        "training.rounds=4",
        "training.batch_size=20",
        "run.evaluate_every=1",
    ]
    assert not carried(tmp_path, configuration(tmp_path, name, NORMED, *more), InProcess(tmp_path))


def test_what_an_honest_site_sends_is_taken_where_statistics_stay(tmp_path: Path) -> None:
    assert not carried(
        tmp_path,
        configuration(tmp_path, "floco+", NORMED, "training.buffers=local", "algorithm.personal_epochs=2"),
        InProcess(tmp_path),
    )


HUGE = 2**36


@pytest.mark.parametrize("name", ["fedavg", "fedavg+ft", "scaffold", "fedrod", "floco"])
def test_the_server_holds_nothing_of_the_size_that_a_site_says(name: str, tmp_path: Path) -> None:
    """North says that it has half a terabyte of positions, and all else that goes with it."""

    def boasts(node: int, message: Message, reply: Message) -> Message:
        content = reply.content
        if node == 11:
            answer = content.config_records["answer"]
            sizes = (
                {"n_train": HUGE, "n_test": HUGE}
                if message.metadata.message_type == "query"
                else {"weight": HUGE, "trained.steps": HUGE // 16}
            )
            answer.update({k: v for k, v in sizes.items() if k in answer})
            if answer.get("evaluated.steps"):
                answer["evaluated.steps"] = HUGE // 16
            judged(counts=[HUGE], right=[HUGE // 2])(content)
        return reply

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = configuration(
        tmp_path,
        name,
        "data.normalize=none",
        f"flower.most_samples={HUGE}",
        "training.epochs=1",
        "training.batch_size=16",
    )
    assert not carried(tmp_path, config, InProcess(tmp_path, tamper=boasts))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2**29
    last = {r["client"]: r for r in rows(tmp_path / "run" / "clients.csv")[-3:]}["north"]
    assert (int(last["n_train"]), int(last["n_test"]), int(last["participated"])) == (HUGE, HUGE, 3)


def test_a_reply_that_flower_cannot_read_is_that_nodes_failure(tmp_path: Path) -> None:
    class Broken(InProcess):
        def pull_messages(self, names: list[str]) -> list[Message]:
            found = super().pull_messages(names)
            if any(m.metadata.src_node_id == 11 for m in found) and self.number > 3:
                raise ValueError("garbage on the wire")
            return found

    def named(node: int, message: Message, reply: Message) -> Message:
        reply.metadata.__dict__["_src_node_id"] = node
        return reply

    failures = carried(tmp_path, configuration(tmp_path, "fedavg"), Broken(tmp_path, tamper=named))
    assert {(client, reason) for _, client, reason in failures} == {
        ("north", "its answer cannot be read: ValueError: garbage on the wire")
    }


def test_what_a_site_says_is_short_and_one_line(tmp_path: Path) -> None:
    def talkative(node: int, message: Message, reply: Message) -> Message:
        if node == 11 and message.metadata.message_type == "train":
            reply.content.config_records["answer"]["notes"] = ["a\nb" * 1000] * 1000
        return reply

    failures = carried(tmp_path, configuration(tmp_path, "fedavg"), InProcess(tmp_path, tamper=talkative))
    assert len(failures) == 8 * 3
    assert all(len(reason) < 510 and "\n" not in reason for _, _, reason in failures)


@pytest.mark.parametrize(
    "tamper",
    [
        answered(client="a\nb" * 1000),
        answered(purpose="a\nb" * 1000),
        answered(weight="a\nb" * 1000),
        answered(**{"trained.steps": "9" * 4000}),
        answered(**{"trained.failed": True, "trained.failure": "a\nb" * 1000}),
        with_arrays(lambda t: {**t, "a\nb" * 1000: torch.zeros(2)}),
    ],
)
def test_what_is_said_of_a_site_is_short_and_one_line(tamper: Callable[[RecordDict], None], tmp_path: Path) -> None:
    failures = carried(tmp_path, configuration(tmp_path, "fedavg"), InProcess(tmp_path, tamper=of_north(tamper)))
    assert failures
    assert all(client == "north" and len(reason) < 600 and "\n" not in reason for _, client, reason in failures)


def test_an_error_of_a_site_is_short_and_one_line(tmp_path: Path) -> None:
    def never(node: int, message: Message, reply: Message) -> Message:
        return (
            Message(Error(0, "a\nb" * 1000), reply_to=message)
            if node == 11 and message.metadata.message_type == "train"
            else reply
        )

    failures = carried(tmp_path, configuration(tmp_path, "fedavg"), InProcess(tmp_path, tamper=never))
    assert len(failures) >= 3
    assert all(len(reason) < 600 and "\n" not in reason for _, _, reason in failures)


def told(content: RecordDict, path: str, value: Any) -> None:
    """Change what a site says of itself when it joins; a path such as `columns.0.sum` is into its facts."""
    answer = content.config_records["answer"]
    if path in answer:
        answer[path] = value
        return
    facts = place = json.loads(str(answer["facts"]))
    *way, last = (int(p) if p.isdigit() else p for p in path.split("."))
    for part in way:
        place = place[part]
    place[last] = value
    answer["facts"] = json.dumps(facts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns.0.sum": 5}, "cannot be read: TypeError"),
        ({"columns.0.sum": ["a"]}, "cannot be read: ValueError"),
        ({"columns.0.sum": [1e30]}, "not those of its samples"),
        ({"columns.0.sum": [float("nan")]}, "not those of its samples"),
        ({"columns.0.square": [-1e-9]}, "not those of its samples"),
        ({"columns.0.square": [1e60]}, "not those of its samples"),
        ({"columns.0.square": [float("nan")]}, "not those of its samples"),
        ({"client": "a\nb"}, "1 to 100 printable characters"),
        ({"n_train": "many"}, "'many' samples to train"),
        ({"n_train": 0}, "has 0 samples to train and 80 to test: .* flower.most_samples = 10000000"),
        ({"n_train": 10_000_001}, "10000001 samples to train and 80 to test: .* flower.most_samples = 10000000"),
        ({"n_test": 2**39}, "549755813888 to test: .* flower.most_samples = 10000000"),
        ({"columns.0.count": 2**61}, "not those of its samples"),
    ],
)
def test_a_site_that_says_anything_when_it_joins_stays_outside(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    def lie(node: int, message: Message, reply: Message) -> Message:
        if node == 11 and message.metadata.message_type == "query":
            for key, value in change.items():
                told(reply.content, key, value)
            reply.content.config_records["answer"]["more"] = b"\xff"
        return reply

    failures = carried(tmp_path, configuration(tmp_path, "fedavg", "flower.sites=2"), InProcess(tmp_path, tamper=lie))
    assert [reason for _, _, reason in failures if re.search(f"cannot join: .*{words}", reason)], failures
    assert {r["client"] for r in rows(tmp_path / "run" / "clients.csv")} == {"east", "south"}


@pytest.mark.parametrize(("total", "square"), [(0.0, 0.0), (19200.0, 0.0), (-19200.0, 1e-30), (1e29, 1e59)])
def test_sums_that_samples_can_have_are_taken(total: float, square: float) -> None:
    """Of a constant channel too, whose deviations from its own mean are zero whatever its sum."""
    column = {"name": "", "shape": [8, 8], "dtype": "float32", "channels": "none", "features": []}
    target = {"shape": [], "dtype": "int64", "names": []}
    column |= {"count": 192, "sum": [total], "square": [square]}
    facts = {"inputs": "one", "columns": [column], "table": [], "target": target, "statistics": []}
    told = {"format": FORMAT, "client": "west", "n_train": 3, "n_test": 1, "facts": json.dumps(facts)}
    config = read(None, ["flower.shape=[8,8]", "flower.most_samples=3"])
    config = replace(config, data=replace(config.data, labels=("0", "1")))
    assert admit(told, config, {})[1]["columns"][0]["square"] == [square]
    with pytest.raises(
        FlocoError,
        match="3 samples to train and 1 to test: the first must be at least 1, .* flower.most_samples = 2",
    ):
        admit(told, replace(config, flower=replace(config.flower, most_samples=2)), {})


def test_a_client_that_always_fails_does_not_stop_the_run(tmp_path: Path) -> None:
    def never(node: int, message: Message, reply: Message) -> Message:
        return (
            Message(Error(0, "boom"), reply_to=message)
            if node == 11 and message.metadata.message_type == "train"
            else reply
        )

    failures = carried(
        tmp_path,
        configuration(tmp_path, "fedavg", "training.fraction=0.34", "training.rounds=6"),
        InProcess(tmp_path, tamper=never),
    )
    assert {(client, reason) for _, client, reason in failures} == {("north", "it did not answer: boom")}
    last = {r["client"]: int(r["participated"]) for r in rows(tmp_path / "run" / "clients.csv")[-3:]}
    assert sum(last.values()) == 6
    assert last["north"] == 0


def test_too_few_clients_end_the_run_and_it_continues_when_that_is_mended(tmp_path: Path) -> None:
    broken = {11, 12}

    def some(node: int, message: Message, reply: Message) -> Message:
        return (
            Message(Error(0, "boom"), reply_to=message)
            if node in broken and message.metadata.message_type == "train"
            else reply
        )

    config, grid = configuration(tmp_path, "fedavg"), InProcess(tmp_path, tamper=some)
    with pytest.raises(
        RunFailed, match=r"round 1: north, south failed, and of the 3 sites flower.quorum = 0.5 must not"
    ):
        carried(tmp_path, config, grid)
    broken.clear()
    assert carried(tmp_path, config, grid) == [
        (1, "north", "it did not answer: boom"),
        (1, "south", "it did not answer: boom"),
    ]


def test_a_second_node_with_a_clients_id_is_refused_while_rounds_are_under_way(tmp_path: Path) -> None:
    def comes(node: int, message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train":
            grid.configs[20] = {**grid.configs[11], "state-dir": str(tmp_path / "twin")}
        return reply

    grid = InProcess(tmp_path, tamper=comes)
    failures = carried(tmp_path, configuration(tmp_path, "fedavg"), grid)
    assert {client for _, client, _ in failures} == {"north"}
    assert "nodes 11 and 20 both have client-id" in failures[0][2]
    assert all(int(r["participated"]) == 3 for r in rows(tmp_path / "run" / "clients.csv")[-3:])


def test_a_site_that_is_away_is_waited_for_and_then_left_out(tmp_path: Path) -> None:
    def leaves(node: int, message: Message, reply: Message) -> Message:
        if (
            node == 12
            and message.metadata.message_type == "train"
            and message.content.config_records["ask"]["round"] == 1
        ):
            grid.gone.add(12)
        return reply

    grid = InProcess(tmp_path, tamper=leaves)
    failures = carried(tmp_path, configuration(tmp_path, "fedavg", "flower.quorum=1.0"), grid)
    assert (3, "south", "is away for more than 40 s: the run goes on without it until it is back") in failures


def test_a_site_that_comes_back_with_other_data_is_told(tmp_path: Path) -> None:
    def swaps(node: int, message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train" and 12 in grid.configs:
            grid.configs[21] = {**grid.configs.pop(12), "data": str(tmp_path / "data" / "all.npz")}
        return reply

    grid = InProcess(tmp_path, tamper=swaps)
    failures = carried(tmp_path, configuration(tmp_path, "fedavg"), grid)
    assert any(
        client == "south"
        and 'the data of client "south" have changed since it joined this run: n_train was 320, and is 960' in reason
        for _, client, reason in failures
    )


def test_a_client_id_that_was_a_slip_is_forgotten(tmp_path: Path) -> None:
    def corrected(node: int, message: Message, reply: Message) -> Message | None:
        if message.metadata.message_type == "train" and node == 10:
            number = message.content.config_records["ask"]["round"]
            if number == 0:
                grid.gone.clear()
            elif 11 in grid.configs:
                grid.configs[22] = {
                    **grid.configs.pop(11),
                    "client-id": "north",
                    "state-dir": str(tmp_path / "sites" / "other"),
                }
        return None if node == 11 and message.metadata.message_type == "train" else reply

    config, grid = (
        configuration(tmp_path, "fedavg", "flower.quorum=0.3", "training.rounds=8", "flower.sites=2", "flower.wait=5"),
        InProcess(tmp_path, tamper=corrected),
    )
    grid.gone.add(11)
    grid.configs[11]["client-id"] = "nroth"
    carried(tmp_path, config, grid)
    assert {r["client"] for r in rows(tmp_path / "run" / "clients.csv") if r["round"] == "8"} == {
        "east",
        "north",
        "south",
    }


@pytest.mark.parametrize("name", ["fedavg", "floco"])
def test_a_whole_run_with_flowers_local_privacy(name: str, tmp_path: Path) -> None:
    failures = carried(
        tmp_path, configuration(tmp_path, name), InProcess(tmp_path, mods=[LocalDpMod(1.0, 0.01, 1.0, 1e-5)])
    )
    assert not failures
    assert all(int(r["participated"]) == 3 for r in rows(tmp_path / "run" / "clients.csv")[-3:])


def test_flowers_local_privacy_and_a_round_that_is_drawn_again(tmp_path: Path) -> None:
    def once(node: int, message: Message, reply: Message) -> Message:
        return (
            Message(Error(0, "boom"), reply_to=message)
            if node == 11 and message.metadata.message_type == "train"
            else reply
        )

    grid = InProcess(tmp_path, mods=[LocalDpMod(1.0, 0.01, 1.0, 1e-5)], tamper=once)
    failures = carried(tmp_path, configuration(tmp_path, "fedavg", "flower.quorum=0.6", "training.fraction=0.67"), grid)
    assert {client for _, client, _ in failures} == {"north"}  # who was asked twice answered from its disk


def test_before_there_is_a_run_a_slip_leaves_no_trace(tmp_path: Path) -> None:
    def corrected(node: int, message: Message, reply: Message) -> Message:
        if node == 11 and grid.configs[11]["client-id"] == "nroth":
            grid.configs[23] = {**grid.configs.pop(11), "client-id": "north"}
            grid.gone.clear()
        return reply

    config, grid = configuration(tmp_path, "fedavg", "flower.wait=5"), InProcess(tmp_path, tamper=corrected)
    grid.configs[11]["client-id"] = "nroth"
    grid.gone.add(12)
    carried(tmp_path, config, grid)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "data").symlink_to(tmp_path / "data")
    carried(plain, config, InProcess(plain))
    assert (tmp_path / "run" / "history.csv").read_bytes() == (plain / "run" / "history.csv").read_bytes()


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
@pytest.mark.parametrize("more", [[], [NORMED]], ids=["plain", "normed"])
@pytest.mark.parametrize("scale", [100, 990])
def test_a_bad_round_that_is_averaged_does_not_end_the_run(
    scale: int, more: list[str], name: str, tmp_path: Path
) -> None:
    """Parameters are wrong but within the limits: what honest sites say of that model is large, and not refused."""

    def wild(node: int, message: Message, reply: Message) -> Message:
        if (
            node == 11
            and message.metadata.message_type == "train"
            and message.content.config_records["ask"]["round"] == 0
        ):
            with_arrays(lambda t: {n: v.sign() * scale if n.endswith(("weight", "bias")) else v for n, v in t.items()})(
                reply.content
            )
        return reply

    config = configuration(tmp_path, name, "run.evaluate_every=1", "training.lr=0.01", *more)
    failures = carried(tmp_path, config, InProcess(tmp_path, tamper=wild))
    assert all(", and is counted as" in reason for _, _, reason in failures), failures
    assert all(int(r["participated"]) == 3 for r in rows(tmp_path / "run" / "clients.csv")[-3:])


def test_a_silent_node_is_woken_three_times_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []

    def silent(node: int, message: Message, reply: Message) -> Message | None:
        woken.extend([node] * (message.metadata.message_type == "query.wake"))
        return None if node == 11 else reply

    monkeypatch.setattr(roster, "_MENDED", 3600.0)
    carried(tmp_path, configuration(tmp_path, "fedavg", "flower.sites=2"), InProcess(tmp_path, tamper=silent))
    assert woken == [11] * 3


class Stop(Exception):
    """The server is killed."""


@pytest.mark.parametrize("rounds", [3, pytest.param(6, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", ["floco+", "scaffold"])
def test_a_server_that_is_killed_anywhere_and_started_again_gives_the_same_bits(
    name: str, rounds: int, tmp_path: Path
) -> None:
    class Dying(InProcess):
        calls, last = 0, 0

        def tick(self) -> None:
            self.calls += 1
            if self.calls == self.last:
                raise Stop

        def get_node_ids(self) -> list[int]:
            self.tick()
            return super().get_node_ids()

        def push_messages(self, messages: list[Message]) -> list[str]:
            names = super().push_messages(messages)
            self.tick()
            return names

    config = configuration(tmp_path, name, "training.fraction=0.67", f"training.rounds={rounds}")
    carried(tmp_path, config, InProcess(tmp_path))
    for last in range(1, 100):
        again = tmp_path / str(last)
        again.mkdir()
        (again / "data").symlink_to(tmp_path / "data")
        dying = Dying(again)
        dying.last = last
        try:
            _Server(dying, config, again / "run").run()
        except Stop:
            assert not any("starts again" in reason for _, _, reason in carried(again, config, InProcess(again)))
            assert_same_run(again / "run", tmp_path / "run", rounds)
        else:
            assert last > 3 * rounds
            return


def test_a_state_directory_is_one_clients(tmp_path: Path) -> None:
    config, grid = configuration(tmp_path, "floco+"), InProcess(tmp_path)
    grid.configs[10]["state-dir"] = grid.configs[11]["state-dir"]
    failures = carried(tmp_path, config, grid)
    assert {client for _, client, _ in failures} <= {"east", "north"}
    assert all("belongs to client" in reason for _, _, reason in failures)
    kept = [c for c in ("east", "north") if c not in {client for _, client, _ in failures}]
    assert len(kept) == 1


def test_a_damaged_copy_of_the_run_at_a_site_is_made_anew(tmp_path: Path) -> None:
    damaged: list[Path] = []

    def damage(node: int, message: Message, reply: Message) -> Message:
        if node == 11 and message.metadata.message_type == "train" and not damaged:
            damaged.extend((tmp_path / "sites" / "north").glob("*/checkpoint/*/state.safetensors"))
            damaged[0].write_bytes(b"")
        return reply

    assert not carried(tmp_path, configuration(tmp_path, "floco+"), InProcess(tmp_path, tamper=damage))
    assert damaged


def test_an_absent_site_ends_the_wait_with_who_has_joined(tmp_path: Path) -> None:
    config, grid = configuration(tmp_path, "fedavg"), InProcess(tmp_path)
    grid.gone.add(12)
    with pytest.raises(FlocoError, match=r"2 of 3 sites have joined after 40 s \(east, north\)"):
        carried(tmp_path, config, grid)


def asked_in(round_: int, message: Message) -> bool:
    """Whether a message asks to train in the round after this one."""
    kind, content = message.metadata.message_type, message.content
    return kind == "train" and content.config_records["ask"]["round"] == round_


def test_the_evaluation_in_an_answer_counts_where_its_update_is_refused(tmp_path: Path) -> None:
    broken = with_arrays(lambda t: {n: v * float("nan") for n, v in t.items()})

    def once(node: int, message: Message, reply: Message) -> Message:
        if node == 11 and asked_in(2, message):  # which asks for an evaluation of round 2 too
            broken(reply.content)
        return reply

    failures = carried(tmp_path, configuration(tmp_path, "floco+"), InProcess(tmp_path, tamper=once))
    assert [(number, client) for number, client, _ in failures] == [(3, "north")]
    assert {r["client"] for r in rows(tmp_path / "run" / "clients.csv") if r["round"] == "2"} == set(SITES)


def test_a_node_that_joins_after_the_assignment_has_a_model_better_than_the_global_one(tmp_path: Path) -> None:
    def comes(node: int, message: Message, reply: Message) -> Message:
        if asked_in(3, message):
            place = {"data": str(tmp_path / "data" / "west.npz"), "state-dir": str(tmp_path / "sites" / "west")}
            grid.configs[13] = {"client-id": "west", **place}
        return reply

    config, grid = configuration(tmp_path, "floco+", "training.rounds=9"), InProcess(tmp_path, tamper=comes)
    two_classes_move_west(tmp_path / "data")
    assert not carried(tmp_path, config, grid)
    joined = [int(r["round"]) for r in rows(tmp_path / "run" / "failures.csv") if r["client"] == "west"]
    assert joined == [5]
    (west,) = (r for r in rows(tmp_path / "run" / "clients.csv") if (r["client"], r["round"]) == ("west", "9"))
    assert float(west["loss_personal"]) < float(west["loss_global_local"])
    assert float(west["accuracy_personal"]) >= float(west["accuracy_global_local"])


def test_a_node_that_was_killed_and_is_still_listed_comes_back_with_its_own_model(tmp_path: Path) -> None:
    class Listing(InProcess):
        def get_node_ids(self) -> list[int]:
            return sorted({*super().get_node_ids(), 11})

    def killed(node: int, message: Message, reply: Message) -> Message | None:
        if node == 11 and asked_in(1, message):
            grid.configs[24] = grid.configs.pop(11)
            return None
        return reply

    grid = Listing(tmp_path, tamper=killed)
    failures = carried(tmp_path, configuration(tmp_path, "floco+", "training.rounds=4"), grid)
    assert failures == [
        (2, "north", "it did not answer within 300 s, or its node is gone"),
        (3, "north", "came back with another node"),
    ]
    last = {r["client"]: int(r["participated"]) for r in rows(tmp_path / "run" / "clients.csv") if r["round"] == "4"}
    assert last == {"east": 4, "north": 3, "south": 4}


def test_two_nodes_with_one_id_are_refused_before_there_is_a_run(tmp_path: Path) -> None:
    config, grid = configuration(tmp_path, "fedavg"), InProcess(tmp_path)
    grid.configs[20] = {**grid.configs[11], "state-dir": str(tmp_path / "twin")}
    with pytest.raises(
        RunFailed, match='nodes 11 and 20 both have client-id "north": each site needs an id of its own'
    ):
        carried(tmp_path, config, grid)
    assert not (tmp_path / "run").exists()


def test_two_runs_at_the_same_sites_at_once_do_not_touch_each_other(tmp_path: Path) -> None:
    def begins_another(node: int, message: Message, reply: Message) -> Message:
        if node == 11 and asked_in(1, message):
            _Server(InProcess(tmp_path), other, tmp_path / "other").run()
        return reply

    one = configuration(tmp_path, "ditto")
    plain = tmp_path / "plain"
    plain.mkdir()
    other = configuration(plain, "floco+")
    assert not carried(tmp_path, one, InProcess(tmp_path, tamper=begins_another))
    carried(plain, other, InProcess(plain))
    assert_same_run(tmp_path / "other", plain / "run", 3)
    (again := tmp_path / "again").mkdir()
    carried(again, configuration(again, "ditto"), InProcess(again))
    assert_same_run(tmp_path / "run", again / "run", 3)
