"""Arrays of your own: an npz file, a federation of the sites in it, a run, and its table."""

import numpy as np

import floco

# --8<-- [start:arrays]
# A stand-in for your own measurements: 200 samples of 12 features at each of six sites.
# Two sites have "worn" and "broken" the other way round, so no single model can be right.
rng = np.random.default_rng(0)
site = np.repeat(["north", "south", "east", "west", "harbour", "airport"], 200)
kind = rng.integers(0, 3, len(site))
swapped = np.isin(site, ["harbour", "airport"]) & (kind > 0)
x = (rng.normal(size=(len(site), 12)) + 2 * np.eye(3, 12)[kind]).astype(np.float32)
y = np.array(["ok", "worn", "broken"])[np.where(swapped, 3 - kind, kind)]

np.savez("mine.npz", x=x, y=y, client=site)
# --8<-- [end:arrays]

# --8<-- [start:run]
federation = floco.load("npz:mine.npz").split(floco.Natural(), seed=0)
model = floco.model("mlp", federation)

settings = {"rounds": 20, "lr": 0.1, "seed": 0}
run = floco.fit(model, federation, floco.Floco(endpoints=3), out="runs/mine", **settings)

print(run.history[["round", "accuracy_global", "accuracy_personal"]])
print(run.clients[["client", "n_train", "accuracy_global_local", "accuracy_personal"]])
print(run.predict(x[:3], "north"))  # raw samples, as in the file
# --8<-- [end:run]
