import numpy as np
import pytest
import torch

from conftest import GOLDEN
from floco.core.errors import FlocoError
from floco.simplex import assign, log_energy
from floco.simplex.components import Centered, principal

NAMES = ("three", "five", "ten", "ten_large_scale")


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {k: torch.from_numpy(file[k]) if file[k].shape else torch.tensor(float(file[k])) for k in file.files}


@pytest.mark.parametrize("name", NAMES)
def test_unnormalised_assignment_is_the_released_one(name: str) -> None:
    g = golden(name)
    a = assign(g["signals"], g["scores"].shape[1], normalize=False)
    assert torch.allclose(a.centers, g["centers"], atol=1e-6)
    assert a.z == pytest.approx(float(g["z"]), abs=1e-6)
    assert a.log_energy == pytest.approx(float(g["log_energy"]), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_normalised_assignment_is_as_well_spread(name: str) -> None:
    g = golden(name)
    a = assign(g["signals"], g["scores"].shape[1])
    assert a.log_energy <= float(g["log_energy"]) + 0.05
    scores = (g["signals"] - a.mean) @ a.components.T
    assert 1e-3 < a.z / float(scores.abs().max()) < 50  # inside the grid


def test_large_updates_put_nobody_on_a_vertex() -> None:
    a = assign(golden("ten_large_scale")["signals"], 10)
    assert a.log_energy <= 2.45
    assert a.centers.max() < 1


@pytest.mark.parametrize("scale", [1e-8, 10.0, 1e6])
def test_normalised_assignment_ignores_the_size_of_updates(scale: float) -> None:
    s = golden("ten")["signals"]
    assert torch.allclose(assign(s * scale, 10).centers, assign(s, 10).centers, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("factor", [1e-20, 1e-3, 1000.0, 1e6])
def test_one_clients_size_moves_nobody(name: str, factor: float) -> None:
    s = golden(name)["signals"]
    larger = s.clone()
    larger[1] *= factor
    a, b = assign(s, 5), assign(larger, 5)
    assert torch.allclose(a.centers, b.centers, atol=1e-6)
    assert torch.allclose(a.place(larger), a.centers, atol=1e-6)


def test_clients_of_one_kind_stand_together_whatever_their_number_of_steps() -> None:
    g = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, 200, generator=g)
    steps = torch.where(torch.arange(40) // 4 % 2 == 0, 3.0, 50.0)
    s = steps[:, None] * (kinds[torch.arange(40) % 4] + 0.3 * torch.randn(40, 200, generator=g))
    apart = torch.cdist(*[assign(s, 4).centers] * 2, p=1)
    same = torch.arange(40)[:, None] % 4 == torch.arange(40) % 4
    assert apart[same].max() < apart[~same].min()
    assert (
        apart[same & (steps[:, None] != steps)].mean()
        < 1.2 * apart[same & (steps[:, None] == steps) & ~torch.eye(40, dtype=torch.bool)].mean()
    )


def test_a_client_without_a_signal_is_a_signal_of_zero() -> None:
    s = golden("five")["signals"].clone()
    s[0] = 0
    a = assign(s, 5)
    assert torch.isfinite(a.centers).all()
    assert torch.allclose(a.place(s[:1]), a.centers[:1], atol=1e-9)


def test_centers_are_on_the_simplex_and_placing_reproduces_them() -> None:
    s = golden("five")["signals"]
    a = assign(s, 5)
    assert (a.centers >= 0).all()
    assert torch.allclose(a.centers.sum(1), torch.ones(len(s), dtype=torch.float64))
    assert torch.allclose(a.place(s), a.centers, atol=1e-12)


def test_a_newcomer_moves_nobody_and_stands_near_its_kind() -> None:
    s = golden("five")["signals"]
    a = assign(s[:-1], 5)
    before = a.centers.clone()
    placed = a.place(s[-1:] * 1.0)
    twin = a.place(s[:1] + 1e-9)
    assert torch.equal(a.centers, before)
    assert placed.sum() == pytest.approx(1)
    assert torch.allclose(twin, a.centers[:1], atol=1e-6)


def test_equal_signals_put_everybody_in_the_middle() -> None:
    a = assign(torch.full((4, 6), 0.3), 3)
    assert torch.allclose(a.centers, torch.full((4, 3), 1 / 3, dtype=torch.float64))
    assert torch.allclose(
        a.place(torch.randn(2, 6, generator=torch.Generator().manual_seed(0))),
        torch.full((2, 3), 1 / 3, dtype=torch.float64),
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_fewer_clients_than_endpoints(normalize: bool) -> None:
    a = assign(torch.randn(3, 20, generator=torch.Generator().manual_seed(0)), 10, normalize=normalize)
    assert a.centers.shape == (3, 10)
    assert torch.allclose(a.centers.sum(1), torch.ones(3, dtype=torch.float64))
    assert (a.centers[:, 3:] == 0).all()


def test_two_clients_stand_apart() -> None:
    a = assign(torch.randn(2, 20, generator=torch.Generator().manual_seed(0)), 10)
    assert (a.centers[0] - a.centers[1]).abs().sum() > 0.5
    assert (a.components[1] == 0).all()  # beyond the rank: no direction, also for newcomers


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_one_endpoint_is_one(clients: int) -> None:
    s = torch.randn(clients, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(assign(s, 1).centers, torch.ones(clients, 1, dtype=torch.float64))


def test_log_energy_of_two_points() -> None:
    assert log_energy(torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(np.log(1 / 2))
    assert log_energy(torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == pytest.approx(np.log(1e8))


@pytest.mark.parametrize(
    ("signals", "endpoints"),
    [(torch.zeros(3), 2), (torch.zeros(0, 3), 2), (torch.zeros(2, 3), 0), (torch.tensor([[1.0], [float("nan")]]), 2)],
)
def test_assign_refuses(signals: torch.Tensor, endpoints: int) -> None:
    with pytest.raises(FlocoError):
        assign(signals, endpoints)


def test_place_refuses_signals_of_another_model() -> None:
    with pytest.raises(FlocoError, match=r"\(k, 20\)"):
        assign(torch.randn(3, 20), 2).place(torch.randn(1, 21))


def test_principal_directions_are_those_of_the_singular_value_decomposition() -> None:
    g = torch.Generator().manual_seed(0)
    for clients, size, number in ((2, 30, 10), (40, 7, 10), (100, 300, 10), (300, 500, 5)):
        signals = torch.randn(5, size, generator=g)[torch.arange(clients) % 5] + 0.3 * torch.randn(
            clients, size, generator=g
        )
        centered = Centered.of(signals)
        found = principal(centered, number)
        _, values, expected = torch.linalg.svd(signals.double() - signals.double().mean(dim=0), full_matrices=False)
        rank = int((values > 1e-6 * values[0]).sum())
        expected = expected[: min(number, rank)]
        expected = expected * expected.gather(1, expected.abs().argmax(dim=1, keepdim=True)).sign()
        assert found.shape == (min(number, clients, size), size)
        assert torch.allclose(found[: len(expected)], expected, atol=1e-6)
        assert not found[len(expected) :].any()


def test_one_client_with_a_huge_signal_hides_no_direction() -> None:
    g = torch.Generator().manual_seed(0)
    signals = torch.randn(5, 1000, generator=g)[torch.arange(100) % 5] + 0.3 * torch.randn(100, 1000, generator=g)
    signals[0] *= 300
    found = principal(Centered.of(signals), 10)
    _, _, expected = torch.linalg.svd(signals.double() - signals.double().mean(dim=0), full_matrices=False)
    assert torch.allclose((found * expected[:10]).sum(dim=1).abs(), torch.ones(10, dtype=torch.float64), atol=1e-6)


def test_whole_numbers_are_signals_too() -> None:
    signals = torch.tensor([[0, 2], [2, 0], [5, 1]])
    assert torch.equal(assign(signals, 2).centers, assign(signals.double(), 2).centers)


def test_the_energy_of_many_clients_is_that_of_all_pairs() -> None:
    centers = torch.rand(700, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centers[1] = centers[600]  # two that coincide, in different blocks
    expected = torch.pdist(centers).clamp_min(1e-4).pow(-2).mean().log()
    assert log_energy(centers) == pytest.approx(float(expected), abs=1e-9)


def test_a_wide_search_on_some_clients_finds_the_scale_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    signals = 3 * torch.randn(5, 60, generator=g)[torch.arange(500) % 5] + torch.randn(500, 60, generator=g)
    expected = assign(signals, 5)
    monkeypatch.setattr("floco.simplex.assignment._FIRST", 400)
    assert assign(signals, 5).log_energy <= expected.log_energy + 0.02


def test_float32_signals_are_not_turned_to_float64_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    signals = torch.randn(50, 40, generator=g)
    expected = assign(signals.double(), 4)
    monkeypatch.setattr("floco.simplex.components._PART", 400)  # ten rows at a time
    assert torch.allclose(assign(signals, 4).centers, expected.centers, atol=1e-9)
