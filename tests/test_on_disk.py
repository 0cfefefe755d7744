"""Large updates in files: the same numbers, and nothing left behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from conftest import make, same, train
from floco.algorithms import ALGORITHMS, FedAvg
from floco.core.values import Layout, ServerState, Update
from floco.engines import engine as engines
from floco.engines.engine import Serial, resolve
from floco.engines.jobs import Result
from floco.engines.processes import Processes
from floco.engines.units import put_aside
from floco.server import evaluation
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def files(folder: Path) -> list[Path]:
    """Those of updates."""
    return [f for f in folder.glob("floco-*/*") if f.suffix != ".safetensors"]  # memories have others


def test_tensors_of_all_kinds_are_read_as_they_were(folder: Path) -> None:
    read = OnDisk(KINDS, "floco-x")
    assert list(read) == list(KINDS)
    for name, tensor in KINDS.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name], tensor)


def test_writing_to_a_tensor_changes_neither_the_file_nor_other_readings(folder: Path) -> None:
    read = OnDisk({"w": torch.ones(3)}, "floco-x")
    before, written = read["w"], read["w"]
    written.zero_()
    assert torch.equal(before, torch.ones(3))
    assert torch.equal(read["w"], torch.ones(3))


def test_a_file_is_deleted_with_its_tensors(folder: Path) -> None:
    read = OnDisk({"w": torch.ones(3)}, "floco-x")
    kept = read["w"]
    delete_later([read])
    assert files(folder)
    del read
    assert not files(folder)
    assert torch.equal(kept, torch.ones(3))


def test_an_update_that_cannot_be_written_is_a_failure_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_disk, "LARGE", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    found = put_aside(Result("a", Update("a", "train", 1, {"w": torch.ones(3)})), "floco-x")
    assert found.update is None
    assert str(found.failure).startswith("cannot write the tensors of a large model to a temporary file: No such file")
    assert "TMPDIR" in str(found.failure)


def test_a_full_disk_leaves_nothing_of_an_update(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second file of an update finds no space."""
    write = OnDisk._write

    def fill(self: OnDisk, tensors: dict[str, torch.Tensor], file: object) -> None:
        if "change" in tensors:
            raise OSError(28, "No space left on device")
        write(self, tensors, file)  # type: ignore[arg-type]

    monkeypatch.setattr(on_disk, "LARGE", 0)
    monkeypatch.setattr(OnDisk, "_write", fill)
    update = Update("a", "train", 1, {"w": torch.ones(3)}, {"change": torch.ones(3)})
    assert "No space left on device; free some space" in str(put_aside(Result("a", update), "floco-x").failure)
    assert not files(folder)


def test_a_run_of_a_small_model_needs_no_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    for engine in (Serial(setup := make(FedAvg())), Processes(setup, 2)):
        assert len(train(setup, engine)) == 6
        engine.close()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_with_large_updates_has_the_same_bits_and_leaves_no_file(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(make(ALGORITHMS[name]()))
    monkeypatch.setattr(on_disk, "LARGE", 0)
    for engine in (Serial(setup := make(ALGORITHMS[name]())), Processes(setup, 2)):
        for a, b in zip(expected, train(setup, engine), strict=True):
            assert same(a.state.shared, b.state.shared)
            assert a.evaluation == b.evaluation
        assert [*folder.glob("floco-*")]  # it was used
        assert not files(folder)
        engine.close()
        assert not [f for f in folder.glob("floco-*") if not any(f.iterdir())]


@dataclass(frozen=True)
class Clips(FedAvg):
    """A method of one's own, which writes to updates and uses them as dictionaries."""

    def aggregate(self, state: ServerState, updates: Sequence[Update], **known: object) -> ServerState:
        for update in updates:
            for tensor in (update.shared | {}).values():  # type: ignore[operator]
                tensor.clamp_(-0.1, 0.1)
        return super().aggregate(state, updates, **known)  # type: ignore[arg-type]


def test_a_method_of_ones_own_may_write_to_updates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(make(Clips()))[-1]
    monkeypatch.setattr(on_disk, "LARGE", 0)
    found = train(make(Clips()))[-1]
    assert same(expected.state.shared, found.state.shared)
    assert float(max(t.abs().max() for t in found.state.shared.values())) < 0.1001


def test_the_spread_of_updates_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"w": torch.randn(7, 3)}
    after = [{"w": torch.randn(7, 3)} for _ in range(4)]
    given = (before, after, [1, 2, 3, 4], Layout(("w",), (), None))
    whole = evaluation.update_spread(*given)
    monkeypatch.setattr(evaluation, "_AT_ONCE", 5)
    assert evaluation.update_spread(*given) == pytest.approx(whole, rel=1e-12)


def test_a_large_model_trains_in_one_process_if_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make(FedAvg(), fraction=0.1)
    assert resolve(setup, "auto", None)[0] == "processes"
    monkeypatch.setattr(engines, "_LARGE_MODEL", 100)
    with pytest.warns(UserWarning, match=r"on one core.*set run\.workers"):
        assert resolve(setup, "auto", None) == ("serial", 1)
    assert resolve(setup, "auto", 2) == ("processes", 2)
