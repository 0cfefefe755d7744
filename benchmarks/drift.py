"""How often does a check of a client's subregion say what it should? Its own later samples, those of a client like it, and those of one unlike it.

    python benchmarks/drift.py RUN... [-o drift.csv]

Runs of Floco after the assignment. Of each client, half of the test part is what is known of it, and the other half its later samples. A client like it
has the same two most frequent labels, one unlike it none of them; each with half of its test part.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

import floco
from floco.drift import drift

CLIENTS = 50


def checks(path: Path) -> pd.DataFrame:
    run = floco.open_run(path)
    federation = run.setup.federation
    clients = federation.clients
    halves = {c.id: c.test[torch.randperm(len(c.test), generator=torch.Generator().manual_seed(0))].tensor_split(2) for c in clients}
    main = {c.id: frozenset(federation.y[c.train].bincount(minlength=federation.classes).topk(2).indices.tolist()) for c in clients}
    setup = replace(run.setup, federation=replace(federation, clients=tuple(replace(c, test=halves[c.id][0]) for c in clients)))
    rows = []
    for i, client in enumerate(clients[:CLIENTS]):
        after = [*clients[i + 1 :], *clients[:i]]
        others = {
            "its own": client.id,
            "of a client like it": next(c.id for c in after if main[c.id] == main[client.id]),
            "of a client unlike it": next(c.id for c in after if not main[c.id] & main[client.id]),
        }
        for whose, other in others.items():
            found = drift(setup, run.progress, client.id, federation.x[halves[other][1]], federation.y[halves[other][1]])
            rows.append({"new samples": whose, "client": client.id, "other": other, "verdict": found.verdict})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    out = arguments[arguments.index("-o") + 1] if "-o" in arguments else None
    paths = [Path(a) for a in (arguments[: arguments.index("-o")] if out else arguments)]
    made = pd.concat([checks(p).assign(run=p.name) for p in paths])
    table = pd.crosstab([made.run, made["new samples"]], made.verdict)
    if out:
        table.to_csv(out)
    print(table.to_string())
