"""Speed and memory against the baselines, as a table and a JSON file: make bench (15 minutes on two cores).

Every ratio of times is the median over pairs of two programs that run alternately. W1 is the CIFAR-10 5-Fold setting
with noise as samples (speed does not depend on their values), W2 the embedded digits, W3 is in many.py, and W4 has the
sizes of 105 airports' flights, 1 to 5,132 rows, for a regression.

    python benchmarks/bench.py [NAME...]    any of w1 precision w2 w4 assignment w3 start; prints without writing files
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import bare
import many
import memory
import torch

from floco.algorithms import FedAvg, Floco
from floco.client.setup import Setup
from floco.core.algorithm import Algorithm
from floco.core.network import build_network
from floco.core.values import Training
from floco.data.federation import Client, Federation
from floco.data.models import model
from floco.data.normalization import Normalization
from floco.data.partition import Folds
from floco.data.schema import Form
from floco.data.sources import load
from floco.engines.engine import start_engine
from floco.engines.jobs import Job, Result
from floco.server import rounds as loop
from floco.server.progress import Plan
from floco.simplex import Assignment, assign
from floco.simplex.components import Centered
from floco.tasks import Regression

OUT = Path(__file__).parent / "results"
Row = dict[str, Any]


class Timed:
    """An engine that measures the time of a round's training jobs."""

    def __init__(self, setup: Setup) -> None:
        self._engine = start_engine(setup, "auto", bare.PROCESSES)
        self.training = 0.0

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        start = time.perf_counter()
        results = self._engine.run(jobs)
        if jobs and jobs[0].purpose == "train":
            self.training = time.perf_counter() - start
        return results

    def close(self) -> None:
        self._engine.close()


class Ours:
    """A run that advances one round at a time."""

    def __init__(self, setup: Setup, *, evaluate: bool) -> None:
        self._engine = Timed(setup)
        every = 1 if evaluate else setup.training.rounds + 1
        self._rounds = loop.rounds(setup, self._engine, Plan(evaluate_every=every), loop.initialize(setup))

    def round(self) -> tuple[float, float]:
        """Return the seconds of the local training and of the whole round."""
        start = time.perf_counter()
        next(self._rounds)
        return self._engine.training, time.perf_counter() - start

    def close(self) -> None:
        self._engine.close()


def w1(algorithm: Algorithm, **settings: object) -> Setup:
    g = torch.Generator().manual_seed(0)
    x, x_test = (torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=g) for n in (50_000, 10_000))
    y, y_test = (torch.randint(10, (n,), generator=g) for n in (50_000, 10_000))
    parts = [part.split((400, 100)) for part in torch.arange(50_000).split(500)]
    clients = tuple(Client(str(i), train, test) for i, (train, test) in enumerate(parts))
    normalization = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    federation = Federation(
        x, y, clients, tuple(map(str, range(10))), x_test, y_test, forms={"": Form(normalization=normalization)}
    )
    training = replace(Training(rounds=10_000, fraction=0.3, epochs=5, batch_size=50, lr=0.02), **settings)
    net = build_network(model("cifar-cnn", federation), seed=0)
    return Setup(federation, net, algorithm.resolved(training, net.layout), training)


def w2() -> Setup:
    federation = load("digits").split(Folds(5, share=0.9), clients=20, seed=0)
    training = Training(rounds=10_000, fraction=1.0, epochs=3, batch_size=16, lr=0.02)
    net = build_network(model("mlp", federation), seed=0)
    return Setup(federation, net, FedAvg().resolved(training, net.layout), training)


def w4(algorithm: Algorithm) -> Setup:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(sum(bare.AIRPORTS) + 1, *bare.W4.shape, generator=g)
    rows = torch.arange(len(x) - 1).split(bare.AIRPORTS)
    clients = tuple(Client(str(i), part, torch.tensor([len(x) - 1])) for i, part in enumerate(rows))
    task = Regression(mean=(0.0,), std=(1.0,))
    federation = Federation(x, x[:, 0].clone(), clients, (), task=task)
    training = Training(rounds=10_000, fraction=1.0, epochs=bare.W4.epochs, batch_size=bare.W4.batch, lr=0.02)
    net = build_network(model("mlp", federation), seed=0)
    return Setup(federation, net, algorithm.resolved(training, net.layout), training)


def alternated(programs: dict[str, Callable[[], tuple[float, ...]]], times: int) -> dict[str, list[tuple[float, ...]]]:
    """Return the seconds of programs that run alternately, `times` times each; the first pass is not counted."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in programs}
    for i in range(times + 1):
        for name, program in programs.items():
            seconds = program()
            if i:
                found[name].append(seconds)
    return found


def row(what: str, ours: Sequence[float], theirs: Sequence[float], bar: float | None, *, least: bool = False) -> Row:
    """Return a ratio of times: median and quartiles over the pairs. `bar` is its upper limit, or lower with `least`."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4)
    seconds = {"first_s": statistics.median(ours), "second_s": statistics.median(theirs)}
    measured = {"value": statistics.median(ratios), "low": low, "high": high}
    return {"what": what, **seconds, **measured, "bar": bar, "unit": "x", "least": least}


def value(what: str, measured: float, unit: str, bar: float | None = None, **more: bool) -> Row:
    """Return a single measurement and its bar."""
    return {"what": what, "value": measured, "bar": bar, "unit": unit, **more}


def measure_w1() -> list[Row]:
    yardstick, fedavg = bare.Bare(bare.W1), Ours(w1(FedAvg()), evaluate=True)
    floco = Ours(w1(Floco(endpoints=10, assign_at=1)), evaluate=True)
    floco.round()  # the assignment round, in which every client probes
    found = alternated({"bare": lambda: (yardstick.round(),), "floco": floco.round, "fedavg": fedavg.round}, 15)
    for program in (yardstick, floco, fedavg):
        program.close()
    base = [s for (s,) in found["bare"]]
    peak, _ = many.peak([sys.executable, __file__, "once"])
    data = 60_000 * (3 * 32 * 32 + 8) / 1e6
    part = {name: [list(column) for column in zip(*found[name], strict=True)] for name in ("floco", "fedavg")}
    return [
        row("W1 local training, FedAvg / bare loop", part["fedavg"][0], base, 1.05),
        row("W1 local training, Floco / bare loop", part["floco"][0], base, 1.05),
        row("W1 whole round with evaluation, FedAvg / bare loop", part["fedavg"][1], base, 1.25),
        row("W1 whole round with evaluation, Floco / bare loop", part["floco"][1], base, 1.25),
        row("W1 whole round, Floco / FedAvg", part["floco"][1], part["fedavg"][1], 1.03),
        value("W1 bare loop, a core", bare.speed(bare.W1, statistics.median(base)), "GFLOP/s", 70.0, least=True),
        value("matrix products meanwhile, a core", bare.products(), "GFLOP/s"),
        value(f"W1 peak memory beyond the data set of {data:.0f} MB", (peak - data) / 1e3, "GB", 1.5),
    ]


def measure_precision() -> list[Row]:
    half, full = Ours(w1(FedAvg(), precision="bf16"), evaluate=False), Ours(w1(FedAvg()), evaluate=False)
    found = alternated({"half": half.round, "full": full.round}, 5)
    half.close()
    full.close()
    training = {name: [a for a, _ in seconds] for name, seconds in found.items()}
    return [row("W1 local training, bf16 / float32", training["half"], training["full"], 0.80)]


def measure_w2() -> list[Row]:
    yardstick, ours = bare.Bare(bare.W2), Ours(w2(), evaluate=False)
    for _ in range(5):
        ours.round()  # until the programs are traced
    found = alternated({"bare": lambda: (yardstick.round(),), "ours": ours.round}, 40)
    yardstick.close()
    ours.close()
    base = [s for (s,) in found["bare"]]
    return [
        row("W2 bare loop / local training", base, [a for a, _ in found["ours"]], 4.0, least=True),
        row("W2 bare loop / whole round without evaluation", base, [b for _, b in found["ours"]], None),
    ]


def measure_w4() -> list[Row]:
    yardstick, fedavg = bare.Bare(bare.W4), Ours(w4(FedAvg()), evaluate=False)
    floco = Ours(w4(Floco(endpoints=10, assign_at=1)), evaluate=False)
    for _ in range(5):
        floco.round()  # the assignment, and until the programs are traced
        fedavg.round()
    found = alternated({"bare": lambda: (yardstick.round(),), "floco": floco.round, "fedavg": fedavg.round}, 15)
    for program in (yardstick, floco, fedavg):
        program.close()
    base = [s for (s,) in found["bare"]]
    return [
        row(
            "W4 bare loop / whole round without evaluation, Floco", base, [b for _, b in found["floco"]], 3, least=True
        ),
        row("W4 bare loop / whole round without evaluation, FedAvg", base, [b for _, b in found["fedavg"]], None),
        row("W4 bare loop / local training, Floco", base, [a for a, _ in found["floco"]], None),
    ]


def measure_assignment() -> list[Row]:
    rows: list[Row] = []
    for clients, bar in ((1_000, 2.0), (10_000, 60.0)):
        command = [sys.executable, __file__, "assign", str(clients)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        rows.append(value(f"assignment of {clients} clients, D = 12,800, M = 10", float(said[0]), "s", bar))
        rows.append(value(f"its peak memory, {clients} clients", float(said[1]), "GB", 4.0))
    few, many_ = assign(signals(100), 10), assign(signals(1_000), 10)
    exact_few, exact_many = exact(signals(100)), exact(signals(1_000))
    apart = float((few.centers - exact_few.centers).abs().max())
    rows.append(value("largest distance of a center from the exact routine's, 100 clients", apart, "", 1e-6))
    above = many_.log_energy - exact_many.log_energy
    return [*rows, value("log energy above the exact routine's, 1,000 clients", above, "", 0.01)]


def signals(clients: int) -> torch.Tensor:
    """Return signals of five kinds of clients, with noise that is strong in twenty directions."""
    g = torch.Generator().manual_seed(0)
    kinds, directions = torch.randn(5, 12_800, generator=g), torch.randn(20, 12_800, generator=g)
    found = torch.randn(clients, 12_800, generator=g)
    for part, own in zip(found.split(500), torch.arange(clients).split(500), strict=True):
        part += kinds[own % 5] + 0.5 * torch.randn(len(own), 20, generator=g) @ directions
    return found


def exact(rows: torch.Tensor) -> Assignment:
    """Return the assignment by a full singular value decomposition in float64."""

    def principal(centered: Centered, number: int) -> torch.Tensor:
        matrix = centered.rows.double() / centered.divisors[:, None] - centered.mean
        _, _, directions = torch.linalg.svd(matrix, full_matrices=False)
        largest = directions[:number].gather(1, directions[:number].abs().argmax(dim=1, keepdim=True))
        return directions[:number] * largest.sign()

    with mock.patch("floco.simplex.assignment.principal", principal):
        return assign(rows, 10)


def assign_once(clients: int) -> None:
    """Print seconds and GB of one assignment on one thread; runs in its own process."""
    import resource

    torch.set_num_threads(1)
    rows = signals(clients)
    start = time.perf_counter()
    assign(rows, 10)
    print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def measure_w3() -> list[Row]:
    (few, _), (lots, seconds) = many.measured(1_000), many.measured(10_000)
    return [
        value(f"W3 peak memory, 10,000 / 1,000 clients ({lots:.0f} / {few:.0f} MB)", lots / few, "x", 1.3),
        value("W3 memory of each further client", (lots - few) / 9, "kB"),
        value("W3 with 10,000 clients", seconds, "s"),
    ]


def measure_start() -> list[Row]:
    def seconds(*command: str) -> float:
        times = []
        for _ in range(9):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    floco = str(Path(sys.executable).with_name("floco"))
    imported = seconds(sys.executable, "-c", "import floco")
    return [value("floco --help", seconds(floco, "--help"), "s", 0.5), value("import floco", imported, "s")]


def measure_memory() -> list[Row]:
    whole, adapters = (memory.measure(kind, 100)[0] for kind in ("whole", "adapters"))
    return [
        value("memory of 100 million trained parameters, 10 clients a round, in copies of them", whole, "", 6.0),
        value("memory of adapters on 100 million frozen parameters, in copies of them", adapters, "", 1.5),
    ]


PARTS = {
    "w1": measure_w1,
    "precision": measure_precision,
    "w2": measure_w2,
    "w4": measure_w4,
    "assignment": measure_assignment,
    "w3": measure_w3,
    "start": measure_start,
    "memory": measure_memory,
}


def main(names: Sequence[str]) -> None:
    rows: list[Row] = []
    for name in names or PARTS:
        rows += PARTS[name]()
        print(name, "done", file=sys.stderr)
    cores, capability = len(os.sched_getaffinity(0)), torch.backends.cpu.get_cpu_capability()
    machine = {"cpu": cpu(), "cores": cores, "capability": capability}
    versions = {p: version(p) for p in ("floco", "torch", "numpy")} | {"python": platform.python_version()}
    lines = ["| what | measured | quartiles | bar | |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(shown(r)) + " |" for r in rows]
    known = ", ".join(f"{k} {v}" for k, v in versions.items())
    lines += ["", f"{cores} cores of {machine['cpu']}, {capability}; {known}"]
    print("\n".join(lines))
    if not names:  # only a complete run replaces the results
        OUT.mkdir(exist_ok=True)
        heading = "Made by `make bench`; bench.json has the same in full."
        (OUT / "bench.md").write_text("\n".join([heading, "", *lines]) + "\n")
        everything = {"machine": machine, "versions": versions, "rows": rows}
        (OUT / "bench.json").write_text(json.dumps(everything, indent=1) + "\n")


def shown(r: Row) -> tuple[str, ...]:
    measured, quartiles = f"{r['value']:.3g} {r['unit']}", f"{r['low']:.3g} to {r['high']:.3g}" if "low" in r else ""
    if r["bar"] is None:
        return r["what"], measured, quartiles, "", ""
    met = r["value"] >= r["bar"] if r.get("least") else r["value"] <= r["bar"]
    bar = f"{'at least' if r.get('least') else 'at most'} {r['bar']:g}"
    return r["what"], measured, quartiles, bar, "met" if met else "**missed**"


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def once() -> None:
    """Run two rounds of W1 with Floco and evaluation, whose memory is measured."""
    run = Ours(w1(Floco(endpoints=10, assign_at=1)), evaluate=True)
    for _ in range(2):
        run.round()
    run.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["assign"]:
        assign_once(int(sys.argv[2]))
    elif sys.argv[1:] == ["once"]:
        once()
    else:
        main(sys.argv[1:])
