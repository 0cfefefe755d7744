"""How fast could W4 be? The batched matrix products and the elementwise operations of its steps alone, beside the loop.

    python benchmarks/limit.py

All clients train as one program without padding, on one thread. Nothing else is done: no samples are chosen, no loss is
computed, no results are copied or averaged, and no mixtures are drawn. Prints medians of 9 alternating passes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import bare
import torch

torch.set_num_threads(1)
SIZES = sorted(bare.AIRPORTS, reverse=True)
STEPS = [math.ceil(n / bare.W4.batch) for n in SIZES]
ALIVE = [sum(k > i for k in STEPS) for i in range(max(STEPS))]  # clients that take step i
X, HIDDEN, ERRORS = (torch.randn(len(SIZES), bare.W4.batch, width) for width in (33, 128, 1))
FIRST, LAST = torch.randn(len(SIZES), 33, 128), torch.randn(len(SIZES), 128, 1)


def multiply() -> None:
    """Do the matrix products of forward and backward passes."""
    for a in ALIVE:
        torch.bmm(X[:a], FIRST[:a])
        torch.bmm(HIDDEN[:a], LAST[:a])
        torch.bmm(ERRORS[:a], LAST[:a].mT)
        torch.bmm(HIDDEN[:a].mT, ERRORS[:a])
        torch.bmm(X[:a].mT, HIDDEN[:a])


def do_elementwise() -> None:
    """Add biases, apply the activation and its derivative, and take the optimiser's steps."""
    for a in ALIVE:
        z = torch.nn.functional.leaky_relu(HIDDEN[:a] + FIRST[:a, :1])
        torch.where(z > 0, HIDDEN[:a], HIDDEN[:a] * 0.01).sum(1)
        for w in (FIRST[:a], LAST[:a]):
            velocity = torch.add(w, w, alpha=5e-4).mul_(0.5).add_(w)
            w.sub_(velocity, alpha=0.0)


def make_loop() -> Callable[[], None]:
    """Return the bare loop over all clients, in this process."""
    net, g = bare.flights_net(), torch.Generator().manual_seed(0)
    start = {name: t.clone() for name, t in net.state_dict().items()}
    samples = [(torch.randn(n, 33), torch.randn(n, 1)) for n in SIZES]

    def loop() -> None:
        for x, y in samples:
            net.load_state_dict(start)
            bare.train(bare.W4, net, x, y, g)

    return loop


if __name__ == "__main__":
    programs = {"products": multiply, "elementwise": do_elementwise, "bare loop": make_loop()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(10):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            seconds[name].append(time.perf_counter() - start)
    found = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print(", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in found.items()))
    print(f"bare loop / both: {found['bare loop'] / (found['products'] + found['elementwise']):.2f}")
