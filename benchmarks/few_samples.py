"""Fashion-MNIST among clients that differ in more than their labels: python benchmarks/few_samples.py VARIANT...

    python benchmarks/few_samples.py rotated confused each unequal iid [--seed 0] [--to data]

Each becomes one file few-VARIANT.npz with x (56,000, 28, 28), y, client and group: 100 clients of 560 samples, dealt at
random from the 60,000 training images, none to two clients. A run takes a few of each client's samples, others under
every seed: configs/rotated.toml takes 80, half of them as the test part, and tuned.sh and prior.sh also other numbers.

rotated   four groups of 25 clients, whose pictures are rotated by 0, 90, 180 and 270 degrees.
confused  four groups of 25 clients; the labels of five classes are permuted, in another way in each: other p(y | x).
each      no groups: of four rotations, five styles and five strengths of them, every client has its own combination.
unequal   as rotated, with 55, 25, 15 and 5 clients.
iid       the control: all clients alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

CLIENTS, SAMPLES, CLASSES = 100, 560, 10
SIZES = {"unequal": (55, 25, 15, 5), "iid": (100,), "each": (1,) * CLIENTS}
EQUAL = (25, 25, 25, 25)
Samples = tuple[np.ndarray, np.ndarray, str]
"""Pictures (n, 28, 28) uint8, labels (n,), and the name of their group."""

STYLES: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {  # strength in [0, 1)
    "inverted": lambda x, s, rng: 255 - (0.5 + 0.5 * s) * x,
    "blurred": lambda x, s, rng: gaussian_filter(x, (0, 0.7 + s, 0.7 + s)),
    "bright": lambda x, s, rng: 255 * (x / 255) ** (0.3 + 0.3 * s),
    "dim": lambda x, s, rng: (0.2 + 0.3 * s) * x,
    "noisy": lambda x, s, rng: x + rng.normal(0, 20 + 40 * s, x.shape),
}


def rotate(x: np.ndarray, y: np.ndarray, group: int, seed: int) -> Samples:
    return np.rot90(x, group, axes=(1, 2)), y, f"{90 * group} degrees"


def confuse(x: np.ndarray, y: np.ndarray, group: int, seed: int) -> Samples:
    rng, shown = np.random.default_rng(seed), np.arange(CLASSES)
    some = rng.choice(CLASSES, 5, replace=False)
    shown[some] = rng.choice(list(permutations(some)), len(EQUAL), replace=False)[group]
    return x, shown[y], f"confusion {group}"


def style(x: np.ndarray, y: np.ndarray, group: int, seed: int) -> Samples:
    turned, name, strength = np.rot90(x, group % 4, axes=(1, 2)), list(STYLES)[group // 4 % 5], group // 20 / 5
    made = STYLES[name](turned.astype(float), strength, np.random.default_rng([seed, group]))
    return made.round().clip(0, 255).astype(np.uint8), y, name


def keep(x: np.ndarray, y: np.ndarray, group: int, seed: int) -> Samples:
    return x, y, "alike"


VARIANTS = {"rotated": rotate, "confused": confuse, "each": style, "unequal": rotate, "iid": keep}


def make(variant: str, x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return the arrays of a variant; its groups are dealt to clients at random."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(x))[: CLIENTS * SAMPLES].reshape(CLIENTS, SAMPLES)
    sizes = SIZES.get(variant, EQUAL)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    parts = [VARIANTS[variant](x[mine], y[mine], int(group), seed) for mine, group in zip(rows, groups, strict=True)]
    pictures, labels, names = zip(*parts, strict=True)
    clients = np.repeat([f"client-{i:02d}" for i in range(CLIENTS)], SAMPLES)
    arrays = {"x": np.concatenate(pictures), "y": np.concatenate(labels)}
    return arrays | {"client": clients, "group": np.repeat(names, SAMPLES)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fashion-MNIST among clients that differ in more than their labels.")
    parser.add_argument("variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=Path("data"), help="a folder with fashion-mnist.npz; files go there")
    given = parser.parse_args()
    source = given.to / "fashion-mnist.npz"
    if not source.is_file():
        sys.exit(f"{source} is missing: it must have x_train, y_train, x_test, y_test (docs/own-data.md)")
    with np.load(source) as arrays:
        x, y = arrays["x_train"], arrays["y_train"]
    for variant in given.variants:
        np.savez_compressed(given.to / f"few-{variant}.npz", **make(variant, x, y, given.seed))


if __name__ == "__main__":
    main()
