"""Pictures of your own: files in folders by site and kind, a federation of the sites, a prediction for a new one."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import floco

# --8<-- [start:files]
# A stand-in for your own pictures: photographs/SITE/KIND/NUMBER.png, where two sites have scanners that invert.
digits = load_digits()
for i, (picture, kind) in enumerate(zip(digits.images, digits.target, strict=True)):
    site = ("north", "south", "east", "west")[i % 4]
    grey = (picture * 15).astype(np.uint8)
    file = Path("photographs", site, str(kind), f"{i}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(255 - grey if site in ("east", "west") else grey).save(file)
# --8<-- [end:files]


# --8<-- [start:read]
def photographs() -> dict[str, np.ndarray]:
    """Return pictures (N, H, W) uint8, their kinds and their sites, from photographs/SITE/KIND/*.png."""
    files = sorted(Path("photographs").glob("*/*/*.png"))
    return {
        "x": np.stack([np.asarray(Image.open(f).convert("L").resize((8, 8))) for f in files]),
        "y": np.array([f.parent.name for f in files]),
        "client": np.array([f.parent.parent.name for f in files]),
    }


# --8<-- [end:read]

# --8<-- [start:run]
federation = floco.load(photographs()).split(floco.Natural(), seed=0)
model = floco.model("cnn", federation)
run = floco.fit(model, federation, floco.Floco(endpoints=3), rounds=10, lr=0.1, fraction=1.0, seed=0)

print(run.clients[["client", "n_train", "accuracy_global_local", "accuracy_personal"]])
new = np.asarray(Image.open(next(Path("photographs/north/3").glob("*.png"))))
print(run.predict(new[None], "north")[["label", "probability"]])
# --8<-- [end:run]
