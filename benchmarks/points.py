"""Where should a client's own model lie? Its center, the best mixture for its training part, or the mean of its subregion: on its own test part.

    python benchmarks/points.py RUN... [-o points.csv]

Runs of Floco or Floco+ after the assignment. One row a run and point, means over clients; several seeds of one data set share a name before the last dash.
"""

import sys
from pathlib import Path

import pandas as pd

import floco
from floco.core.metrics import METRICS, score
from floco.core.random import stream
from floco.deliver.mixtures import Mixtures
from floco.deliver.personal import own_point
from floco.simplex import sample_subregion

DRAWS = 20


def points(path: Path) -> pd.DataFrame:
    run = floco.open_run(path)
    setup, rows = run.setup, []
    for client in setup.federation.clients:
        x, y = setup.federation.x[client.test], setup.federation.y[client.test]
        algorithm, simplex, center = own_point(setup, run.progress, client.id)
        _, _, best = own_point(setup, run.progress, client.id, "best")
        mixtures = Mixtures(setup, algorithm.mixing, simplex, x)
        drawn = sample_subregion(center, algorithm.radius, DRAWS, generator=stream(setup.seed, "predict", client.id))
        found = {
            "center": mixtures.logits(center),
            "best": mixtures.logits(best),
            "middle": mixtures.logits(mixtures.middle),
            f"mean of {DRAWS}": mixtures.mean_probabilities(drawn).clamp_min(1e-12).log(),
        }
        rows += [{"point": name, "samples": len(client.train), **{m: getattr(score(f, y), m) for m in METRICS}} for name, f in found.items()]
    table = pd.DataFrame(rows)
    won = table[table.point == "best"].accuracy.to_numpy() - table[table.point == "center"].accuracy.to_numpy()
    means = table.groupby("point", sort=False).mean().reset_index()
    means.insert(0, "run", path.name)
    return means.assign(algorithm=setup.algorithm.name, clients=len(won), better=float((won > 0).mean()), worse=float((won < 0).mean()))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    out = Path(arguments[arguments.index("-o") + 1]) if "-o" in arguments else None
    paths = [Path(a) for a in (arguments[: arguments.index("-o")] if out else arguments)]
    made = pd.concat([points(p) for p in paths])
    if out:
        made.to_csv(out, index=False)
    print(made.round(4).to_string(index=False))
