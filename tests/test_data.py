import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from floco.core.errors import FlocoError
from floco.data.federation import Federation
from floco.data.normalization import Normalization
from floco.data.partition import (
    SPLITS,
    Dirichlet,
    DirichletSizes,
    Folds,
    Iid,
    Natural,
    Pathological,
    Single,
)
from floco.data.sources import load
from floco.data.split import Table, heterogeneity

DIGITS = load("digits")


def counts(federation: Federation) -> np.ndarray:
    return np.array(
        [np.add(federation.label_counts(c.train), federation.label_counts(c.test)) for c in federation.clients]
    )


def rows(federation: Federation) -> list[int]:
    return [i for c in federation.clients for i in (*c.train.tolist(), *c.test.tolist())]


def test_rotated_digits_are_the_digits_once_each_and_turned_by_group() -> None:
    found = load("digits:rotated")
    assert isinstance(found.x, torch.Tensor)
    assert isinstance(DIGITS.x, torch.Tensor)
    clients, counts = np.unique(found.columns["client"], return_counts=True)
    assert (len(clients), set(counts.tolist())) == (40, {44})
    known = {(picture.numpy().tobytes(), int(label)) for picture, label in zip(DIGITS.x, DIGITS.y, strict=True)}
    for picture, label, degrees in zip(found.x[:, 0], found.y, found.columns["rotation"], strict=True):
        upright = np.rot90(picture.numpy(), -int(degrees) // 90)
        assert (np.ascontiguousarray(upright).tobytes(), int(label)) in known
    assert [np.unique(found.columns["rotation"][found.columns["client"] == c]).tolist() for c in (0, 1, 2, 3, 4)] == [
        [0],
        [90],
        [180],
        [270],
        [0],
    ]


@pytest.mark.parametrize(
    "split", [Folds(5), Dirichlet(0.5), DirichletSizes(1.0), Iid(), Pathological(2)], ids=lambda s: s.name
)
def test_every_split_gives_each_row_to_one_client_at_most_and_follows_the_seed(split: Folds) -> None:
    a, b, c = (DIGITS.split(split, clients=10, seed=s) for s in (0, 0, 1))
    assert len(set(rows(a))) == len(rows(a))
    assert rows(a) == rows(b) != rows(c)
    assert len(a.clients) == 10
    assert all(len(set(k.train.tolist()) & set(k.test.tolist())) == 0 for k in a.clients)


def test_the_registry_has_every_split() -> None:
    assert set(SPLITS) == {"folds", "dirichlet", "dirichlet-sizes", "iid", "pathological", "natural", "single"}


def test_folds_have_their_share_of_primary_classes_and_use_every_sample_once() -> None:
    """The 84 % of the released code on CIFAR-10's shape: 210 + 210 of the primary classes, 10 of each other."""
    labels = np.repeat(np.arange(10), 5000)
    parts = list(Folds(5, share=0.84).assign(Table(labels, {}), clients=100, samples=500, seed=0).values())
    assert sorted(np.concatenate(parts).tolist()) == list(range(50_000))
    for i, part in enumerate(parts):
        c = np.bincount(labels[part], minlength=10)
        f = i % 5
        assert c[2 * f] == c[2 * f + 1] == 210
        assert sorted(np.delete(c, [2 * f, 2 * f + 1])) == [10] * 8


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 5), st.floats(0, 1), st.integers(2, 12))
def test_folds_deal_exactly_what_was_asked_or_say_why_not(folds: int, share: float, clients: int) -> None:
    labels = np.arange(600) % 6
    try:
        parts = [*Folds(folds, share=share).assign(Table(labels, {}), clients=clients, samples=40, seed=0).values()]
    except FlocoError as error:
        assert "data.split.share" in str(error)  # noqa: PT017
        per_fold = [sum(i % folds == f for i in range(clients)) * round(share * 40) for f in range(folds)]
        others = [sum(i % folds != f for i in range(clients)) * (40 - round(share * 40)) for f in range(folds)]
        room = [100 * sum(c * folds // 6 == f for c in range(6)) for f in range(folds)]
        assert any(p > r for p, r in zip(per_fold, room, strict=True)) or sum(others) > 0  # noqa: PT017
        return
    assert [len(p) for p in parts] == [40] * clients
    for i, p in enumerate(parts):
        primary = [c for c in range(6) if c * folds // 6 == i % folds]
        assert np.isin(labels[p], primary).sum() == round(share * 40)


def test_any_partitioner_of_the_library_can_be_given() -> None:
    from flwr_datasets.partitioner import ShardPartitioner

    shards = ShardPartitioner(num_partitions=6, partition_by="label", num_shards_per_partition=2)
    for f in (DIGITS.split(shards), DIGITS.split(shards)):
        assert len(f.clients) == 6
        assert (counts(f) > 0).sum(axis=1).max() <= 4


def test_dirichlet_has_equal_sizes_and_dirichlet_sizes_has_not() -> None:
    assert set(counts(DIGITS.split(Dirichlet(0.5), clients=10, samples=100)).sum(axis=1)) == {100}
    assert len(set(counts(DIGITS.split(DirichletSizes(0.5), clients=10)).sum(axis=1))) > 3


def test_iid_is_shuffled_and_pathological_has_its_classes() -> None:
    assert (counts(DIGITS.split(Iid(), clients=5)) > 0).all()
    assert set((counts(DIGITS.split(Pathological(3), clients=10)) > 0).sum(axis=1)) == {3}


def test_heterogeneity_is_zero_for_equal_and_near_one_for_disjoint_clients() -> None:
    assert heterogeneity([[5, 5], [10, 10]]) == 0
    assert heterogeneity(np.eye(20).tolist()) == pytest.approx(0.95)


def test_test_parts_do_not_depend_on_other_clients() -> None:
    a = load(
        {"x": np.random.default_rng(0).random((40, 3)), "y": np.arange(40) % 2, "client": np.repeat(["b", "a"], 20)}
    )
    b = load(
        {"x": np.random.default_rng(0).random((40, 3)), "y": np.arange(40) % 2, "client": np.repeat(["b", "c"], 20)}
    )
    one, other = a.split(Natural()).client("b"), b.split(Natural()).client("b")
    assert torch.equal(one.test, other.test)
    assert len(one.test) == 4
    assert not torch.equal(
        one.test + 20, a.split(Natural()).client("a").test
    )  # nor have equal clients the same positions


def test_natural_clients_keep_their_ids_and_samples() -> None:
    f = load(
        {
            "x": np.zeros((6, 2)),
            "y": [0, 1, 0, 1, 0, 1],
            "client": np.array(["north", "south", "north", "south", "south", "north"]),
        }
    ).split(Natural())
    assert f.ids == ("north", "south")
    assert sorted((*f.client("north").train.tolist(), *f.client("north").test.tolist())) == [0, 2, 5]


def test_order_makes_the_latest_the_test_part_and_drops_the_window_at_the_cut() -> None:
    position = np.concatenate([np.arange(10) / 10, np.arange(5) / 5])  # two recordings of one client
    data = {
        "x": np.zeros((15, 2), np.float32),
        "y": np.arange(15) % 2,
        "client": np.zeros(15, int),
        "position": position,
    }
    (c,) = load(data).split(Natural(), order="position").clients
    assert c.train.tolist() == [0, 1, 2, 3, 4, 5, 6, 10, 11, 12]
    assert c.test.tolist() == [8, 9, 14]


def test_held_out_clients_take_no_part_in_anything() -> None:
    f = DIGITS.split(Folds(5), clients=10, held_out=5)
    assert f.ids == tuple(f"client-{i}" for i in range(5))
    assert [c.id for c in f.held_out] == [f"client-{i}" for i in range(5, 10)]
    everyone = torch.cat([c.train for c in f.clients])
    assert f.normalization.mean[0] == pytest.approx(float(f.x[everyone].float().mean() / 255))


def test_normalization_is_of_the_training_parts_per_channel() -> None:
    f = load((np.random.default_rng(0).normal(3, 2, (100, 4)).astype(np.float32), np.arange(100) % 2)).split(
        Iid(), clients=4
    )
    train = f.inputs(torch.cat([c.train for c in f.clients]))
    assert torch.allclose(train.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(train.std(0, unbiased=False), torch.ones(4), atol=1e-5)


def test_a_constant_feature_is_only_centered() -> None:
    x = np.ones((20, 2), np.float32)
    x[:, 1] = np.arange(20)
    f = load((x, np.arange(20) % 2)).split(Iid(), clients=2)
    assert f.normalization.std[0] == 1
    assert torch.isfinite(f.inputs(torch.arange(20))).all()


def test_fixed_normalization_is_the_formula() -> None:
    n = Normalization((0.5,), (0.25,))
    assert torch.allclose(n(torch.tensor([[[0, 255]]], dtype=torch.uint8)), torch.tensor([[[-2.0, 2.0]]]))


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "inputs"),
    [
        ((9, 8, 8), np.uint8, "auto", (1, 8, 8)),
        ((9, 8, 8, 3), np.uint8, "auto", (3, 8, 8)),
        ((9, 8, 8, 3), np.float64, "auto", (3, 8, 8)),
        ((9, 6, 100), np.float32, "auto", (6, 100)),
        ((9, 8, 8), np.float32, "images", (1, 8, 8)),
        ((9, 5), np.int64, "auto", (5,)),
        ((9, 3, 8, 8), np.float32, "features", (3, 8, 8)),
    ],
)
def test_images_and_features_are_told_apart(
    shape: tuple[int, ...], dtype: type, kind: str, inputs: tuple[int, ...]
) -> None:
    s = load((np.zeros(shape, dtype), np.arange(9) % 2), kind=kind)
    assert tuple(s.x.shape[1:]) == inputs
    assert s.x.dtype == (torch.uint8 if dtype is np.uint8 else torch.float32)


def test_npz_with_strings_and_a_global_test_part(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(
        path,
        x_train=np.zeros((6, 2)),
        y_train=np.array(["cat", "dog"] * 3),
        x_test=np.ones((2, 2)),
        y_test=np.array(["dog", "dog"]),
    )
    f = load(f"npz:{path}").split(Iid(), clients=2)
    assert f.names == ("cat", "dog")
    assert f.y_test.tolist() == [1, 1]


def test_labels_of_any_numbers_and_names(tmp_path: Path) -> None:
    assert load((np.zeros((4, 2)), np.array([-7, 40, 40, -7]))).y.tolist() == [0, 1, 1, 0]
    named = load({"x": np.zeros((2, 2)), "y": np.array([0, 2]), "names": np.array(["a", "b", "c"])})
    assert named.names == ("a", "b", "c")


def test_idx_files_plain_and_packed(tmp_path: Path) -> None:
    images, labels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3), np.array([1, 0], np.uint8)
    header = {
        3: b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 3, 3)),
        1: b"\0\0\x08\x01" + (2).to_bytes(4, "big"),
    }
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header[3] + images.tobytes())
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header[1] + labels.tobytes()))
    s = load(f"idx:{tmp_path}")
    assert torch.equal(s.x[:, 0], torch.from_numpy(images))
    assert s.y_test.tolist() == [1, 0]


def test_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    for part, n in (("train", 3), ("test", 1)):
        for label in ("cat", "dog"):
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(
                    tmp_path / "data" / part / label / f"{i}.png"
                )
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    s = load(f"folder:{tmp_path / 'data'}")
    assert s.names == ("cat", "dog")
    assert tuple(s.x.shape) == (6, 3, 8, 8)
    assert len(s.y_test) == 2


def test_a_hub_set_is_read_by_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder stands where a name on the hub would: the same call of the library."""
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    features = Features(
        {"x": Sequence(Value("float32"), 2), "label": ClassLabel(names=["no", "yes"]), "client": Value("string")}
    )
    (tmp_path / "set").mkdir()
    Dataset.from_dict(
        {"x": [[0, i] for i in range(8)], "label": [0, 1] * 4, "client": ["a", "b"] * 4}, features=features
    ).to_parquet(tmp_path / "set" / "train.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    samples = load(f"hub:{tmp_path / 'set'}")
    assert samples.names == ("no", "yes")
    assert samples.x[:, 1].tolist() == list(range(8))
    assert samples.split(Natural()).ids == ("a", "b")
    with pytest.raises(FlocoError, match="cannot be loaded by the datasets library"):
        load(f"hub:{tmp_path / 'none'}")


def test_a_function_and_a_pair_of_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # of another test
    (tmp_path / "mine.py").write_text(
        "import numpy as np\ndef load():\n    return np.zeros((4, 2)), np.array([0, 1, 0, 1])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert len(load("mine:load").y) == 4
    assert len(load((torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))).y) == 4


BAD_ARRAYS = [
    ({"x": np.zeros((3, 2))}, "y is missing"),
    ({"x": np.zeros((3, 2)), "y": [0, 1]}, "y must be 3 whole numbers or strings"),
    ({"x": np.zeros((2, 2)), "y": [0.5, 1.0]}, "whole numbers or strings"),
    ({"x": np.zeros(3), "y": [0, 1, 0]}, "one dimension at least"),
    ({"x": np.array([[np.nan], [0.0]]), "y": [0, 1]}, "finite in float32; sample 0"),
    ({"x": np.array([["a"], ["b"]]), "y": [0, 1]}, "must be numbers"),
    ({"x": np.zeros((2, 2)), "y": [1, 1]}, "2 classes at least"),
    ({"x_train": np.zeros((2, 2)), "y_train": [0, 1], "x_test": np.zeros((1, 2)), "y_test": [5]}, "do not fit"),
    ({"x_train": np.zeros((2, 2)), "y_train": [0, 1], "x_test": np.zeros((1, 3)), "y_test": [1]}, r"shape \(N, 2\)"),
    ({"x_train": np.zeros((2, 2)), "y_train": [0, 1], "x_test": np.zeros((1, 3))}, "y_test is missing"),
    ({"x": np.zeros((2, 2)), "y": [0, 7], "names": ["a", "b"]}, "from 0 to 1, got 0 to 7"),
    ({"x": np.zeros((2, 2)), "y": ["b", "a"], "names": ["a", "b"]}, "from 0 to 1, got a to b"),
    ({"x": np.zeros((2, 2)), "y": [0, 1], "client": [["a"], ["b"]]}, r"client must have .* got shape \(2, 1\)"),
    ({"x": np.zeros((2, 2)), "y": [0, 1], "client": "a"}, r"client must have .* got shape \(\)"),
]


@pytest.mark.parametrize(("arrays", "says"), BAD_ARRAYS, ids=[s for _, s in BAD_ARRAYS])
def test_arrays_that_do_not_fit_are_named(arrays: dict[str, object], says: str) -> None:
    with pytest.raises(FlocoError, match=says):
        load(arrays)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("npz:/nowhere.npz", "there is no file"),
        ("folder:/nowhere", "there is no folder"),
        ("idx:/nowhere", "neither is there"),
        ("digit", "did you mean 'digits'"),
        ("digits:turned", "digits or digits:rotated"),
        ("npz", "npz:PATH"),
        ("no_such_module:load", "No module named"),
        ("floco.data.sources:lod", "has no 'lod'"),
    ],
)
def test_sources_that_cannot_be_read_are_named(source: str, says: str) -> None:
    with pytest.raises(FlocoError, match=says):
        load(source)


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 broken")
    np.savez(tmp_path / "b.npz", x=np.array([{}]), y=np.array([1]))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(FlocoError, match=rf"{name}.*(cannot be read|holds Python objects)"):
            load(f"npz:{tmp_path / name}")


@pytest.mark.parametrize(
    ("split", "options", "says"),
    [
        (Iid(), {"clients": 2000}, "need 2000 samples, the source has 1797"),
        (Iid(), {"clients": 20, "samples": 100}, "need 2000 samples"),
        (Iid(), {"clients": 1797}, 'client "client-0" has 1 samples; it needs 2'),
        (Folds(11), {"clients": 20}, "at most the number of classes"),
        (Folds(5), {}, "must say how many"),
        (Iid(), {"clients": 5, "samples": -5}, "data.samples 2, got 5 and -5"),
        (Iid(), {"clients": -1}, "1 at least"),
        (Folds(5, share=1.0), {"clients": 5, "samples": 359}, "runs out of samples"),
        (Pathological(11), {"clients": 5}, r"data.split.classes must be at most the number of classes \(10\), got 11"),
        (Pathological(1), {"clients": 3, "samples": 190}, "only"),
        (DirichletSizes(0.001), {"clients": 50}, r"needs 10 samples.* larger data.split.alpha \(got 0.001\), fewer"),
        (Dirichlet(0.001), {"clients": 20}, r"larger data.split.alpha \(got 0.001\), fewer data.clients"),
        (IidPartitioner(6), {"clients": 5}, "is of 6 clients, and data.clients = 5"),
        (Single(), {"clients": 5}, "is of 1 clients, and data.clients = 5"),
        (Natural(), {}, 'needs a source with a column "client"'),
        (Iid(), {"clients": 5, "test_share": 1.0}, "test_share"),
        (Iid(), {"clients": 5, "held_out": 5}, "held_out"),
        (Iid(), {"clients": 5, "order": "time"}, "no column 'time'"),
        (Iid(), {"clients": 5, "normalize": Normalization((0.1, 0.2), (1.0, 1.0))}, "1 channels, got 2"),
    ],
)
def test_splits_that_cannot_deliver_say_why(split: Folds, options: dict[str, object], says: str) -> None:
    with pytest.raises(FlocoError, match=says):
        DIGITS.split(split, **options)


def test_fingerprints_tell_data_apart() -> None:
    a, b, c = DIGITS.split(Iid(), clients=4), DIGITS.split(Iid(), clients=4), DIGITS.split(Iid(), clients=4, seed=1)
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
    changed = Federation(a.x.clone(), a.y, a.clients, a.names, forms=a.forms)
    changed.x[0, 0, 0, 0] += 1
    assert changed.fingerprint() != a.fingerprint()


def test_labels_as_bytes_objects_and_truth_values() -> None:
    x = np.zeros((4, 2))
    assert load((x, np.array([b"cat", b"dog"] * 2))).names == ("cat", "dog")
    assert load((x, np.array(["cat", "dog"] * 2, dtype=object))).names == ("cat", "dog")
    assert load((x, np.array([True, False] * 2))).y.tolist() == [1, 0, 1, 0]


def test_a_column_of_another_length_is_named() -> None:
    with pytest.raises(FlocoError, match="column client must have one value for each of the 4 samples"):
        load({"x": np.zeros((4, 2)), "y": [0, 1, 0, 1], "client": np.zeros(3)})


def test_two_clients_of_one_id_are_refused() -> None:
    f = DIGITS.split(Iid(), clients=2)
    with pytest.raises(FlocoError, match="id of its own, got client-0"):
        Federation(f.x, f.y, (f.clients[0], f.clients[0]), f.names)


def test_a_single_client_has_everything_and_labels_can_be_told_beforehand() -> None:
    x, y = np.arange(24, dtype=np.float32).reshape(12, 2), np.array([3, 1] * 6)
    federation = load((x, y), labels=("1", "2", "3")).split(Single("north"))
    assert federation.ids == ("north",)
    assert (federation.names, federation.schema.labels.values) == (("1", "2", "3"), ("1", "2", "3"))
    assert federation.y.tolist() == [2, 0] * 6
    client = federation.client("north")
    assert sorted([*client.train.tolist(), *client.test.tolist()]) == list(range(12))
    with pytest.raises(FlocoError, match=r"labels 3 are not among data.labels \(1, 2\)"):
        load((x, y), labels=("1", "2"))


def test_statistics_are_the_same_bits_whatever_the_number_of_threads() -> None:
    x, y = np.random.default_rng(0).random((5000, 40), np.float32), np.arange(5000) % 2
    found = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(load((x, y)).split(Dirichlet(1.0), clients=1).normalization)
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
