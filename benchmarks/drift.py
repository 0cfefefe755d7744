"""How often is the verdict of a drift check right, for several kinds of new samples?

    python benchmarks/drift.py RUN... [-o drift.csv]

Needs runs of Floco after the assignment. Half of each client's test part serves as its known test part, the other half
as its later samples. The new samples are

- the client's later samples, for ten divisions into halves;
- the same with other labels: the two most frequent ones swapped; all shifted, y -> y + 1 mod C; or all permuted at
  random without a fixed point;
- half of the test part of a similar client (same two most frequent labels) or a dissimilar one (neither of them).
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

import floco
from floco.data.federation import Client, Federation
from floco.deliver.drift import drift

CLIENTS = 50
DIVISIONS = 10


def main_labels(federation: Federation, client: Client) -> list[int]:
    """Return the two most frequent labels of a client."""
    return federation.y[client.train].bincount(minlength=federation.classes).topk(2).indices.tolist()


def codes(classes: int, main: list[int], seed: int) -> dict[str, torch.Tensor]:
    """Return new labels (C,) by old ones, for each kind of relabelling."""
    swapped = torch.arange(classes)
    swapped[main] = torch.tensor(main[::-1])
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    permuted = torch.empty_like(order)
    permuted[order] = order.roll(1)  # one cycle through all labels: no fixed point
    return {
        "its own with two labels swapped": swapped,
        "its own with shifted labels": (torch.arange(classes) + 1) % classes,
        "its own with permuted labels": permuted,
    }


def divide(federation: Federation, division: int) -> dict[str, tuple[torch.Tensor, ...]]:
    """Return the known and the later half of each client's test part."""
    g = torch.Generator().manual_seed(division)
    return {c.id: c.test[torch.randperm(len(c.test), generator=g)].tensor_split(2) for c in federation.clients}


def checks(path: Path) -> Iterator[dict[str, str]]:
    """Yield the verdict of each check of a run."""
    run = floco.open_run(path)
    whole = run.setup.with_samples("a check of all clients")
    federation = whole.federation
    clients = federation.clients
    main = {c.id: main_labels(federation, c) for c in clients}
    for division in range(DIVISIONS):
        halves = divide(federation, division)
        known = tuple(replace(c, test=halves[c.id][0]) for c in clients)
        setup = replace(whole, federation=replace(federation, clients=known))
        for i, client in enumerate(clients[:CLIENTS]):
            later = halves[client.id][1]
            samples = {"its own": (later, federation.y[later])}
            if division == 0:
                recoded = codes(federation.classes, main[client.id], i).items()
                samples |= {name: (later, code[federation.y[later]]) for name, code in recoded}
                after = [*clients[i + 1 :], *clients[:i]]
                like = next(c.id for c in after if set(main[c.id]) == set(main[client.id]))
                unlike = next(c.id for c in after if not set(main[c.id]) & set(main[client.id]))
                for name, other in (("of a client like it", like), ("of a client unlike it", unlike)):
                    samples[name] = halves[other][1], federation.y[halves[other][1]]
            for name, (chosen, y) in samples.items():
                verdict = drift(setup, run.progress, client.id, federation.x[chosen], y).verdict
                yield {"run": path.name, "new samples": name, "client": client.id, "verdict": verdict}


if __name__ == "__main__":
    arguments = sys.argv[1:]
    out = arguments[arguments.index("-o") + 1] if "-o" in arguments else None
    paths = [Path(a) for a in (arguments[: arguments.index("-o")] if out else arguments)]
    made = pd.DataFrame([row for p in paths for row in checks(p)])
    table = pd.crosstab([made.run, made["new samples"]], made.verdict)
    if out:
        table.to_csv(out)
    print(table.to_string())
