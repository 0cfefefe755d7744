"""What clients keep, beyond a budget in files."""

import gc
import pickle
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from conftest import make, same, train
from floco.algorithms import Ditto, FlocoPlus
from floco.core.values import Tensors
from floco.engines.engine import Serial
from floco.engines.processes import Processes, _dumps
from floco.server import rounds as loop
from floco.server.progress import Plan
from floco.storage.memories import Memories, Memory


@pytest.fixture
def spill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def some(value: float, size: int = 250_000) -> Tensors:
    return {"a": torch.full((size,), float(value))}  # 1 MB


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_whose_memories_lie_in_files_is_the_run_that_holds_them(workers: int, spill: Path) -> None:
    setup = make(FlocoPlus(endpoints=4, assign_at=3))
    expected = train(setup)[-1]
    engine = Processes(setup, workers) if workers else Serial(setup)
    for last in loop.rounds(setup, engine, Plan(evaluate_every=1), loop.initialize(setup, Memories(budget=0))):  # noqa: B007
        pass
    engine.close()
    assert last.evaluation == expected.evaluation
    assert set(last.memories) == set(expected.memories)
    assert all(same(last.memories[c], expected.memories[c]) for c in expected.memories)
    assert len(list(spill.rglob("*.safetensors"))) == len(last.memories)  # one file each, the replaced ones are gone


def test_what_came_last_stays_at_hand_and_what_was_replaced_is_forgotten(spill: Path) -> None:
    memories = Memories({"a": Memory(some(1)), "b": Memory(some(2))}, budget=2)
    assert not list(spill.rglob("*.safetensors"))
    older, memories = memories, memories.updated({"c": some(3)})
    assert [m.size for c in "abc" if (m := memories.of(c))] == [0, 1_000_000, 1_000_000]
    assert [float(memories[c]["a"][0]) for c in "abc"] == [1, 2, 3]
    newer = memories.updated({"a": some(4)})
    assert [float(older["a"]["a"][0]), float(newer["a"]["a"][0])] == [1, 4]
    del older, memories
    gc.collect()
    assert len(list(spill.rglob("*.safetensors"))) == 1  # b's


def test_across_processes_a_file_is_enough(spill: Path) -> None:
    memories = Memories({"a": Memory(some(1)), "b": Memory(some(2))}, budget=1)
    small, large = (len(_dumps(memories.of(c))) for c in "ab")
    assert small < 1000 < large
    assert same(pickle.loads(pickle.dumps(memories.of("a"))).tensors, some(1))


def test_no_file_is_left_when_nobody_needs_it(spill: Path) -> None:
    progress = train(make(Ditto(), rounds=1))[-1]
    held = Memories({c: Memory(progress.memories[c]) for c in progress.memories}, budget=0)
    assert list(spill.rglob("*.safetensors"))
    del held
    gc.collect()
    assert not list(spill.rglob("*"))


def test_a_pickled_memory_has_its_tensors_when_the_file_is_gone(tmp_path: Path) -> None:
    kept = Memories(budget=0, folder=tmp_path).updated({"a": {"w": torch.ones(3)}})
    copy = pickle.loads(pickle.dumps(kept.of("a")))
    shutil.rmtree(tmp_path)
    assert torch.equal(copy.tensors["w"], torch.ones(3))
