from pathlib import Path

import pytest
import torch
from torch import nn

from floco.core.errors import FlocoError
from floco.core.network import build_network
from floco.data.models import MODELS, cifar_cnn, factory, femnist_cnn


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_authors_networks_have_their_numbers_of_parameters() -> None:
    assert size(cifar_cnn()) == 107_690
    assert size(femnist_cnn()) == 45_054


def test_the_authors_cifar_network_layer_by_layer() -> None:
    kinds = [
        (type(m).__name__, *((m.kernel_size[0], m.padding[0], m.out_channels) if isinstance(m, nn.Conv2d) else ()))
        for m in cifar_cnn()
    ]
    block = [("LeakyReLU",), ("MaxPool2d",)]
    assert kinds == [
        ("Conv2d", 5, 0, 16),
        *block,
        ("Conv2d", 5, 1, 32),
        *block,
        ("Conv2d", 3, 1, 64),
        *block,
        ("Flatten",),
        ("Linear",),
        ("LeakyReLU",),
        ("Linear",),
    ]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cnn", (1, 8, 8)),
        ("cnn", (3, 33, 20)),
        ("cnn", (6, 100)),
        ("mlp", (10,)),
        ("mlp", (1, 8, 8)),
        ("cifar-cnn", (3, 32, 32)),
        ("femnist-cnn", (1, 28, 28)),
    ],
)
def test_named_models_fit_their_inputs(name: str, shape: tuple[int, ...]) -> None:
    assert factory(name, shape, 7)()(torch.zeros(2, *shape)).shape == (2, 7)


def test_xavier_weights() -> None:
    w = build_network(factory("mlp", (400,), 100), seed=0).parameters["1.weight"]
    assert float(w.std()) == pytest.approx((2 / (400 + 128)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("name", "shape"), [("cifar-cnn", (1, 28, 28)), ("femnist-cnn", (10,)), ("cnn", (5,)), ("cnn", (3, 2, 2))]
)
def test_inputs_that_do_not_fit_are_named(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(FlocoError, match=f"model {name} needs"):
        factory(name, shape, 3)()


def test_models_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def plain():\n    return nn.Linear(4, 2)\n"
        "def fitted(shape, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(factory("mynets:plain", (4,), 2)(), nn.Linear)
    assert factory("mynets:fitted", (4,), 3)()[1].out_features == 3
    with pytest.raises(FlocoError, match="has no 'other'"):
        factory("mynets:other", (4,), 2)
    with pytest.raises(FlocoError, match="did you mean 'cifar-cnn'"):
        factory("cifar_cnn", (4,), 2)


def test_initial_weights_follow_the_seed() -> None:
    a, b, c = (build_network(factory("mlp", (4,), 2), seed=s).parameters["1.weight"] for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert set(MODELS) == {"cnn", "mlp", "fcn", "cifar-cnn", "femnist-cnn"}
