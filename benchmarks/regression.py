"""MathAchieve: mixed models and pooled ones beside federated ones on the same rows: python benchmarks/regression.py

Needs data/mathachieve.npz (fetch.py) and the extra `bench` (statsmodels). Three seeds, each with its own test rows:
a fifth of each school's pupils. Federated methods and the pooled network are those of tasks.py, with six settings
tried for each on parts cut from the training parts. Nothing is tuned for the statistical models:

ols              least squares on all features
mixed            the same with a random intercept for each school, by restricted maximum likelihood
mixed, slopes    and a random slope of the pupil's socioeconomic status

results/regression.csv has the RMSE by seed, school and method; then: python benchmarks/tables.py. Twenty minutes on two
cores.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import statsmodels.api as sm
from tasks import RESULTS, best_pooled, by_client, compare, seeds_of

from floco.data.federation import Federation
from floco.storage.tables import read_table

SEEDS = 3
SES = 3  # column of the pupil's socioeconomic status, with the constant in front


def statistical(federation: Federation) -> dict[str, dict[str, float]]:
    """Return the RMSE by school of the statistical models, by name."""
    x, y = federation.x.double().numpy(), federation.y.double().numpy()
    school = np.empty(len(y), object)
    for c in federation.clients:
        school[np.concatenate([c.train, c.test])] = c.id
    train = np.sort(np.concatenate([c.train for c in federation.clients]))
    design = np.column_stack([np.ones(len(y)), (x - x[train].mean(0)) / x[train].std(0)])
    found = {"ols": design @ sm.OLS(y[train], design[train]).fit().params}
    for name, effects in {"mixed": [0], "mixed, slopes": [0, SES]}.items():
        model = sm.MixedLM(y[train], design[train], school[train], exog_re=design[train][:, effects])
        fit = model.fit(reml=True)
        if not fit.converged:
            raise SystemExit(f"{name} did not converge")
        own = np.stack([np.asarray(fit.random_effects[s]) for s in school])
        found[name] = design @ fit.fe_params + (own * design[:, effects]).sum(1)
    return {
        name: {c.id: float(np.sqrt(np.mean((guess - y)[c.test.numpy()] ** 2))) for c in federation.clients}
        for name, guess in found.items()
    }


def main() -> None:
    out = compare("mathachieve", SEEDS)
    table = read_table(out / "clients.csv")
    made = []
    for config, federation in seeds_of(out):
        network = best_pooled("mathachieve", config, federation)
        methods = {**statistical(federation), "pooled network": by_client(network, federation)}
        for method, part in table[table["seed"] == config.seed].groupby("method"):
            methods[method] = dict(zip(part["client"].astype(str), part["rmse_personal"], strict=True))
        seed = pd.DataFrame(methods).rename_axis("school").reset_index()
        sizes = {c.id: len(c.test) for c in federation.clients}
        seed.insert(0, "seed", config.seed)
        seed.insert(2, "pupils", seed["school"].map(sizes))
        print(seed.drop(columns=["seed", "school", "pupils"]).mean().round(3).to_dict(), flush=True)
        made.append(seed)
    pd.concat(made).to_csv(RESULTS / "regression.csv", index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
