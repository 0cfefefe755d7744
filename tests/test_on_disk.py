"""Large updates in files: the same numbers, and nothing left behind."""

from pathlib import Path

import pytest
import torch

from conftest import make, same, train
from floco.algorithms import ALGORITHMS
from floco.core.errors import FlocoError
from floco.core.values import Update
from floco.engines.engine import Serial
from floco.engines.jobs import Result
from floco.engines.processes import Processes
from floco.engines.units import put_aside
from floco.storage import on_disk
from floco.storage.on_disk import OnDisk, delete_later

KINDS = {
    "float32": torch.randn(3, 4),
    "one number": torch.tensor(1.5),
    "none": torch.empty(0, 3),
    "transposed": torch.randn(3, 4).T,
    "float64": torch.randn(5, dtype=torch.float64),
    "bfloat16": torch.randn(7).bfloat16(),
    "half": torch.randn(7).half(),
    "counter": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "trained": torch.randn(2, requires_grad=True),
}


def test_tensors_of_all_kinds_are_read_as_they_were(tmp_path: Path) -> None:
    read = OnDisk(KINDS, tmp_path)
    assert list(read) == list(KINDS)
    for name, tensor in KINDS.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name], tensor)


def test_writing_to_a_tensor_changes_neither_the_file_nor_other_readings(tmp_path: Path) -> None:
    read = OnDisk({"w": torch.ones(3)}, tmp_path)
    before, written = read["w"], read["w"]
    written.zero_()
    assert torch.equal(before, torch.ones(3))
    assert torch.equal(read["w"], torch.ones(3))


def test_a_file_is_deleted_with_its_tensors(tmp_path: Path) -> None:
    read = OnDisk({"w": torch.ones(3)}, tmp_path)
    kept = read["w"]
    delete_later([read])
    assert [*tmp_path.iterdir()]
    del read
    assert not [*tmp_path.iterdir()]
    assert torch.equal(kept, torch.ones(3))


def test_an_update_that_cannot_be_written_is_a_failure_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_disk, "LARGE", 0)
    found = put_aside(Result("a", Update("a", "train", 1, {"w": torch.ones(3)})), tmp_path / "none")
    assert found.update is None
    assert str(found.failure).startswith(f"cannot write a large model's tensors to {tmp_path / 'none'}: No such file")
    assert "TMPDIR" in str(found.failure)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_with_large_updates_has_the_same_bits_and_leaves_no_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(make(ALGORITHMS[name]()))
    monkeypatch.setattr(on_disk, "LARGE", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for engine in (Serial(setup := make(ALGORITHMS[name]())), Processes(setup, 2)):
        for a, b in zip(expected, train(setup, engine), strict=True):
            assert same(a.state.shared, b.state.shared)
            assert a.evaluation == b.evaluation
        assert not [f for f in tmp_path.rglob("*") if f.is_file() and f.suffix != ".safetensors"]
        engine.close()
        del engine


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(OnDisk, "_write", fill)
    with pytest.raises(FlocoError, match="No space left on device; free some space"):
        OnDisk({"w": torch.ones(3)}, tmp_path)
    assert not [*tmp_path.iterdir()]
