"""A table of your own: a CSV file with numbers, words and gaps, a federation of its hospitals, a prediction."""

import numpy as np
import pandas as pd

import floco

# --8<-- [start:file]
# A stand-in for your own table: one row a patient, with a gap here and there; two hospitals code the outcome reversed.
g = np.random.default_rng(0)
n = 1200
table = pd.DataFrame(
    {
        "hospital": np.array(["north", "south", "east", "west"])[np.arange(n) % 4],
        "age": g.integers(20, 90, n).astype(float),
        "pressure": g.normal(130, 15, n).round(1),
        "sex": g.choice(["f", "m"], n),
        "ward": g.choice(["surgery", "heart", "general"], n),
    }
)
risk = (table["age"] - 55) / 15 + (table["pressure"] - 130) / 15 + (table["ward"] == "heart") - 0.5
reversed_ = table["hospital"].isin(["east", "west"])
table["outcome"] = np.where((risk + g.normal(0, 0.5, n) > 0) ^ reversed_, "ill", "well")
table.loc[g.choice(n, 60, replace=False), "pressure"] = np.nan
table.head(1000).to_csv("patients.csv", index=False)
table.tail(200).drop(columns="outcome").to_csv("new.csv", index=False)
# --8<-- [end:file]

# --8<-- [start:run]
data = floco.load("csv:patients.csv", target="outcome", client="hospital", missing="mean")
federation = data.split(floco.Natural(), seed=0)
model = floco.model("mlp", federation)
run = floco.fit(model, federation, floco.Floco(endpoints=3), rounds=20, lr=0.1, fraction=1.0, seed=0)

print(run.clients[["client", "n_train", "accuracy_global_local", "accuracy_personal"]])
print(run.predict(pd.read_csv("new.csv"), "north").head(3))
# --8<-- [end:run]
