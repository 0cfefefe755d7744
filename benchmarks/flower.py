"""W1 in Flower's simulation (Ray), with the same training and evaluation as in our engines.

Each of 100 nodes is a client. Messages carry the global model, replies the trained one; 30 clients train in each round,
and all evaluate. Needs a separate environment, since the simulation pins its version of Ray:
`pip install 'flwr[simulation]==1.41.0'` in addition to this package.

    python benchmarks/flower.py      print the seconds of each round, then those of our engine on the same machine
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import cache

import bench
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from floco.algorithms import FedAvg
from floco.client.predict import find_global_model, judge, split_test_part
from floco.client.round import conclude, prepare, score
from floco.client.setup import Setup
from floco.client.sgd import train_client as train_client
from floco.core.random import stream
from floco.core.values import Message as Model
from floco.core.values import Tensors, Update
from floco.tasks.scores import ClassificationScore

ROUNDS = 3
client_app, server_app = ClientApp(), ServerApp()


@cache
def setup() -> Setup:
    """Return W1, built once in each of Ray's processes."""
    torch.set_num_threads(1)
    return bench.w1(FedAvg())


def model(message: Message) -> Model:
    config = message.content["config"]
    return Model(int(config["round"]), str(config["task"]), dict(message.content["arrays"].to_torch_state_dict()))  # type: ignore[arg-type]


def client(context: Context) -> str:
    return setup().federation.ids[int(context.node_config["partition-id"])]


@client_app.query()
def who(message: Message, context: Context) -> Message:
    record = MetricRecord({"partition": int(context.node_config["partition-id"])})
    return Message(RecordDict({"who": record}), reply_to=message)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    work = prepare(setup(), client(context), model(message), None)
    tensors = train_client(setup(), work)
    update, _ = conclude(setup(), work.client, work.message, work.facts, tensors)
    content = {"arrays": ArrayRecord(dict(update.shared)), "metrics": MetricRecord({"weight": update.weight})}
    return Message(RecordDict(content), reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    start, stop = (int(message.content["config"][name]) for name in ("start", "stop"))
    if stop:
        right = evaluate_globally(model(message), start, stop)
    else:
        work = prepare(setup(), client(context), model(message), None)
        both = setup().models(train_client(setup(), work), work.facts)
        found = score(setup(), work.client, both).personal
        assert isinstance(found, ClassificationScore)
        right = sum(found.right)
    return Message(RecordDict({"metrics": MetricRecord({"right": right})}), reply_to=message)


def evaluate_globally(message: Model, start: int, stop: int) -> int:
    """Return the number of correct predictions of the global model on a part of the global test data."""
    tensors, x, y = find_global_model(setup(), message), setup().federation.x_test, setup().federation.y_test
    assert tensors is not None
    assert x is not None
    assert y is not None
    return sum(judge(setup(), [tensors], x[start:stop], y[start:stop])[0].right)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg; the nodes share the evaluation of the 10,000 test images, as the workers of our engine do."""
    s = setup()
    nodes = list(grid.get_node_ids())
    while len(nodes) < len(s.federation.ids):
        time.sleep(0.5)
        nodes = list(grid.get_node_ids())
    found = answered(grid.send_and_receive([Message(RecordDict(), dst_node_id=n, message_type="query") for n in nodes]))
    node = {s.federation.ids[int(r.content["who"]["partition"])]: r.metadata.src_node_id for r in found}
    state = s.algorithm.init(s.network, seed=0)
    for number in range(1, ROUNDS + 1):
        start = time.perf_counter()
        chosen = s.algorithm.select(state, s.federation.ids, fraction=0.3, generator=stream(0, "select", number)).train
        replies = exchange(grid, [node[c] for c in chosen], state.shared, number, "train")
        updates = [update_of(r) for r in replies]
        trained = time.perf_counter() - start
        state = s.algorithm.aggregate(state, updates, clients=dict.fromkeys(map(str, range(100)), 1))
        parts, everybody = split_test_part(s), list(node.values())
        ranges = [*parts, *[(0, 0)] * len(node)]
        exchange(grid, [*everybody[: len(parts)], *everybody], state.shared, number, "evaluate", ranges)
        whole = time.perf_counter() - start
        print(f"flower round {number}: {trained:.1f} s of training, {whole:.1f} s in all", flush=True)


def update_of(reply: Message) -> Update:
    tensors = dict(reply.content["arrays"].to_torch_state_dict())
    return Update(str(reply.metadata.src_node_id), "train", int(reply.content["metrics"]["weight"]), tensors)


def exchange(
    grid: Grid, nodes: list[int], shared: Tensors, number: int, task: str, parts: Sequence[tuple[int, int]] = ()
) -> list[Message]:
    arrays, sent = ArrayRecord(dict(shared)), []
    for node, (start, stop) in zip(nodes, parts or [(0, 0)] * len(nodes), strict=True):
        config = ConfigRecord({"round": number, "task": task, "start": start, "stop": stop})
        content = RecordDict({"arrays": arrays, "config": config})
        sent.append(Message(content, dst_node_id=node, message_type=task))
    return answered(grid.send_and_receive(sent))


def answered(replies: Iterable[Message]) -> list[Message]:
    replies = list(replies)
    if failed := [r for r in replies if r.has_error()]:
        raise RuntimeError(f"{len(failed)} clients failed: {failed[0].error}")
    return replies


def compare() -> None:
    backend = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}}
    run_simulation(server_app, client_app, num_supernodes=100, backend_config=backend)
    ours = bench.Ours(setup(), evaluate=True)
    for number in range(1, ROUNDS + 1):
        training, whole = ours.round()
        print(f"floco round {number}: {training:.1f} s of training, {whole:.1f} s in all")
    ours.close()


if __name__ == "__main__":
    import flower  # Ray's processes import the apps from this module, not from `__main__`

    flower.compare()
