"""W3: many stateful clients. Peak memory of Floco+ with 1,000 and with 10,000 clients, 300 of them per round.

Measured is the peak PSS over all processes, sampled ten times a second, without the data set, which is in memory once.

    python benchmarks/many.py 10000      one run in this process; print the number of clients and the seconds
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import psutil
import torch
from torch import nn

from floco import FlocoPlus
from floco.api import fit
from floco.data.federation import Client, Federation

A_ROUND, ROUNDS, SAMPLES, FEATURES, CLASSES = 300, 60, 20, 64, 10  # 5 in 6 of 10,000 clients train at least once


def federation(clients: int) -> Federation:
    """Return clients with 20 samples around ten random class means, mostly of two classes each."""
    g = torch.Generator().manual_seed(0)
    n = clients * SAMPLES
    middles = 2 * torch.randn(CLASSES, FEATURES, generator=g)
    y = (torch.arange(n) // SAMPLES + (torch.rand(n, generator=g) < 0.5)) % CLASSES
    x = middles[y] + torch.randn(n, FEATURES, generator=g)
    parts = [Client(str(i), p[:16], p[16:]) for i, p in enumerate(torch.arange(n).split(SAMPLES))]
    return Federation(x, y, tuple(parts), tuple(map(str, range(CLASSES))))


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def run(clients: int) -> None:
    start = time.perf_counter()
    algorithm, budget = FlocoPlus(endpoints=3, assign_at=ROUNDS // 2), {"rounds": ROUNDS, "evaluate_every": ROUNDS}
    fit(model, federation(clients), algorithm, fraction=A_ROUND / clients, batch_size=8, **budget)
    print(f"{clients} {time.perf_counter() - start:.1f}")


def measured(clients: int) -> tuple[float, float]:
    """Return the peak memory in MB without the data set, and the seconds."""
    highest, said = peak([sys.executable, __file__, str(clients)])
    return highest - clients * SAMPLES * (FEATURES * 4 + 8) / 1e6, float(said.split()[1])


def peak(command: list[str]) -> tuple[float, str]:
    """Return the peak memory of a command and its children in MB, and its output."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    highest = 0

    def watch() -> None:
        nonlocal highest
        while process.poll() is None:
            highest = max(highest, pss(process.pid))
            time.sleep(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    said, _ = process.communicate()
    thread.join()
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return highest / 1e6, said


def pss(pid: int) -> int:
    """Return the PSS in bytes of a process and all its children, which counts shared pages once."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for one in family:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


if __name__ == "__main__":
    run(int(sys.argv[1]))
