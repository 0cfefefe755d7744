"""Write the tables of six hospitals, of a newcomer, and of what the hospital north sends later.

The patients are real: 569 biopsies from Wisconsin (Street, Wolberg and Mangasarian, 1993), as scikit-learn has them.
The hospitals and what they do are made up. For a malignant tumour, three of them operate unless it is small; the others
begin with a drug unless it is large. One model for all cannot know in which hospital it is.
"""

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer

HOSPITALS = ("north", "south", "east", "west", "lake", "hill", "harbor")
DRUG_FIRST = ("west", "lake", "hill", "harbor")

g = np.random.default_rng(0)
cells = load_breast_cancer(as_frame=True)
table = cells.data.iloc[:, :10].rename(columns=lambda name: name.replace("mean ", "").replace(" ", "_"))
size = table["area"].rank(pct=True)
malignant = cells.target == 0
table["hospital"] = g.choice(HOSPITALS, size=len(table), p=[0.28, 0.14, 0.12, 0.15, 0.12, 0.1, 0.09])


def treat(drug_first: "pd.Series | bool") -> np.ndarray:
    """Return what is done with every patient."""
    drug = np.where(drug_first, size < 0.95, size < 0.6)
    return np.where(malignant, np.where(drug, "drug", "surgery"), "watch")


table["treatment"] = treat(table["hospital"].isin(DRUG_FIRST))
later = (table["hospital"] == "north") & (g.random(len(table)) < 0.4)
table[(table["hospital"] != "harbor") & ~later].to_csv("hospitals.csv", index=False)
table[table["hospital"] == "harbor"].drop(columns="hospital").to_csv("harbor.csv", index=False)

north = table[later].drop(columns="hospital")
north.to_csv("north-2027.csv", index=False)
north.assign(treatment=treat(True)[later]).to_csv("north-2028.csv", index=False)  # it begins with a drug, too
wrong = {"surgery": "watch", "watch": "surgery"}
north.replace({"treatment": wrong}).to_csv("north-swapped.csv", index=False)
print(table[~later].groupby("hospital", sort=False)["treatment"].value_counts().unstack(fill_value=0))
