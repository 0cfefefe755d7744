"""Memory of large models: 100 million parameters trained by 10 clients a round, whole and behind adapters.

    python benchmarks/memory.py [--millions 100] [--workers N] [whole] [adapters]

Each is a run of two rounds, with the engine of a run of which nothing is said if --workers is not given. Printed are
the largest memory of all its processes together beyond that of the same run with a model of 0.01 million parameters, in
copies of the model (float32), and seconds. Pages that processes share count once (PSS). As processes are read one after
the other, and one may start meanwhile, the smaller of two readings in a row counts.
"""

import argparse
import subprocess
import sys
import time

import many

RUN = """
import sys
import numpy as np, torch, floco
from torch import nn

width, whole = int(sys.argv[1]), sys.argv[2] == "whole"

class Adapted(nn.Linear):
    def __init__(self):
        super().__init__(width, width)
        self.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(8, width) / width**0.5)
        self.lora_B = nn.Parameter(torch.zeros(width, 8))

    def forward(self, x):
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T

def build():
    layers = [nn.Linear(width, width) if whole else Adapted() for _ in range(4)]
    return nn.Sequential(nn.Linear(16, width), *[m for l in layers for m in (l, nn.Tanh())], nn.Linear(width, 4))

g = np.random.default_rng(0)
x, y = g.standard_normal((200, 16)).astype(np.float32), g.integers(0, 4, 200)
federation = floco.load({"x": x, "y": y, "client": np.repeat(np.arange(10), 20)}).split(floco.Natural())
algorithm = floco.FedAvg() if whole else floco.Floco(endpoints=5, mix="lora", centers="own", step="middle")
floco.fit(build, federation, algorithm, rounds=2, fraction=1.0, lr=0.01, workers=int(sys.argv[3]) or None)
"""


def measure(kind: str, millions: float, workers: int = 0) -> tuple[float, float]:
    """Return the largest memory of a run in copies of its model, and its seconds."""
    base, (peak, seconds) = run(kind, 0.01, workers)[0], run(kind, millions, workers)
    return (peak - base) / (4e6 * millions), seconds


def run(kind: str, millions: float, workers: int) -> tuple[int, float]:
    """Return the largest memory of a run, in bytes, and its seconds."""
    width, begun, peak, last = round((millions * 1e6 / 4) ** 0.5), time.perf_counter(), 0, 0
    with subprocess.Popen([sys.executable, "-c", RUN, str(width), kind, str(workers)]) as process:
        while process.poll() is None:
            now = many.pss(process.pid)
            peak, last = max(peak, min(now, last)), now
            time.sleep(0.01)
    assert process.returncode == 0
    return peak, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="whole|adapters")
    parser.add_argument("--millions", type=float, default=100)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    for kind in given.kinds or ["whole", "adapters"]:
        copies, seconds = measure(kind, given.millions, given.workers)
        print(f"{kind}: {copies:.2f} copies of {given.millions:g} million parameters, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
