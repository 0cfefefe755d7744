"""Data that stay in their file."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import floco
from floco.client import sgd
from floco.data import mapped
from floco.data.mapped import blocks, every
from floco.engines import stack

G = np.random.default_rng(0)
N = 120
KINDS: dict[str, Any] = {
    "float32 features": G.normal(size=(N, 5)).astype(np.float32),
    "float32 images, channels last": G.normal(size=(N, 6, 6, 3)).astype(np.float32),
    "uint8 images": G.integers(0, 256, size=(N, 8, 8)).astype(np.uint8),
    "uint8 images, channels last": G.integers(0, 256, size=(N, 8, 8, 3)).astype(np.uint8),
}


def in_file(x: torch.Tensor, path: Path) -> bool:
    """Whether a tensor's memory is that of a mapped file."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [[int(end, 16) for end in words[0].split("-")] for words in maps]
    return any(low <= x.data_ptr() < high for low, high in ranges)


def data(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": x, "y": np.arange(N) % 3, "client": np.repeat(list("abc"), N // 3)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_array_stays_in_its_file_and_gives_the_same_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "d.npz", **data(KINDS[kind]))
    runs = []
    for large in (10**9, 2000):
        monkeypatch.setattr(mapped, "LARGE", large)
        federation = floco.load(f"npz:{tmp_path}/d.npz").split(floco.Natural())
        x: Any = federation.x
        assert in_file(x, tmp_path / "d.npz") == (large == 2000)
        run = floco.fit(floco.model("mlp", federation), federation, floco.Floco(endpoints=2), rounds=2, engine="serial")
        runs.append((federation.fingerprint(), run.clients))
    assert runs[0][0] == runs[1][0]
    assert runs[0][1].drop(columns="center").equals(runs[1][1].drop(columns="center"))


@pytest.mark.parametrize("engine", ["serial", "cohort"])
def test_clients_with_many_samples_read_them_batch_by_batch_with_the_same_bits(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = floco.load(data(KINDS["float32 images, channels last"])).split(floco.Natural())
    settings: dict[str, Any] = {"rounds": 2, "engine": "serial", "fraction": 1.0}
    runs = [floco.fit(floco.model("cnn", federation), federation, floco.Floco(endpoints=2), **settings)]
    monkeypatch.setattr(sgd, "_ONCE", 1000)
    monkeypatch.setattr(stack, "_TOGETHER", 1000)
    settings["engine"] = engine
    with pytest.warns(UserWarning, match="too many to be in memory") if engine == "cohort" else nullcontext():
        runs.append(floco.fit(floco.model("cnn", federation), federation, floco.Floco(endpoints=2), **settings))
    one, other = (run.clients.drop(columns="center") for run in runs)
    assert one.equals(other)


@pytest.mark.parametrize("kind", ["compressed", "float64"])
def test_what_cannot_stay_in_its_file_is_read_with_a_warning(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "LARGE", 2000)
    x = KINDS["float32 features"]
    save = np.savez_compressed if kind == "compressed" else np.savez
    save(tmp_path / "d.npz", **data(x.astype(np.float64) if kind == "float64" else x))
    with pytest.warns(UserWarning, match="x is read into memory; uncompressed"):
        samples: Any = floco.load(f"npz:{tmp_path}/d.npz")
    assert not in_file(samples.x, tmp_path / "d.npz")
    assert torch.equal(samples.x, torch.from_numpy(x))


def test_a_memory_mapped_array_from_python_stays_in_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", KINDS["float32 features"])
    samples: Any = floco.load((np.load(tmp_path / "x.npy", mmap_mode="r"), np.arange(N) % 3))
    assert in_file(samples.x, tmp_path / "x.npy")


def test_a_sample_that_is_not_finite_is_found_in_a_mapped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "LARGE", 2000)
    monkeypatch.setattr(mapped, "_BLOCK", 200)
    x = KINDS["float32 features"].copy()
    x[77, 2] = np.nan
    np.savez(tmp_path / "d.npz", **data(x))
    with pytest.raises(floco.FlocoError, match="sample 77 is not"):
        floco.load(f"npz:{tmp_path}/d.npz")


def test_blocks_are_consecutive_and_checks_are_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_BLOCK", 100)
    x = np.arange(70.0).reshape(10, 7)
    assert np.array_equal(np.concatenate(list(blocks(x))), x)
    assert max(map(len, blocks(x))) == 1
    assert every(x, lambda b: b != 16).tolist() == [i != 2 for i in range(10)]
