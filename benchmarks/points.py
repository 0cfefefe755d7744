"""Which point of the simplex gives the best personal model, on the client's own test part?

    python benchmarks/points.py RUN... [-o points.csv]

Candidates are its center, the best mixture for its training part, and the mean prediction over its subregion. Needs
runs of Floco or Floco+ after the assignment. One row per run and point, with means over clients; the names of runs with
several seeds of one data set differ only after the last dash.
"""

import sys
from pathlib import Path

import pandas as pd

import floco
from floco.client.mixtures import Mixtures
from floco.core.random import stream
from floco.deliver.personal import find_point
from floco.simplex import sample_subregion
from floco.tasks import Classification

DRAWS = 20


def points(path: Path) -> pd.DataFrame:
    run = floco.open_run(path)
    setup, rows = run.setup.with_samples("points of all clients"), []
    for client in setup.federation.clients:
        x, y = setup.federation.x[client.test], setup.federation.y[client.test]
        mixing, simplex, center = find_point(setup, run.progress, client.id)
        _, _, best = find_point(setup, run.progress, client.id, "best")
        mixtures = Mixtures(setup, mixing, simplex, x)
        drawn = sample_subregion(center, mixing.radius, DRAWS, generator=stream(setup.seed, "predict", client.id))
        found = {
            "center": mixtures.outputs(center),
            "best": mixtures.outputs(best),
            "middle": mixtures.outputs(mixtures.middle),
            f"mean of {DRAWS}": mixtures.mean_predictions(drawn).clamp_min(1e-12).log(),
        }
        for name, logits in found.items():
            metrics = Classification().values(Classification().score(logits, y))
            rows.append({"point": name, "samples": len(client.train), **metrics})
    table = pd.DataFrame(rows)
    won = table[table.point == "best"].accuracy.to_numpy() - table[table.point == "center"].accuracy.to_numpy()
    means = table.groupby("point", sort=False).mean().reset_index()
    means.insert(0, "run", path.name)
    shares = {"better": float((won > 0).mean()), "worse": float((won < 0).mean())}
    return means.assign(algorithm=setup.algorithm.name, clients=len(won), **shares)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    out = Path(arguments[arguments.index("-o") + 1]) if "-o" in arguments else None
    paths = [Path(a) for a in (arguments[: arguments.index("-o")] if out else arguments)]
    made = pd.concat([points(p) for p in paths])
    if out:
        made.to_csv(out, index=False)
    print(made.round(4).to_string(index=False))
