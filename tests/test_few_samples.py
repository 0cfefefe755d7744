"""Fashion-MNIST for few samples (benchmarks/few_samples.py): who has what, and how clients differ."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from floco.runs.toml import read

ROOT = Path(__file__).parents[1]
MADE = runpy.run_path(str(ROOT / "benchmarks" / "few_samples.py"))
NUMBER = np.arange(60_000)
X = np.stack([NUMBER // 4096, NUMBER // 64 % 64, NUMBER % 64, np.full(60_000, 255)], 1).astype(np.uint8)
X = X.reshape(-1, 2, 2)  # which sample it is, and which way up
Y = NUMBER % 10
SIZES = {"rotated": [25] * 4, "confused": [25] * 4, "unequal": [5, 15, 25, 55], "iid": [100]}


def upright(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of samples, and by how many quarters they were turned."""
    place = x.reshape(-1, 4).argmax(1)  # of 255, which is last in a picture that was not turned
    turns = np.array([2, 1, 3, 0])[place]
    back = np.concatenate([np.rot90(x[turns == t], -t, axes=(1, 2)) for t in range(4)]).reshape(-1, 4).astype(int)
    back = back[np.argsort(np.argsort(turns, kind="stable"))]  # in the order of the samples
    return back[:, 0] * 4096 + back[:, 1] * 64 + back[:, 2], turns


@pytest.mark.parametrize("variant", SIZES)
def test_every_client_has_as_many_samples_none_twice_and_groups_have_their_sizes(variant: str) -> None:
    made = MADE["make"](variant, X, Y, 0)
    assert np.unique(made["client"], return_counts=True)[1].tolist() == [560] * 100
    number, turns = upright(made["x"])
    assert len(np.unique(number)) == 56_000
    assert sorted(np.unique(made["group"], return_counts=True)[1] / 560) == SIZES[variant]
    by_client = made["group"].reshape(100, 560)
    assert (by_client == by_client[:, :1]).all()
    if variant == "confused":
        assert not turns.any()
    else:
        assert (made["y"] == Y[number]).all()
        groups = made["group"] if len(SIZES[variant]) > 1 else np.full(56_000, "0 degrees")
        assert (groups == np.array([f"{90 * t} degrees" for t in range(4)])[turns]).all()


def test_the_labels_of_the_same_five_classes_are_permuted_in_another_way_in_each_group() -> None:
    made = MADE["make"]("confused", X, Y, 0)
    number, ways = upright(made["x"])[0], set()
    for group in np.unique(made["group"]):
        mine = made["group"] == group
        shown = {(int(a), int(b)) for a, b in zip(Y[number[mine]], made["y"][mine], strict=True)}
        assert sorted(a for a, _ in shown) == sorted(b for _, b in shown) == list(range(10))  # one label for each class
        ways.add(frozenset((a, b) for a, b in shown if a != b))
    assert len(ways) == 4
    assert len({a for way in ways for a, _ in way}) == 5


def test_without_groups_nobody_has_the_pictures_of_another_client() -> None:
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    made = MADE["make"]("each", np.broadcast_to(picture, (60_000, 8, 8)), Y, 0)
    first = made["x"].reshape(100, 560, 64)[:, 0]
    assert len(np.unique(first, axis=0)) == 100
    assert len(np.unique(made["group"])) == len(MADE["STYLES"])


@pytest.mark.parametrize("variant", MADE["VARIANTS"])
def test_equal_seeds_make_equal_files_and_others_do_not(variant: str) -> None:
    one, again, other = (MADE["make"](variant, X, Y, seed) for seed in (0, 0, 1))
    assert all((one[k] == again[k]).all() for k in one)
    assert (one["x"] != other["x"]).any()


def test_the_configuration_takes_the_file_and_divides_it_into_halves_of_forty() -> None:
    path = ROOT / "configs" / "rotated.toml"
    data = read(path).data
    assert "python benchmarks/few_samples.py rotated" in path.read_text()
    assert (data.source, data.samples, data.test_share) == ("npz:data/few-rotated.npz", 80, 0.5)
