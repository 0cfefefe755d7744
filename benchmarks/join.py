"""Join the finished runs of several comparisons of the same data into one folder of tables.

    python benchmarks/join.py docs/comparison/few-rotated runs/few-rotated runs/few-rotated-ifca

The first method of the first comparison is the reference of pairs.csv. A run of the same method and seed is taken from
the first folder that has one. Methods without a finished run are left out, and seeds that not every other method has.
"""

import sys
from pathlib import Path

from floco.analysis import comparison, pairs, tables


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


if __name__ == "__main__":
    join(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
