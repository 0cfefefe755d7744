"""Named random streams: every consumer has its own, so that no draw changes another's.

A stream is a function of the seed and its path only, not of worker order, participation or resuming.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_LOCK = threading.RLock()  # guards process-wide state: the global generators and torch's thread count


def _renew() -> None:
    global _LOCK  # noqa: PLW0603  a forked child lacks the thread that may hold it
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit hash of `seed` and `path`, to be used as a seed.

    >>> derive(0, "train", 3, "north") == derive(0, "train", 3, "north")
    True
    >>> derive(0, "train", 3, "north") == derive(1, "train", 3, "north")
    False
    """
    text = json.dumps([seed, *path]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def stream(seed: int, *path: str | int) -> torch.Generator:
    """Return a new CPU generator for the purpose `path`, e.g. `stream(0, "train", 12, "north", "shuffle")`."""
    return torch.Generator().manual_seed(derive(seed, *path))


@contextmanager
def global_stream(seed: int, *path: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Run a block with the global generators seeded from the stream `path`, and restore them afterwards.

    These are the generators of torch (CPU and `device`), numpy and Python, which module constructors, dropout and
    augmentation in a user's `forward` use. Global random state is changed nowhere else. Threads of one process take
    turns.
    """
    cuda, number = device is not None and device.type == "cuda", derive(seed, *path)
    with _LOCK, torch.random.fork_rng(devices=[device] if cuda else []):
        of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
        try:
            torch.default_generator.manual_seed(number)
            np.random.seed(number % 2**32)  # noqa: NPY002
            random.seed(number)
            if cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(number)
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)


def outside_torch() -> int:
    """Return a hash of the states of numpy's and Python's global generators, to detect draws from them."""
    _, keys, position, *_ = np.random.get_state()  # noqa: NPY002
    return hash((np.asarray(keys).tobytes(), position, random.getstate()))


@contextmanager
def with_gradients() -> Iterator[None]:
    """Compute gradients in the block, also within the caller's `torch.no_grad` or `torch.inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block with torch on one thread: other thread counts change the bits of convolutions and long sums.

    Threads of one process take turns, since they share the thread count and the global generators.
    """
    with _LOCK:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
