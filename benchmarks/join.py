"""Join the finished runs of several comparisons of the same data into one folder of tables.

    python benchmarks/join.py docs/comparison/few-rotated runs/few-rotated runs/few-rotated-ifca

The first method of the first comparison is the reference of pairs.csv. A run of the same method and seed is taken from
the first folder that has one. Methods without a finished run are left out, and seeds that not every other method has.

    python benchmarks/join.py --rows docs/comparison/label-shift FOLDER...

Put the rows of several comparisons of the same clients together: of other seeds, or with other settings of the task,
which `floco` does not compare. Clients must have the same numbers of samples under a seed. Columns that count against
another method are empty, but for harm, unless all comparisons have the same methods.
"""

import sys
from pathlib import Path

import pandas as pd

from floco.analysis import comparison, harm, pairs, tables
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
        made[name] = pd.concat([read_table(folder / f"{name}.csv") for folder in folders], ignore_index=True)
    sizes = made["clients"].groupby(["seed", "client"])[["n_train", "n_test"]].nunique()
    if (sizes > 1).any(axis=None):
        raise SystemExit("the clients have other numbers of samples")
    if len({frozenset(read_table(folder / "runs.csv")["method"]) for folder in folders}) > 1:
        against = made["runs"].columns.str.match("better_than|first_round|target|.*_ratio")
        made["runs"].loc[:, against] = float("nan")
    metrics = Classification.metrics
    results = tables.Results(made["history"], made["clients"], harm.add(made["runs"], made["clients"], metrics))
    out.mkdir(parents=True, exist_ok=True)
    pairs.write(results, out, results.names[0])


if __name__ == "__main__" and sys.argv[1] == "--rows":
    join_rows(Path(sys.argv[2]), [Path(folder) for folder in sys.argv[3:]])
elif __name__ == "__main__":
    join(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
