"""The baseline for speed: the fastest plain PyTorch loop for the local training of W1, W2 and W4, without federation.

Two single-threaded processes, started once, take the next client whenever they are idle. The samples are in memory and
normalised, and the weights are reset for each client; both are in the memory format in which convolutions are fastest.
Gradients come from `autograd.grad`, SGD is torch's fused kernel on flat views, which avoids a copy. malloc keeps freed
memory; otherwise page faults make a step a tenth slower. Workers report only that they are done.

    python benchmarks/bare.py            GFLOP/s per core and time per step, for W1, W2 and W4
    python benchmarks/bare.py profile    profile of one process on W1
"""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim.sgd import sgd

PROCESSES = 2


@dataclass(frozen=True)
class Workload:
    """Local training of one round."""

    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    samples: tuple[int, ...]
    """Of each client."""
    epochs: int
    batch: int
    flop: float
    """Floating-point operations per step, forward and backward."""
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cross_entropy

    @property
    def steps(self) -> int:
        """Of all clients."""
        return self.epochs * sum(-(-n // self.batch) for n in self.samples)


def cifar_net() -> nn.Module:
    convs = [nn.Conv2d(3, 16, 5), nn.Conv2d(16, 32, 5, padding=1), nn.Conv2d(32, 64, 3, padding=1)]
    body = [m for conv in convs for m in (conv, nn.LeakyReLU(), nn.MaxPool2d(2))]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(576, 128), nn.LeakyReLU(), nn.Linear(128, 10))


def digits_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.LeakyReLU(), nn.Linear(128, 10))


def flights_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(33, 128), nn.LeakyReLU(), nn.Linear(128, 1))


# Flights to 105 airports, in proportion to the 336,776 flights from New York in 2013 (fetch.py).
AIRPORTS = (
    *(5132, 5112, 4803, 4605, 4181, 4176, 3958, 3580, 3482, 2882, 2786, 2595, 2424, 2217, 2158, 2137, 2133, 1946, 1880),
    *(1781, 1728, 1693, 1390, 1383, 1358, 1288, 1221, 1170, 1165, 1128, 1050, 1046, 856, 854, 832, 813, 808, 769, 733),
    *(
        729,
        724,
        717,
        698,
        628,
        617,
        596,
        531,
        529,
        523,
        485,
        477,
        456,
        453,
        402,
        360,
        344,
        308,
        300,
        266,
        257,
        252,
        252,
    ),
    *(245, 239, 227, 210, 204, 198, 187, 170, 169, 155, 132, 130, 112, 111, 110, 108, 103, 98, 94, 93, 88, 84, 82, 79),
    *(75, 66, 63, 41, 34, 33, 30, 18, 15, 11, 7, 6, 5, 4, 4, 3, 2, 1, 1),
)
W1 = Workload(cifar_net, (3, 32, 32), (400,) * 30, epochs=5, batch=50, flop=0.96e9)
W2 = Workload(digits_net, (1, 8, 8), (72,) * 20, epochs=3, batch=16, flop=16 * 6 * (64 * 128 + 128 * 10))
W4 = Workload(flights_net, (33,), AIRPORTS, epochs=1, batch=64, flop=64 * 6 * (33 * 128 + 128), loss=mse_loss)


def train(work: Workload, module: nn.Module, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> None:
    """Train one client: SGD with lr 0.02, momentum 0.5, weight decay 5e-4."""
    weights = list(module.parameters())
    velocity = [torch.zeros_like(w) for w in weights]
    flat, flat_velocity = as_they_lie(weights), as_they_lie(velocity)
    settings = {"lr": 0.02, "momentum": 0.5, "weight_decay": 5e-4, "dampening": 0, "nesterov": False, "maximize": False}
    for _ in range(work.epochs):
        for chosen in torch.randperm(len(y), generator=generator).split(work.batch):
            gradients = torch.autograd.grad(work.loss(module(x[chosen]), y[chosen]), weights)
            with torch.no_grad():
                sgd(flat, as_they_lie(gradients), [*flat_velocity], fused=True, **settings)


def as_they_lie(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return views of the tensors in memory order: flat if they are not contiguous."""
    return [t.detach() if t.is_contiguous() else t.detach().as_strided((t.numel(),), (1,)) for t in tensors]


def keep_memory() -> None:
    """Make glibc keep freed memory; no effect with other C libraries."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(-1, 2**25)  # M_TRIM_THRESHOLD
        library.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD


def _serve(work: Workload, pipe: Any) -> None:
    torch.set_num_threads(1)
    keep_memory()
    generator = torch.Generator().manual_seed(0)
    order = torch.channels_last if len(work.shape) == 3 and work.shape[0] > 1 else torch.contiguous_format
    x = torch.randn(sum(work.samples), *work.shape, generator=generator)
    classes = torch.randint(10, (len(x),), generator=generator)
    y = (x[:, :1] if work.loss is mse_loss else classes).split(work.samples)
    parts = [part.contiguous(memory_format=order) for part in x.split(work.samples)]
    module = work.model().to(memory_format=order)
    start = {n: t.clone() for n, t in module.state_dict().items()}
    while True:
        try:
            k = pipe.recv()
        except EOFError:
            return
        module.load_state_dict(start)
        train(work, module, parts[k], y[k], generator)
        pipe.send(None)


class Bare:
    """The worker processes."""

    def __init__(self, work: Workload) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes: list[Any] = []
        self._clients = len(work.samples)
        for _ in range(PROCESSES):
            here, there = context.Pipe()
            context.Process(target=_serve, args=(work, there), daemon=True).start()
            there.close()
            self._pipes.append(here)

    def round(self) -> float:
        """Return the seconds of one round's local training."""
        start = time.perf_counter()
        todo = iter(range(self._clients))
        for pipe in self._pipes:
            pipe.send(next(todo))
        running = len(self._pipes)
        while running:
            for ready in wait(self._pipes):
                ready.recv()
                running -= 1
                if (k := next(todo, None)) is not None:
                    ready.send(k)
                    running += 1
        return time.perf_counter() - start

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()


def speed(work: Workload, seconds: float) -> float:
    """Return GFLOP/s per core from the seconds of a round."""
    return work.flop * work.steps / PROCESSES / seconds / 1e9


def products(size: int = 1024) -> float:
    """Return GFLOP/s of one thread in products of square float32 matrices, median of 50."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = torch.randn(2, size, size)
    found = []
    for _ in range(50):
        start = time.perf_counter()
        a @ b
        found.append(2 * size**3 / (time.perf_counter() - start) / 1e9)
    torch.set_num_threads(threads)
    return statistics.median(found)


def profile(work: Workload) -> str:
    """Return a table of the operations of one client's training, longest first."""
    torch.set_num_threads(1)
    module, generator = work.model().to(memory_format=torch.channels_last), torch.Generator()
    x = torch.randn(work.samples[0], *work.shape).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (len(x),))
    train(work, module, x, y, generator)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        train(work, module, x, y, generator)
    table: str = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=45)
    return table


if __name__ == "__main__":
    if sys.argv[1:] == ["profile"]:
        print(profile(W1))
        sys.exit()
    for name, work in (("W1", W1), ("W2", W2), ("W4", W4)):
        bare = Bare(work)
        seconds = statistics.median(bare.round() for _ in range(7 if name == "W1" else 40))
        bare.close()
        step = seconds * PROCESSES / work.steps
        rate = f"{speed(work, seconds):.1f} GFLOP/s a core"
        print(f"{name}: {1e3 * seconds:.0f} ms a round, {1e6 * step:.0f} us a step, {rate}")
