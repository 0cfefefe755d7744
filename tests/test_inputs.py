"""Inputs as people have them: what would give a wrong number is put right, or refused by name."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import floco
from floco.core.errors import FlocoError
from floco.data.normalization import Normalization, fit_normalization, join_sums, sum_channels
from floco.data.partition import DirichletSizes, Iid, Natural, Pathological
from floco.data.sources import load

Y = np.arange(60) % 3
CLIENTS = np.repeat(list("abc"), 20)
HOLE = np.arange(60) % 9 == 0


def arrays(**change: object) -> dict[str, object]:
    return {"x": np.random.default_rng(0).normal(size=(60, 4)), "y": Y, "client": CLIENTS, **change}


# -- labels and ids

MARKS = ("NA", "N/A", "n/a", "#N/A", "nan", "NaN", "null", "NULL", "None", "<NA>", "NaT", "?")


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (np.where(HOLE, -1, Y), "7 of 60 labels are -1"),
        (np.where(HOLE, 255, Y).astype(np.uint8), "7 of 60 labels are 255"),
        (np.where(HOLE, "", Y.astype(str)), "7 of 60 labels are ''"),
        (np.where(HOLE, "  ", Y.astype(str)), "7 of 60 labels are ''"),
        (Y.astype(float).astype(str), None),
        (np.where(HOLE, np.nan, Y).astype(str), "labels are 'nan'"),
        (np.where(HOLE, np.nan, Y), "7 of 60 are missing"),
        (np.where(HOLE, None, Y.astype(object)), "7 of 60 are missing"),
        (pd.array(np.where(HOLE, None, Y.astype(object)), dtype="Int64"), "7 of 60 are missing"),
        (np.ma.masked_where(HOLE, Y), "7 values are masked"),
        (Y.astype(float), None),
        (np.where(HOLE, -1.0, Y), "7 of 60 labels are -1"),
        (Y[:, None], "one for each sample"),
        (np.array([b"caf\xe9", b"eau", b"jus"])[Y], "not UTF-8"),
        (np.array([1, "1", 2] * 20, dtype=object), "all whole numbers or all text"),
        (np.where(HOLE, -9, Y), "7 of 60 labels are -9"),
        (np.where(HOLE, -1, Y + 1), "7 of 60 labels are -1"),
        *((np.where(HOLE, text, np.array(["yes", "no"])[Y % 2]), f"7 of 60 labels are '{text}'") for text in MARKS),
        (np.array([-1, 1] * 30), None),
        (np.array([-2, -1, 1] * 20), None),
        (np.array([0, 255] * 30, np.uint8), None),
        (np.arange(60) % 2 == 0, None),
        (pd.Categorical(["cat", "dog"] * 30), None),
    ],
)
def test_labels_that_stand_for_a_missing_one_are_refused_by_name_and_counted(y: object, says: str | None) -> None:
    if says is None:
        assert len(load(arrays(y=y)).names) in (2, 3)
    else:
        with pytest.raises(FlocoError, match=says):
            load(arrays(y=y))


TARGETS = {
    "classification": (Y, ()),
    "regression": (Y + 0.5, ()),
    "multilabel": (np.stack([Y == 0, Y == 1], 1), ()),
    "segmentation": (np.tile(Y[:, None, None] % 2, (1, 4, 4)), ("0", "1")),
    "tokens": (np.tile(Y[:, None] % 2, (1, 4)), ("0", "1")),
}


@pytest.mark.parametrize("missing", ["error", "drop", "mean"])
@pytest.mark.parametrize("task", TARGETS)
def test_masked_targets_are_no_targets_whatever_the_rule_for_samples(task: str, missing: str) -> None:
    y, labels = TARGETS[task]
    x = np.random.default_rng(0).normal(size=(60, 4, 4) if y.ndim == 3 else (60, 4))
    x[5] = x[5] if missing == "error" else np.nan
    masked = np.ma.masked_where(np.broadcast_to((np.arange(60) == 7).reshape(60, *(1,) * (y.ndim - 1)), y.shape), y)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*1 of 60 samples of x are left out")
        with pytest.raises(FlocoError, match=r"\d+ values are masked"):
            load({"x": x, "y": masked}, task=task, labels=labels, missing=missing)


def test_samples_of_a_table_keep_the_names_of_their_columns_when_some_are_dropped() -> None:
    x = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["a", "b"])
    x.loc[3, "a"] = np.nan
    with pytest.warns(UserWarning, match="1 of 60 samples of x are left out"):
        made = load(arrays(x=x), missing="drop").split(Natural())
    with pytest.raises(FlocoError, match="must have the columns a, b, in this order"):
        made.schema.samples(x[["b", "a"]].dropna(), "x")


@pytest.mark.parametrize("large", [0.0, 1.7e12])
def test_without_a_mean_no_missing_value_is_filled_in(large: float) -> None:
    x = large + np.arange(240.0).reshape(60, 4)
    whole = load(arrays(x=x), missing="mean").split(Natural(), normalize="none")
    assert not whole.inputs(torch.arange(60)).isnan().any()
    x = np.where(np.arange(240).reshape(60, 4) == 9, np.nan, x)
    with pytest.raises(FlocoError, match="must be finite"):
        whole.schema.samples(x, "x")
    with pytest.raises(FlocoError, match='"mean" needs a mean: set data.normalize to train or fixed, not none'):
        load(arrays(x=x), missing="mean").split(Natural(), normalize="none")


@pytest.mark.parametrize("given", [[2, 1, 0], np.array([2, 1, 0]), ("2", "1", "0"), pd.Series([2, 1, 0])])
def test_labels_are_named_by_anything_that_reads_so(given: object) -> None:
    assert load(arrays(), labels=given).names == ("2", "1", "0")


def test_a_label_that_is_named_as_a_class_is_one() -> None:
    assert load(arrays(y=np.where(HOLE, -1, Y)), labels=("-1", "0", "1", "2")).names == ("-1", "0", "1", "2")
    assert load(arrays(y=np.where(HOLE, "None", Y.astype(str))), labels=("None", "0", "1", "2")).names[0] == "None"


@pytest.mark.parametrize(
    ("client", "says"),
    [
        (np.where(HOLE, np.nan, np.repeat([1.0, 2.0, 3.0], 20)), "7 of 60 are missing"),
        (np.where(HOLE, None, CLIENTS.astype(object)), "7 of 60 are missing"),
        (pd.array(np.where(HOLE, None, CLIENTS), dtype="string"), "7 of 60 are missing"),
        (np.where(HOLE, "", CLIENTS), "7 of 60 are missing"),
        (np.where(HOLE, np.nan, np.repeat([1.0, 2.0, 3.0], 20)).astype(str), "7 of 60 are missing"),
        (np.array([1, "1"] * 30, dtype=object), "all whole numbers or all text"),
        (np.repeat([0.5, 1.5, 2.5], 20), "fractions"),
        (
            np.float32(2**24) + np.repeat([0, 2, 4], 20).astype(np.float32),
            "cannot tell whole numbers of that size apart",
        ),
        (np.ma.masked_where(HOLE, np.repeat([1, 2, 3], 20)), "7 values are masked"),
        (np.where(HOLE, "a ", CLIENTS), "with and without blanks"),
    ],
)
def test_client_ids_that_are_missing_or_unclear_are_refused_by_name(client: object, says: str) -> None:
    with pytest.raises(FlocoError, match=says):
        load(arrays(client=client)).split(Natural())


@pytest.mark.parametrize(
    ("client", "ids"),
    [
        (CLIENTS.astype("S1"), ("a", "b", "c")),
        (CLIENTS.astype(object), ("a", "b", "c")),
        (np.repeat([10, 9, 100], 20), ("9", "10", "100")),
        (np.repeat([1.0, 2.0, 3.0], 20), ("1", "2", "3")),
        (np.repeat([2**60 + 1, 2**60, 7], 20), ("7", str(2**60), str(2**60 + 1))),
    ],
)
def test_client_ids_of_every_kind_keep_apart(client: np.ndarray, ids: tuple[str, ...]) -> None:
    assert load(arrays(client=client)).split(Natural()).ids == ids


# -- numbers


@pytest.mark.parametrize("unit", [1e-13, 3e-7, 1e-3, 1e6])
def test_the_unit_of_a_feature_does_not_matter(unit: float) -> None:
    x = np.random.default_rng(0).normal(2, 3, (60, 4)).astype(np.float32)
    one, other = (load(arrays(x=x * np.float32(u))).split(Iid(), clients=2) for u in (1, unit))
    assert torch.allclose(one.inputs(torch.arange(60)), other.inputs(torch.arange(60)), atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -3e-9])
def test_a_feature_that_only_varies_by_rounding_is_constant(value: float) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    x[:, 0] = value
    x[::2, 0] = np.nextafter(x[0, 0], np.float32(np.inf)) if value else 0
    f = load(arrays(x=x)).split(Iid(), clients=2)
    assert f.normalization.std[0] == 1
    assert f.inputs(torch.arange(60))[:, 0].abs().max() < 0.1


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (1.7e12 + 1000 * np.arange(60.0)[:, None].repeat(2, 1), np.float64),
        (1_700_000_000_000 + np.arange(60)[:, None].repeat(2, 1), np.int64),
        (1_700_000_000_000_000_000 + np.arange(60)[:, None].repeat(2, 1), np.int64),
        (2**63 + 2**20 * np.arange(60, dtype=np.uint64)[:, None].repeat(2, 1), np.uint64),
        (101_300 + np.random.default_rng(0).normal(size=(60, 2)), np.float64),
    ],
    ids=["float ms", "int ms", "int ns", "uint64", "pascal"],
)
def test_large_numbers_are_centered_before_they_lose_their_digits(x: np.ndarray, dtype: type) -> None:
    x = x.astype(dtype)
    f = load(arrays(x=x)).split(Iid(), clients=2)
    rows = torch.cat([c.train for c in f.clients])
    middle = x.astype(object) - int(x[0, 0])
    exact = middle.astype(float)
    expected = (exact - exact[rows].mean(0)) / exact[rows].std(0)
    assert np.abs(f.inputs(torch.arange(60)).numpy() - expected).max() < 1e-3
    assert np.abs(f.normalize(f.schema.samples(x, "x")).numpy() - expected).max() < 1e-3  # and so does predict


def test_a_model_for_large_numbers_takes_them_in_a_file_too(tmp_path: object) -> None:
    x = 1.7e12 + 1000 * np.random.default_rng(0).normal(size=(60, 2)) + 2000 * Y[:, None]
    f = load(arrays(x=x)).split(Natural())
    run = floco.fit(floco.model("mlp", f), f, floco.FedAvg(), rounds=3, lr=0.1, engine="serial")
    (file,) = run.export(tmp_path / "a.pt2", ["a"])
    given = torch.export.load(file).module()(torch.from_numpy(x))[1].detach()
    assert np.abs(given.numpy() - run.predict(x, "a").filter(like="p(").to_numpy()).max() < 1e-5


def test_statistics_of_clients_add_up_without_losing_a_small_spread() -> None:
    x = torch.from_numpy(1e6 + np.random.default_rng(0).normal(size=(9000, 2))).float()
    whole = fit_normalization([sum_channels(x, torch.arange(9000))])
    parts = fit_normalization([sum_channels(x, torch.arange(i, 9000, 7)) for i in range(7)])
    assert whole.std == pytest.approx(x.double().std(0, unbiased=False).tolist(), rel=1e-9)
    assert parts.std == pytest.approx(whole.std, rel=1e-9)
    assert join_sums([(1, (2.0,), (0.0,)), (3, (0.0,), (6.0,))]) == (4, (2.0,), (9.0,))


def test_ids_among_the_features_that_float32_makes_equal_are_said() -> None:
    x = np.stack([np.arange(60), np.r_[np.arange(30), 2**31 + np.arange(30)]], 1)
    time = 1.7e12 + np.arange(60)[:, None]
    for given in (x, x.astype(np.float64), np.concatenate([x, time], 1)):
        with pytest.warns(UserWarning, match="feature 1 holds whole numbers beyond"):
            load(arrays(x=given))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(arrays(x=x // 2**8))


def test_bytes_are_divided_by_255_where_there_are_statistics_and_else_left_as_they_are() -> None:
    x = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)
    samples = load(arrays(x=x))
    none, fixed = (samples.split(Iid(), clients=2, normalize=n) for n in ("none", Normalization((0.5,), (0.25,))))
    assert torch.equal(none.inputs(torch.arange(60)), torch.from_numpy(x).float()[:, None])
    assert torch.allclose(fixed.inputs(torch.arange(60)), (torch.from_numpy(x).float()[:, None] / 255 - 0.5) / 0.25)
    assert (none.schema.form.divisor, fixed.schema.form.divisor) == (1, 255)


@pytest.mark.parametrize("given", ["trian", "fixed", "", None, 3])
def test_a_typo_in_normalize_is_an_error(given: object) -> None:
    with pytest.raises(FlocoError, match=r'data.normalize must be "train", "client", "none"'):
        load(arrays()).split(Iid(), clients=2, normalize=given)
    with pytest.raises(FlocoError, match=r'data.normalize must be "train", "client", "none"'):
        load(arrays(x=np.arange(60)[:, None]), kind="ids").split(Iid(), clients=2, normalize=given)


def test_what_becomes_of_the_users_arrays_later_changes_nothing() -> None:
    for x in (np.zeros((60, 4), np.float32), np.zeros((60, 4, 4), np.uint8), torch.zeros(60, 4)):
        y, client = Y.copy(), CLIENTS.copy()
        samples = load(arrays(x=x, y=y, client=client))
        x += 1
        y[:] = 0
        client[:] = "z"
        assert samples.x.max() == 0
        assert len(set(samples.y.tolist())) == 3
        assert samples.split(Natural()).ids == ("a", "b", "c")


# -- the test part


def parts(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    return {"x_train": train, "y_train": np.arange(len(train)) % 2, "x_test": test, "y_test": np.arange(len(test)) % 2}


PICTURES = np.random.default_rng(0).integers(0, 256, (40, 5, 6))


@pytest.mark.parametrize("test", ["u1", "i8", "i4", "u2"])
@pytest.mark.parametrize("train", ["u1", "f4", "i8"])
def test_the_test_part_takes_the_type_of_the_training_part(train: str, test: str) -> None:
    samples = load(parts(PICTURES[:30].astype(train), PICTURES[30:].astype(test)))
    assert samples.x_test.dtype == samples.x.dtype
    assert torch.equal(samples.x_test.float().flatten(), torch.from_numpy(PICTURES[30:]).float().flatten())


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (PICTURES[:30].astype("u1"), PICTURES[30:] / 255),
        (PICTURES[:30].astype("u1"), PICTURES[30:] - 200),
        (PICTURES[:30].astype("u1"), PICTURES[30:] * 3),
        (PICTURES[:30] / 255, PICTURES[30:].astype("u1")),
        (PICTURES[:30] / 255, PICTURES[30:].astype("f4")),
    ],
    ids=["bytes, shares", "bytes, below 0", "bytes, above 255", "shares, bytes", "shares, floats"],
)
def test_a_test_part_of_another_scale_is_refused(train: np.ndarray, test: np.ndarray) -> None:
    with pytest.raises(FlocoError, match="x_test"):
        load(parts(train, test))


@pytest.mark.parametrize(
    "x",
    [PICTURES / 1.0, PICTURES.astype("f4")[..., None], PICTURES.astype("u1")],
    ids=["grid", "picture", "bytes"],
)
def test_samples_that_vary_by_far_less_than_the_training_data_are_said(x: np.ndarray) -> None:
    with pytest.warns(UserWarning, match="another scaling"):
        load(parts(x[:30], (x[30:] / 255).astype(x.dtype)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(parts(x[:30], x[30:]))
        load(parts(x[:30], (x[30:35] / 255).astype(x.dtype)))  # few may be alike


def test_a_few_samples_of_a_test_part_may_be_far_out_and_are_said() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    x[50, 1] = 500
    with pytest.warns(UserWarning, match="x_test: sample 20 holds 500"):
        assert len(load(parts(x[:30], x[30:])).y_test) == 30
    with pytest.raises(FlocoError, match="x: sample 20 holds 500"):
        load((x[:30], np.arange(30) % 2)).schema.samples(x[30:], "x")


def test_numbers_that_float32_holds_are_left_as_they_are() -> None:
    assert load(arrays(x=2020 + np.arange(60.0)[:, None] % 2)).schema.form.offset == ()


def test_a_feature_that_never_varied_and_now_does_is_said() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    x[:, 1] = 3
    form = load(arrays(x=x)).schema.form
    form.samples(x, "x")
    with pytest.warns(UserWarning, match="channel 1 is always the same"):
        form.samples(x + [0, 1], "x")


def test_a_table_to_predict_has_the_columns_of_the_one_that_was_trained_on() -> None:
    table = pd.DataFrame({"age": np.arange(60.0), "bmi": np.arange(60.0)[::-1], "crp": np.ones(60)})
    form = load((table, Y)).split(Iid(), clients=2).schema.form
    assert form.samples(table, "x").shape == form.samples(table.to_numpy(), "x").shape
    with pytest.raises(FlocoError, match="columns age, bmi, crp, in this order"):
        form.samples(table[["crp", "age", "bmi"]], "x")


def test_a_data_sets_column_of_labels_is_the_one_called_so() -> None:
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    kinds = {
        "x": Sequence(Value("float32")),
        "sex": ClassLabel(names=["f", "m"]),
        "stage": ClassLabel(names=["0", "1", "2"]),
    }
    rows = {"x": np.zeros((60, 2)).tolist(), "sex": (Y % 2).tolist(), "stage": Y.tolist()}
    with pytest.raises(FlocoError, match='call it "label", or keep one class label of sex, stage'):
        load(Dataset.from_dict(rows, features=Features(kinds)))
    named = {"label": Value("int64"), **{k: v for k, v in kinds.items() if k != "stage"}}
    assert load(
        Dataset.from_dict({"x": rows["x"], "sex": rows["sex"], "label": rows["stage"]}, features=Features(named))
    ).names == ("0", "1", "2")


# -- the order of time

TIME = np.arange(200)
SWAPPED = TIME.copy()
SWAPPED[[100, 101]] = SWAPPED[[101, 100]]
TIED = TIME.astype(float)
TIED[[50, 120, 160]] = TIED[[49, 119, 159]]
SHUFFLED = np.random.default_rng(0).permutation(200)
ISO = np.array([f"2024-01-01T{i // 60:02}:{i % 60:02}" for i in range(200)])
ORDERS = {
    "increasing": TIME,
    "tied": TIED,
    "swapped": SWAPPED,
    "any order": SHUFFLED,
    "newest first, unsigned": TIME[::-1].astype(np.uint32),
    "newest first": TIME[::-1].copy(),
    "minutes": TIME // 5,
    "five values": TIME // 40,
    "two values": (TIME > 120).astype(int),
    "truth values": TIME > 120,
    "dates as text": ISO[SHUFFLED],
    "dates as bytes": ISO[SHUFFLED].astype("S"),
    "dates": ISO[SHUFFLED].astype("datetime64[m]"),
    "dates as objects": np.array([pd.Timestamp(t, tz="UTC") for t in ISO[SHUFFLED]], dtype=object),
    "numbers as text": SHUFFLED.astype(str),
    "recordings": np.tile(np.arange(20) / 20, 10),
}


def split_by(when: np.ndarray, share: float = 0.2) -> floco.Federation:
    x = np.arange(len(when), dtype=np.float32)[:, None]
    return load({"x": x, "y": np.arange(len(when)) % 2, "client": np.zeros(len(when), int), "when": when}).split(
        Natural(), order="when", test_share=share
    )


@pytest.mark.parametrize("name", ORDERS)
def test_no_training_sample_is_later_than_a_test_sample(name: str) -> None:
    when = ORDERS[name]
    order = SHUFFLED if "as text" in name or "as bytes" in name or "as objects" in name or name == "dates" else when
    for share in (0.05, 0.2, 0.5):
        (c,) = split_by(when, share).clients
        assert order[c.train].max() < order[c.test].min()
        assert len(c.train) + len(c.test) >= 190
        assert not set(c.train.tolist()) & set(c.test.tolist())


@pytest.mark.parametrize("zone", ["+02:00", "Z", " +0200"])
@pytest.mark.parametrize("form", [str, pd.Timestamp])
def test_dates_of_which_some_have_a_time_zone_are_not_ordered(form: type, zone: str) -> None:
    when = np.array([form(t + zone if i % 2 else t) for i, t in enumerate(ISO)], dtype=object)
    with pytest.raises(FlocoError, match="100 of 200 .*time zone"):
        split_by(when)


def test_every_recording_loses_the_window_before_the_cut() -> None:
    (c,) = split_by(ORDERS["recordings"]).clients
    assert {i + 1 for i in c.train.tolist()}.isdisjoint(c.test.tolist())
    assert len(c.train) == 200 - 40 - 10


@pytest.mark.parametrize(
    ("when", "says"),
    [
        (np.where(TIME % 50 == 0, np.nan, TIME), "4 of 200 values of the column when are missing"),
        (np.where(TIME % 50 == 0, None, ISO.astype(object)), "4 of 200 values of the column when are missing"),
        (np.zeros(200), "the same value"),
        (np.array(["early", "late"] * 100), "numbers or dates"),
        (TIME * 1j, "numbers or dates"),
        (np.array(["31.12", "01.02"] * 100), "days that do not sort by time, such as '31.12'"),
        (np.array(["31.12.", None] * 100), "days that do not sort by time, such as '31.12.'"),
        (np.array(["31122023", "01022024"] * 100), "days that do not sort by time, such as '31122023'"),
    ],
)
def test_a_column_without_an_order_is_refused(when: np.ndarray, says: str) -> None:
    with pytest.raises(FlocoError, match=says):
        split_by(when)


# -- sequences

STEPS, FEATURES = 20, 2


def series(n: int = 90) -> np.ndarray:
    g, y = np.random.default_rng(0), np.arange(n) % 3
    motion = np.sin(2 * np.pi * np.arange(STEPS) * (1 + y[:, None]) / STEPS + g.uniform(0, 6, n)[:, None])
    return np.stack([motion, 101_300 + 300 * g.normal(size=(n, STEPS))], 2).astype(np.float32)  # (N, T, F)


def test_features_that_come_last_have_statistics_of_their_own_and_stay_last() -> None:
    x = series()
    last = load({"x": x, "y": np.arange(90) % 3}, channels="last").split(Iid(), clients=3)
    first = load({"x": x.transpose(0, 2, 1).copy(), "y": np.arange(90) % 3}).split(Iid(), clients=3)
    assert last.shape == (STEPS, FEATURES)
    assert torch.equal(last.inputs(torch.arange(90)), first.inputs(torch.arange(90)).transpose(1, 2))
    assert last.normalization.std == first.normalization.std
    assert (last.schema.form.shape, first.schema.form.shape) == ((STEPS, FEATURES), (FEATURES, STEPS))
    assert torch.equal(last.normalize(last.schema.samples(x, "x")), last.inputs(torch.arange(90)))


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(FEATURES, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.gru(x)[1][-1])


@pytest.mark.parametrize("model", [Gru, "cnn", "mlp"])
def test_networks_take_sequences_with_their_features_last(model: object, tmp_path: object) -> None:
    x = series()
    f = load({"x": x, "y": np.arange(90) % 3}, channels="last").split(Iid(), clients=3)
    run = floco.fit(
        floco.model(model, f) if isinstance(model, str) else model,
        f,
        floco.Floco(endpoints=2),
        rounds=2,
        lr=0.1,
        fraction=1.0,
        engine="serial",
    )
    table = run.predict(x, "client-0")
    assert len(table) == 90
    if model != Gru:  # torch.export unrolls no GRU with a free batch on every version
        (file,) = run.export(tmp_path / "a.pt2", ["client-0"])
        assert (
            np.abs(
                torch.export.load(file).module()(torch.from_numpy(x))[1].detach().numpy()
                - table.filter(like="p(").to_numpy()
            ).max()
            < 1e-5
        )


@pytest.mark.parametrize("shape", [(60, 20, 2), (60, 187, 1), (60, 8, 8), (60, 32, 32, 12)])
def test_an_array_that_may_be_either_way_round_is_refused_with_the_setting_that_decides_it(
    shape: tuple[int, ...],
) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    with pytest.raises(FlocoError, match=r"data\.channels = first or last"):
        load(arrays(x=x))
    assert load(arrays(x=x), channels="first").x.shape == shape
    assert load(arrays(x=x), channels="last").x.shape == (60, shape[-1], *shape[1:-1])


def test_values_that_tell_that_the_features_are_last_are_heard() -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(60, 12, 20)) * (1 + np.arange(20)) + 100 * (np.arange(20) % 3)
    with pytest.warns(UserWarning, match="differ along the last dimension"):
        assert load(arrays(x=x)).x.shape == (60, 12, 20)
    assert load(arrays(x=x), channels="first").x.shape == (60, 12, 20)
    load(arrays(x=x.transpose(0, 2, 1)[:, :8].copy()))  # features first
    beats = np.sin(np.linspace(0, 6, 100)) * np.arange(1, 7)[:, None] + 0.3 * g.normal(
        size=(60, 6, 100)
    )  # aligned in time
    load(arrays(x=beats))


@pytest.mark.parametrize(
    ("shape", "options", "stored", "network"),
    [
        ((60, 3, 16, 16), {}, (3, 16, 16), (3, 16, 16)),
        ((60, 16, 16, 3), {}, (3, 16, 16), (3, 16, 16)),
        ((60, 16, 16, 12), {}, (12, 16, 16), (12, 16, 16)),
        ((60, 3, 16, 16), {"channels": "last"}, (16, 3, 16), (16, 3, 16)),
        ((60, 20, 2), {"channels": "last"}, (2, 20), (20, 2)),
        ((60, 16, 16), {}, (1, 16, 16), (1, 16, 16)),
    ],
)
def test_pictures_of_bytes_have_their_channels_found(
    shape: tuple[int, ...], options: dict[str, str], stored: tuple[int, ...], network: tuple[int, ...]
) -> None:
    samples = load(arrays(x=np.zeros(shape, np.uint8)), **options)
    assert tuple(samples.x.shape[1:]) == stored
    assert samples.split(Iid(), clients=2).shape == network
    assert samples.schema.form.shape == shape[1:]


# -- how many samples


def test_samples_of_natural_clients_are_drawn_and_not_the_first() -> None:
    f = load(arrays()).split(Natural(), samples=10, seed=0)
    mine = {c.id: sorted([*c.train.tolist(), *c.test.tolist()]) for c in f.clients}
    assert all(len(r) == 10 and r != list(range(20 * i, 20 * i + 10)) for i, r in enumerate(mine.values()))
    assert {i - 20 for i in mine["b"]} != set(mine["a"])
    again, other = (load(arrays()).split(Natural(), samples=10, seed=s) for s in (0, 1))
    assert torch.equal(again.clients[0].train, f.clients[0].train)
    assert not torch.equal(other.clients[0].train, f.clients[0].train)


@pytest.mark.parametrize("split", [Pathological(2), DirichletSizes(5.0)], ids=lambda s: s.name)
def test_fewer_samples_of_a_split_have_its_labels_in_proportion(split: Pathological) -> None:
    digits = load("digits")
    whole, few = digits.split(split, clients=5), digits.split(split, clients=5, samples=60)
    for a, b in zip(whole.clients, few.clients, strict=True):
        both = [np.bincount(digits.y[[*c.train.tolist(), *c.test.tolist()]], minlength=10) for c in (a, b)]
        shares = [counts / counts.sum() for counts in both]
        assert np.abs(shares[0] - shares[1]).sum() < 0.45


def test_fixed_statistics_of_several_inputs_list_their_channels_in_a_row() -> None:
    g = np.random.default_rng(0)
    x = {"a": g.normal(size=(20, 2)), "ids": g.integers(0, 5, size=(20, 3)), "b": g.normal(size=(20, 1))}
    samples = load({"x": x, "y": np.arange(20) % 2})
    fitted = samples.split(Iid(), clients=2)
    found = [form.normalization for form in fitted.forms.values()]
    in_a_row = Normalization(sum((n.mean for n in found), ()), sum((n.std for n in found), ()))
    fixed = samples.split(Iid(), clients=2, normalize=in_a_row)
    one, other = (f.inputs(torch.arange(20)) for f in (fitted, fixed))
    assert all(torch.equal(one[name], other[name]) for name in x)
    with pytest.raises(FlocoError, match="one value for each of the 2 channels, got 4 and 4"):
        samples.split(Iid(), clients=2, normalize=Normalization((0.0,) * 4, (1.0,) * 4))


# -- masks and tensors


def items(x: object, y: object) -> object:
    class Items:
        def __len__(self) -> int:
            return 60

        def __getitem__(self, i: int) -> object:
            return x[i], y[i]

    return Items()


X = np.random.default_rng(0).normal(size=(60, 4))
HOLES = np.ma.masked_where(np.repeat(HOLE[:, None], 4, 1), X)
NUMBERS = np.ma.masked_where(HOLE, X[:, 0])


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize(
    ("source", "more"),
    [
        ((X, NUMBERS), {"task": "regression"}),
        ((X, HOLES), {"task": "regression"}),
        ((HOLES, Y), {}),
        (items(HOLES, Y), {}),
        ((np.where(np.arange(60)[:, None] == 1, np.nan, X), NUMBERS), {"task": "regression", "missing": "drop"}),
        (
            pd.DataFrame({"a": X[:, 0], "y": Y}),
            {"target": "y", "client": np.ma.masked_where(HOLE, np.repeat([1, 2, 3], 20))},
        ),
    ],
)
def test_a_masked_value_is_never_read_wherever_it_is(source: object, more: dict[str, object]) -> None:
    with pytest.raises(FlocoError, match="values are masked"):
        load(source, **more)


def test_a_masked_target_of_later_samples_is_refused() -> None:
    schema = load((X, X[:, 0]), task="regression").schema
    with pytest.raises(FlocoError, match="7 values are masked"):
        schema.labelled(X, NUMBERS)


@pytest.mark.parametrize("kind", [{"requires_grad": True}, {"dtype": torch.bfloat16}])
@pytest.mark.parametrize("task", ["regression", "multilabel", "classification"])
def test_a_tensor_of_any_kind_is_an_array(kind: dict[str, object], task: str) -> None:
    x = torch.tensor(X.round(1), **kind)
    y = {"regression": x[:, 0], "multilabel": torch.tensor((X > 0).astype(float), **kind), "classification": Y}[task]
    for source in ((x, y), items(x, y)):
        found = load(source, task=task)
        assert torch.equal(found.x, x.detach().float())
        assert found.schema.labelled(x, y)[1].shape == found.y.shape
