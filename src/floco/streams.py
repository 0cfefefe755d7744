"""Random numbers by name: every consumer has its own stream, so that none can move another.

Nothing here depends on worker order, participation or resuming: a stream is a function of its path only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed that is a hash of `seed` and `path`.

    >>> derive(0, "train", 3, "north") == derive(0, "train", 3, "north")
    True
    >>> derive(0, "train", 3, "north") == derive(1, "train", 3, "north")
    False
    """
    text = json.dumps([seed, *path]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def stream(seed: int, *path: str | int) -> torch.Generator:
    """Return a fresh CPU generator for the purpose named by `path`, e.g. `stream(0, "train", 12, "north", "shuffle")`."""
    return torch.Generator().manual_seed(derive(seed, *path))


@contextmanager
def global_stream(seed: int, *path: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Run a block with torch's global generators (CPU and `device`) set to the stream `path`; restore them afterwards.

    The only place that touches global random state: module constructors and dropout read nothing else.
    """
    cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(derive(seed, *path))
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(derive(seed, *path))
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block with torch on one thread: another number gives other bits in convolutions and long sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
