import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from floco.core.errors import FlocoError
from floco.simplex import project, sample_released, sample_simplex, sample_subregion
from floco.simplex.sampling import _Envelope


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(least: int = 1, most: int = 12) -> st.SearchStrategy[torch.Tensor]:
    row = st.integers(least, most).flatmap(lambda m: st.lists(st.floats(-50, 50), min_size=m, max_size=m))
    return row.map(lambda r: torch.tensor([r], dtype=torch.float64))


@st.composite
def centers(draw: st.DrawFn) -> torch.Tensor:
    """Points of the simplex: inner ones, faces, vertices, and many tiny coordinates."""
    m = draw(st.integers(1, 10))
    raw = draw(st.lists(st.sampled_from([0.0, 1e-9, 1e-3, 0.01, 0.3, 1.0]) | st.floats(0, 1), min_size=m, max_size=m))
    t = torch.tensor(raw, dtype=torch.float64)
    return t / t.sum() if t.sum() > 0 else torch.full((m,), 1 / m, dtype=torch.float64)


@given(points(), st.floats(1e-3, 10))
def test_projection_lands_on_the_simplex(p: torch.Tensor, total: float) -> None:
    b = project(p, total)
    assert (b >= 0).all()
    assert b.sum() == pytest.approx(total, rel=1e-9)


@given(points())
def test_projection_is_idempotent(p: torch.Tensor) -> None:
    assert torch.allclose(project(project(p)), project(p), atol=1e-12)


@given(points(least=2), st.integers(0, 10**6))
def test_projection_is_nearest(p: torch.Tensor, seed: int) -> None:
    others = sample_simplex(50, p.shape[1], generator=gen(seed))
    assert (p - project(p)).norm() <= (p - others).norm(dim=1).min() + 1e-9


@given(points(), st.floats(-100, 100))
def test_projection_ignores_a_shift(p: torch.Tensor, shift: float) -> None:
    assert torch.allclose(project(p + shift), project(p), atol=1e-9)


@pytest.mark.parametrize(
    "bad", [torch.zeros(3), torch.zeros(2, 0), torch.tensor([[1, 2]]), torch.tensor([[math.nan, 0.0]])]
)
def test_projection_refuses(bad: torch.Tensor) -> None:
    with pytest.raises(FlocoError):
        project(bad)


def test_simplex_draws_have_the_moments_of_the_flat_dirichlet() -> None:
    a = sample_simplex(200_000, 4, generator=gen())
    assert torch.allclose(a.mean(0), torch.full((4,), 0.25, dtype=torch.float64), atol=2e-3)
    assert torch.allclose(a.var(0), torch.full((4,), 3 / 80, dtype=torch.float64), atol=5e-4)


@settings(deadline=None, max_examples=150)
@given(centers(), st.floats(1e-3, 3), st.integers(0, 10**6))
def test_subregion_draws_are_on_the_simplex_and_in_the_ball(center: torch.Tensor, radius: float, seed: int) -> None:
    a = sample_subregion(center, radius, 20, generator=gen(seed))
    assert a.shape == (20, len(center))
    assert (a >= 0).all()
    assert torch.allclose(a.sum(1), torch.ones(20, dtype=torch.float64), atol=1e-9)
    assert ((a - center).abs().sum(1) <= radius + 1e-9).all()


CASES = [
    ([0.25, 0.25, 0.25, 0.25], 0.3),
    ([1.0, 0.0, 0.0, 0.0], 0.4),  # a vertex
    ([0.5, 0.5, 0.0, 0.0], 0.2),  # an edge
    ([0.97, 0.01, 0.01, 0.01], 0.3),  # small coordinates
    ([0.96, 0.02, 0.01, 0.005, 0.005], 0.5),
    ([0.4, 0.3, 0.3, 0.0], 0.9),
    ([0.7, 0.2, 0.05, 0.03, 0.02], 0.4),
    ([0.2, 0.2, 0.2, 0.2, 0.2], 1.3),  # large radius: the other envelope
]


@pytest.mark.parametrize(("center", "radius"), CASES)
def test_subregion_draws_have_the_moments_of_brute_force_rejection(center: list[float], radius: float) -> None:
    n, beta = 40_000, torch.tensor(center, dtype=torch.float64)
    ours = sample_subregion(beta, radius, n, generator=gen(1))
    brute = torch.empty(0, len(beta), dtype=torch.float64)
    g = gen(2)
    while len(brute) < n:
        a = sample_simplex(500_000, len(beta), generator=g)
        brute = torch.cat([brute, a[(a - beta).abs().sum(1) <= radius]])
    brute = brute[:n]

    def deviates(f_ours: torch.Tensor, f_brute: torch.Tensor) -> float:
        """Largest difference of means in standard errors."""
        error = ((f_ours.var(0) + f_brute.var(0)) / n).sqrt().clamp_min(1e-12)
        return float(((f_ours.mean(0) - f_brute.mean(0)).abs() / error).max())

    pairs = torch.combinations(torch.arange(len(beta)), with_replacement=True)
    assert deviates(ours, brute) < 4.5
    assert deviates((ours - beta)[:, pairs].prod(2), (brute - beta)[:, pairs].prod(2)) < 4.5
    assert deviates((ours - beta).abs().sum(1, keepdim=True), (brute - beta).abs().sum(1, keepdim=True)) < 4.5
    assert deviates((ours < beta).double(), (brute < beta).double()) < 4.5


def test_one_endpoint_is_the_point_one() -> None:
    assert torch.equal(sample_subregion(torch.ones(1), 0.5, 3, generator=gen()), torch.ones(3, 1, dtype=torch.float64))


def test_radius_zero_is_the_center() -> None:
    center = torch.tensor([0.2, 0.8])
    assert torch.allclose(sample_subregion(center, 0, 3, generator=gen()), center.double().expand(3, -1))


def test_radius_two_is_the_whole_simplex() -> None:
    a = sample_subregion(torch.tensor([1.0, 0.0, 0.0]), 2, 50, generator=gen(3))
    assert torch.equal(a, sample_simplex(50, 3, generator=gen(3)))


@pytest.mark.parametrize(
    ("center", "radius"), [([0.5, 0.6], 0.1), ([1.1, -0.1], 0.1), ([0.5, 0.5], -0.1), ([0.5, 0.5], math.nan)]
)
def test_subregion_refuses(center: list[float], radius: float) -> None:
    with pytest.raises(FlocoError):
        sample_subregion(torch.tensor(center), radius, 1, generator=gen())


def test_a_hopeless_subregion_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("floco.simplex.sampling._MAX_DRAWS", 1000)
    hard = torch.tensor([0.9] + [0.1 / 29] * 29, dtype=torch.float64)
    with pytest.raises(FlocoError, match="larger radius"):
        sample_subregion(hard / hard.sum(), 0.1, 2000, generator=gen())


def test_the_released_sampler_leaves_the_simplex() -> None:
    a = sample_released(torch.tensor([1.0, 0.0, 0.0]), 0.1, 1000, generator=gen())
    assert (a < 0).any(dim=1).float().mean() > 0.7
    assert not torch.allclose(a.sum(1), torch.ones(1000, dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize(
    ("endpoints", "support"),
    [
        (100, 5),
        (100, 100),
        (400, 5),
        pytest.param(180, 180, marks=pytest.mark.soak),  # half a minute: the best of 180 envelopes
        pytest.param(400, 400, marks=pytest.mark.soak),
    ],
)
def test_many_endpoints_do_not_overflow(endpoints: int, support: int) -> None:
    center = torch.zeros(endpoints, dtype=torch.float64)
    center[:support] = 1 / support
    a = sample_subregion(center, 0.1, 10, generator=gen(4))
    assert torch.allclose(a.sum(1), torch.ones(10, dtype=torch.float64))
    assert ((a - center).abs().sum(1) <= 0.1).all()


@pytest.mark.parametrize("small", [0, 90, 179])
def test_an_envelope_of_many_coordinates_does_not_overflow(small: int) -> None:
    center = torch.full((180,), 1 / 180, dtype=torch.float64)  # 180^-180 is 0 and 180! infinite as a float
    envelope = _Envelope.with_small(center, 0.05, small)
    assert math.isfinite(envelope.log_volume)
    points = envelope.propose(64, gen(4))
    assert torch.allclose(points.sum(1), torch.ones(len(points), dtype=torch.float64))
    assert ((points - center).abs().sum(1) <= 0.1 + 1e-9).all()
