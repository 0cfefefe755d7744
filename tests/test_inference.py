"""Several models through one body, against each by itself."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from conftest import make
from floco.algorithms import FedAvg
from floco.client.predict import compute_outputs, compute_outputs_of_each
from floco.client.setup import Setup
from floco.core.values import Tensors


class Net(nn.Module):
    """A body and a head, put together in different ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body, self.head = kind, nn.Linear(5, 5), nn.Linear(5, 3)
        if kind == "uses the head's weight below it":
            self.tied = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.tanh(self.body(x))
        if self.kind == "uses the head's weight below it":
            features = features + x @ self.head.weight.T @ self.head.weight
        if self.kind == "calls the head twice":
            self.head(x)
        if self.kind == "calls by keyword":
            return self.head(input=features)
        logits = self.head(features)
        if self.kind == "changes the logits in place":
            logits /= 3
        return logits.relu() if self.kind == "has something above the head" else logits


KINDS = (
    "plain",
    "changes the logits in place",
    "has something above the head",
    "uses the head's weight below it",
    "calls the head twice",
    "calls by keyword",
)


def two(setup: Setup) -> list[Tensors]:
    one = dict(setup.network.parameters)
    return [
        one,
        {
            **one,
            **{
                n: torch.randn(one[n].shape, generator=torch.Generator().manual_seed(1))
                for n in setup.network.layout.head
            },
        },
    ]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_models_with_one_body_have_the_logits_that_each_has_alone(kind: str, precision: str) -> None:
    setup = make(FedAvg(), model=lambda: Net(kind), precision=precision)
    models, x = two(setup), setup.federation.x
    found = compute_outputs_of_each(setup, models, x)
    assert (setup.split is not None) == (kind == "plain")
    assert all(torch.equal(a, compute_outputs(setup, m, x)) for a, m in zip(found, models, strict=True))


@pytest.mark.parametrize(("model", "passes"), [(lambda: Net("plain"), 1), (lambda: Net("calls the head twice"), 2)])
def test_a_common_body_runs_once(model: Callable[[], nn.Module], passes: int) -> None:
    setup = make(FedAvg(), model=model)
    assert setup.hidden_state is None  # this, too, runs the body: found once, before counting
    seen: list[int] = []
    setup.network.module.body.register_forward_hook(lambda *_: seen.append(1))  # type: ignore[union-attr, operator]
    assert (setup.split is not None) == (passes == 1)
    seen.clear()
    compute_outputs_of_each(setup, two(setup), setup.federation.x)
    assert len(seen) == passes


def test_models_that_differ_below_the_head_run_by_themselves() -> None:
    setup = make(FedAvg(), model=lambda: Net("plain"))
    one, other = two(setup)
    other = {**other, "body.weight": other["body.weight"] + 1}
    found = compute_outputs_of_each(setup, [one, other], setup.federation.x)
    assert torch.equal(found[1], compute_outputs(setup, other, setup.federation.x))
