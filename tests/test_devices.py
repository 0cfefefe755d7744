"""Devices, as far as a machine without a GPU can tell: where tensors are, and that nothing else moves with it.

Not tested here, for want of a GPU: its kernels and their rounding, its random numbers, the engine cohort and the
graph of predictions on it, its memory, and several GPUs.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import floco as package
from conftest import batch_norm, floco, layer_normed, make, same, train
from fake_gpu import GPU, fake_gpu
from floco.algorithms import ALGORITHMS

KINDS: dict[str, dict[str, Any]] = {
    "own centers": {"algorithm": package.Floco(endpoints=3, centers="own", step="middle", assign_at=1)},
    "all parameters mixed": {"algorithm": package.Floco(endpoints=3, mix="all", assign_at=1)},
    "fine-tuned": {"deliver": package.Delivery(model="finetuned")},
    "chosen": {"deliver": package.Delivery(model="chosen")},
    "adamw, clipped": {"optimizer": "adamw", "lr": 0.01, "clip": 1.0},
    "statistics kept by clients": {"buffers": "local"},
}


def rows() -> dict[str, np.ndarray]:
    g = np.random.default_rng(0)
    x, y = g.standard_normal((120, 5)).astype(np.float32), g.integers(0, 3, 120)
    return {"x": x, "y": y, "client": np.repeat(["a", "b", "c"], 40)}


def clients() -> package.Federation:
    return package.load(rows()).split(package.Natural())


def fit(**settings: Any) -> package.Run:
    algorithm = settings.pop("algorithm", package.FedAvg())
    model = layer_normed if algorithm.name == "floco" and algorithm.mix == "all" else batch_norm
    return package.fit(model, clients(), algorithm, **{"rounds": 3, "fraction": 1.0, "engine": "serial", **settings})


def test_the_fake_gpu_refuses_tensors_of_two_devices() -> None:
    with fake_gpu(), pytest.raises(RuntimeError, match="same device"):
        torch.ones(3).to(GPU) + torch.ones(3)
    with fake_gpu():
        module = nn.Linear(3, 2).to(GPU)
        assert module(torch.ones(1, 3).to(GPU)).device == GPU
        with pytest.raises(RuntimeError, match="same device"):
            module(torch.ones(1, 3))
        with pytest.raises(TypeError, match="numpy"):
            module.weight.detach().numpy()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_method_has_the_same_bits_wherever_it_runs(name: str) -> None:
    expected = train(make(ALGORITHMS[name]()))
    with fake_gpu() as marks:
        found = train(replace(make(ALGORITHMS[name]()), device=GPU))
        assert not any(marks.there(t) for t in found[-1].state.shared.values())  # the server is on the CPU
    assert marks.moved
    for a, b in zip(expected, found, strict=True):
        assert same(a.state.shared, b.state.shared)
        assert a.evaluation == b.evaluation


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_all_kinds_have_the_same_numbers_on_a_gpu(kind: str) -> None:
    expected = fit(**KINDS[kind])
    with fake_gpu():
        found = fit(**KINDS[kind], device="cuda:0")
    pd.testing.assert_frame_equal(found.history, expected.history, check_exact=True)
    pd.testing.assert_frame_equal(found.clients, expected.clients, check_exact=True)


def test_a_run_of_a_gpu_opens_on_a_machine_without_one(tmp_path: Path) -> None:
    expected = fit(**KINDS["own centers"])
    with fake_gpu():
        fit(**KINDS["own centers"], device="cuda:0", out=tmp_path / "run")
    read, x = package.open_run(tmp_path / "run", data=clients()), rows()["x"]
    pd.testing.assert_frame_equal(read.predict(x, "c"), expected.predict(x, "c"), check_exact=True)
    read.export(tmp_path / "models")
    assert [*(tmp_path / "models").iterdir()]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the CPU that can be read as its own code makes it."""
    out = tmp_path_factory.mktemp("devices") / "run"
    made = floco("run", "-s", "training.rounds=1", "-s", "run.workers=1", "--out", out)
    assert made.exit_code == 0, made.output
    return out


def test_a_run_computes_on_the_device_that_is_asked_for(digits: Path) -> None:
    x = np.random.default_rng(0).integers(0, 17, (6, 8, 8)).astype(np.uint8)
    expected = package.open_run(digits).predict(x)
    with fake_gpu() as marks:
        found = package.open_run(digits, device="cuda:0").predict(x)
    assert marks.moved
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


@pytest.mark.parametrize("name", ["cuda:7", ""])
@pytest.mark.parametrize("command", ["export", "predict", "place"])
def test_a_device_that_is_not_here_is_refused_in_words(command: str, name: str, digits: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.zeros((2, 8, 8), np.float32), y=np.zeros(2, int))
    given = ["--all", "-o", tmp_path / "out"] if command == "export" else [tmp_path / "rows.npz"]
    given += ["--global"] if command == "predict" else []
    answer = floco(command, digits, *given, "--device", name)
    assert answer.exit_code == 2
    assert f"device = {name!r} cannot be used here" in answer.output
    assert not (tmp_path / "out").exists()
