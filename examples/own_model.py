"""A network of your own: a plain nn.Module, trained by Floco and by FedAvg with fine-tuning."""

import torch
from torch import nn

import floco


# --8<-- [start:model]
class Net(nn.Module):
    """A small convolutional network for images (B, 1, 8, 8)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(16 * 4 * 4, classes)  # gives the logits: this weight gets the endpoints

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


# --8<-- [end:model]

# --8<-- [start:run]
federation = floco.load("digits").split(floco.Folds(5, share=0.9), clients=20, seed=0)

for algorithm in (floco.Floco(endpoints=3), floco.FedAvgFT()):
    run = floco.fit(Net, federation, algorithm, rounds=10, lr=0.1, seed=0)
    last = run.history.iloc[-1]
    print(f"{algorithm.name}: global {last['accuracy_global']:.3f}, personal {last['accuracy_personal']:.3f}")

mine = run.personal("client-3")
print(type(mine).__name__, sum(p.numel() for p in mine.parameters()), "parameters")
# --8<-- [end:run]
