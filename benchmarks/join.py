"""Join the finished runs of several comparisons of the same data into one folder of tables.

    python benchmarks/join.py docs/comparison/few-rotated runs/few-rotated runs/few-rotated-ifca

The first method of the first comparison is the reference of pairs.csv. A run of the same method and seed is taken from
the first folder that has one. Methods without a finished run are left out, and seeds that not every other method has.

    python benchmarks/join.py --rows docs/comparison/label-shift FOLDER...

Put the rows of several comparisons of the same clients together: of other seeds, or with other settings of the task,
which `floco` does not compare. FOLDER is a comparison, or a folder of tables, OUT itself included; the first one that
has a method and seed gives its rows. Clients must have the same numbers of samples under a seed. The ratio of seconds
is empty, as comparisons were run at other times.
"""

import sys
from pathlib import Path

import pandas as pd

from floco.analysis import comparison, pairs, tables
from floco.storage.tables import read_table
from floco.tasks import Classification


def join(out: Path, folders: list[Path]) -> None:
    opened = [comparison.reopen(folder) for folder in folders]
    order = list(dict.fromkeys(name for one in opened for name in one.configs))
    runs = {key: path for one in reversed(opened) for key, path in one.runs.items()}
    done = tables.load(list(runs.values()), order)
    seeds = {name: {seed for method, seed in done.paths if method == name} for name in order}
    if none := [name for name in order if not seeds[name]]:
        print(f"without a finished run: {', '.join(none)}")
        order = [name for name in order if seeds[name]]
    shared = set.intersection(*(seeds[name] for name in order))
    kept = [path for (_, seed), path in done.paths.items() if seed in shared]
    out.mkdir(parents=True, exist_ok=True)
    pairs.write(tables.load(kept, order), out, order[0])
    print(f"{out}: {', '.join(order)}; seeds {', '.join(map(str, sorted(shared)))}")


def join_rows(out: Path, folders: list[Path]) -> None:
    made = {}
    for name in ("history", "clients", "runs"):
        parts = [read_table(folder / f"{name}.csv").assign(folder=i) for i, folder in enumerate(folders)]
        table = pd.concat(parts, ignore_index=True)
        first = table.groupby(["method", "seed"])["folder"].transform("min")
        made[name] = table[table["folder"] == first].drop(columns="folder").reset_index(drop=True)
    sizes = made["clients"].groupby(["seed", "client"])[["n_train", "n_test"]].nunique()
    if (sizes > 1).any(axis=None) or made["runs"]["rounds"].nunique() > 1:
        raise SystemExit("the clients have other numbers of samples, or the runs other numbers of rounds")
    runs = tables.compare_runs(made["runs"], made["history"], made["clients"], Classification.metrics)
    results = tables.Results(made["history"], made["clients"], runs.assign(seconds_ratio=float("nan")))
    out.mkdir(parents=True, exist_ok=True)
    pairs.write(results, out, results.names[0])


if __name__ == "__main__" and sys.argv[1] == "--rows":
    join_rows(Path(sys.argv[2]), [Path(folder) for folder in sys.argv[3:]])
elif __name__ == "__main__":
    join(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
