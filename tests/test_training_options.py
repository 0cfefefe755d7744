"""Training as people train: optimisers, step sizes over rounds, clipping, steps in place of epochs, augmentation."""

import itertools
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import floco as package
from conftest import blobs, floco, make, rows, small_net, train
from floco.algorithms import SCAFFOLD, Ditto, FedAvg, FedAvgFT, Floco, PFedMe
from floco.client.round import prepare
from floco.client.setup import Setup
from floco.client.sgd import Work, sgd_step, train_client
from floco.core.algorithm import Algorithm
from floco.core.errors import FlocoError
from floco.core.inputs import Inputs, each
from floco.core.values import Batch, Message, Phase, Step, Training, plain_loss
from floco.data.augment import Augment, find_augment
from floco.data.partition import Iid
from floco.deliver.newcomers import _makers, newcomer_rows, try_place
from floco.engines.cohort import Cohorts
from floco.engines.engine import Serial
from floco.engines.processes import Processes
from floco.server.rounds import initialize
from floco.tasks import Classification
from floco.tasks.segmentation import Segmentation
from floco.testing import _equal, _resumes
from test_algorithms import TABLE
from test_cohort import close


def noisy(batch: Inputs, generator: torch.Generator) -> Inputs:
    assert isinstance(batch, torch.Tensor)
    return batch + 0.1 * torch.randn(batch.shape, generator=generator)


def grey(batch: Inputs, generator: torch.Generator) -> Inputs:
    return batch


NOISY = Augment("noisy", noisy)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_is_torchs(optimizer: str, clip: float | None) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 5, generator=g), torch.randint(3, (20,), generator=g)
    ours, theirs = small_net(), small_net()
    theirs.load_state_dict(ours.state_dict())
    other = (
        torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1, fused=True)
        if optimizer == "adamw"
        else torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.5, weight_decay=0.1, fused=True)
    )
    training = Training(lr=0.01, weight_decay=0.1, optimizer=optimizer, clip=clip)
    tensors = {n: p.detach().clone().requires_grad_() for n, p in ours.named_parameters()}
    step, state = Step(plain_loss(Classification()), tuple(tensors)), []
    norms = []
    for _ in range(8):
        sgd_step(
            step,
            lambda t, x: torch.func.functional_call(ours, dict(t), (x,)),
            tensors,
            state,
            None,
            Batch(x, y),
            training,
        )
        other.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip or math.inf))
        other.step()
    assert clip is None or max(norms) > clip
    for name, p in theirs.named_parameters():
        assert torch.equal(tensors[name], p) if clip is None else torch.allclose(tensors[name], p, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_a_run_is_a_loop_of_torchs_optimizers_and_schedulers(optimizer: str, schedule: str) -> None:
    """One client with all samples in one batch: its rounds follow each other, each with a fresh optimiser."""
    federation, rounds, steps = blobs(ids=("only",), sizes=(40,)), 5, 3
    made = {"lr": 0.02, "schedule": schedule, "optimizer": optimizer, "clip": 0.4, "weight_decay": 0.01}
    setup = make(FedAvg(), federation=federation, rounds=rounds, fraction=1.0, batch_size=99, steps=steps, **made)
    net = small_net()
    net.load_state_dict(setup.network.parameters)
    x, y = federation.x[federation.clients[0].train], federation.y[federation.clients[0].train]
    dummy = torch.optim.SGD([torch.zeros(1)], lr=0.02)
    scheduler = {
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(dummy, factor=1.0),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(dummy, T_max=rounds),
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(dummy, 1.0, 0.0, total_iters=rounds),
    }[schedule]()
    for progress in train(setup):
        lr = scheduler.get_last_lr()[0]
        kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
        own = {} if optimizer == "adamw" else {"momentum": 0.5}
        other = kind(net.parameters(), lr=lr, weight_decay=0.01, **own)
        for _ in range(steps):
            other.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.4)
            other.step()
        dummy.step()
        scheduler.step()
        shared = progress.state.shared
        assert all(torch.allclose(shared[n], p, rtol=1e-4, atol=1e-6) for n, p in net.named_parameters())


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 3, [1 / 4, 2 / 4, 3 / 4, 1]),
        ("linear", 0, [1, 3 / 4, 2 / 4, 1 / 4]),
        ("linear", 1, [1 / 2, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", 0, [1, (1 + math.sqrt(0.5)) / 2, 1 / 2, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_the_step_size_of_each_round(schedule: str, warmup: int, expected: list[float]) -> None:
    training = Training(rounds=4, lr=0.3, schedule=schedule, warmup=warmup)
    assert [training.at(t).lr for t in (1, 2, 3, 4)] == pytest.approx([0.3 * e for e in expected])
    assert Training(rounds=4).at(3) == Training(rounds=4)


def test_own_step_sizes_follow_the_schedule_and_an_adaptation_has_none() -> None:
    setup = make(PFedMe(personal_lr=0.2, outer_lr=0.06), rounds=4, schedule="linear", lr=0.1)
    message = replace(setup.algorithm.message(initialize(setup).state, "north", "train"), round=3)
    work = prepare(setup, "north", message, None)
    assert [s.lr for s in work.phases[0].steps] == pytest.approx([0.1, 0.03])
    assert work.facts.training.lr == pytest.approx(0.05)
    evaluated = make(FedAvgFT(), rounds=4, schedule="linear", lr=0.1)
    work = prepare(evaluated, "north", replace(message, purpose="evaluate"), None)
    assert (work.facts.training.lr, work.phases[0].steps[0].lr) == (0.1, None)


def test_scaffold_divides_by_the_steps_and_the_step_size_that_were_used() -> None:
    """Of a single client c = c_i, so that its new variate is (w_t - w_i) / (steps lr)."""
    setup = make(
        SCAFFOLD(), federation=blobs(sizes=(40,)), rounds=4, fraction=1.0, steps=3, schedule="linear", weight_decay=0.0
    )
    before = setup.network.parameters
    for t, progress in enumerate(train(setup)):
        after, own = progress.state.shared, progress.memories["0"]
        lr = 0.1 * (1 - t / 4)
        for n, w in before.items():
            assert torch.allclose(own[f"own variate/{n}"], (w - after[n]) / (3 * lr), rtol=1e-3, atol=1e-5)
        before = {n: after[n] for n in before}


OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "clip": {"clip": 0.3},
    "steps": {"steps": 5},
    "schedule": {"schedule": "cosine", "warmup": 1},
    "augment": {"augment": NOISY},
}
SOME = {**OPTIONS["steps"], **OPTIONS["schedule"], **OPTIONS["augment"]}
ALL = {**OPTIONS["adamw"], **OPTIONS["clip"], **SOME}
COMBINATIONS = [
    pytest.param(method, options, id=f"{method.name}-{name}")
    for methods, name, options in (
        *(([Ditto(personal_epochs=1)], name, options) for name, options in OPTIONS.items()),
        ([FedAvg(), Floco(endpoints=3, assign_at=1), Ditto(), FedAvgFT()], "all", ALL),
        ([PFedMe(), SCAFFOLD()], "some", SOME),
    )
    for method in methods
]


def unequal(algorithm: Algorithm, options: dict[str, Any]) -> Setup:
    """Two rounds of clients with 11, 17, 5, 46 and 29 training samples, in batches of 8."""
    training = dict(options)
    federation = replace(blobs(sizes=(15, 21, 9, 50, 33)), augment=training.pop("augment", None))
    return make(algorithm, federation=federation, rounds=2, fraction=1.0, **training)


@pytest.mark.parametrize(("algorithm", "options"), COMBINATIONS)
def test_engines_agree(algorithm: Algorithm, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[bool] = []
    original = Cohorts.run

    def run(self: Cohorts, works: list[Work]) -> Any:
        found = original(self, works)
        together.extend(not isinstance(t, str) for t in found)
        return found

    monkeypatch.setattr(Cohorts, "run", run)
    setup = unequal(algorithm, options)
    alone = train(setup)
    assert not any(p.failures for p in alone)
    with closing(Processes(setup, 2)) as engine:
        assert _equal(alone[-1], train(setup, engine)[-1])
    cohort = train(setup, Serial(setup, 8))
    assert together
    assert all(together)
    assert close(alone[-1], cohort[-1], 1e-4)
    for a, b in zip(alone, cohort, strict=True):
        assert a.evaluation is not None
        assert b.evaluation is not None
        assert a.evaluation.history["steps"] == b.evaluation.history["steps"]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_each_option_changes_a_run_and_resumes_to_the_same_bits(options: dict[str, Any]) -> None:
    setup = unequal(Ditto(), options)
    passed = train(setup)
    assert _resumes(setup, passed[0], passed[-1])
    assert not _equal(train(unequal(Ditto(), {"lr": options.get("lr", 0.1)}))[-1], passed[-1])


@pytest.mark.parametrize("algorithm", [a for a, _ in TABLE], ids=lambda a: a.name)
def test_as_many_steps_as_epochs_have_are_the_epochs(algorithm: Algorithm) -> None:
    algorithm = PFedMe(inner_steps=1) if algorithm.name == "pfedme" else algorithm
    federation = blobs(sizes=(24,) * 6)  # 20 training samples: 3 batches an epoch
    epochs, steps = (
        train(make(algorithm, federation=federation, rounds=3, **more))[-1] for more in ({"epochs": 2}, {"steps": 6})
    )
    assert _equal(epochs, steps)


def test_a_client_stops_after_its_steps_and_passes_over_its_samples_as_often_as_needed() -> None:
    setup, seen = make(FedAvg(), steps=5, batch_size=3), []

    def loss(predict, tensors, draw, batch):  # type: ignore[no-untyped-def]
        seen.append(batch.x[:, 0].tolist())
        return 0 * predict(tensors, batch.x).sum()

    step = Step(loss, setup.network.layout.parameters)
    message, facts = Message(1, "train", {}), setup.facts("0")
    work = Work("0", message, facts, dict(setup.network.parameters), (Phase("p", (step,)),), torch.arange(8), ("test",))
    train_client(setup, work)
    assert [len(b) for b in seen] == [3, 3, 2, 3, 3]
    assert sorted(itertools.chain(*seen[:3])) == sorted(setup.federation.x[:8, 0].tolist())
    assert (work.steps, len(list(work.orders(work.phases[0], 0)))) == (5, 2)
    assert replace(work, phases=(Phase("p", (step,), epochs=2),)).steps == 2 * 3
    assert replace(work, phases=(Phase("p", (replace(step, repeat=2),), batches=4),)).steps == 2 * 4


def test_steps_of_unequal_clients_are_equal_and_counted() -> None:
    history = [p.evaluation.history for p in train(unequal(FedAvg(), {"steps": 4}))]
    assert [row["steps"] for row in history] == [5 * 4] * 2


def test_pfedme_divides_steps_as_it_divides_epochs() -> None:
    history = train(unequal(PFedMe(inner_steps=5), {"steps": 10}))[0].evaluation.history
    assert history["steps"] == 5 * 2 * (5 + 1)


@pytest.mark.parametrize("algorithm", [SCAFFOLD(), PFedMe()], ids=lambda a: a.name)
@pytest.mark.parametrize(
    ("options", "given"), [({"optimizer": "adamw"}, "optimizer = 'adamw'"), ({"clip": 0.5}, r"clip = 0\.5")]
)
def test_a_method_of_plain_sgd_refuses_the_rest_by_name(
    algorithm: Algorithm, options: dict[str, Any], given: str
) -> None:
    with pytest.raises(
        FlocoError, match=rf"{algorithm.name} needs training\.optimizer = 'sgd' without clip and head_lr, got {given}"
    ):
        make(algorithm, **options)


def test_a_step_with_a_momentum_of_its_own_is_refused_under_adamw() -> None:
    setup = make(FedAvg(), optimizer="adamw")
    step = Step(plain_loss(setup.task), setup.network.layout.parameters, momentum=0.9)
    message, facts = Message(1, "train", {}), setup.facts("0")
    work = Work("0", message, facts, dict(setup.network.parameters), (Phase("p", (step,)),), torch.arange(8), ("test",))
    with pytest.raises(FlocoError, match=r"momentum of its own \(0\.9\), and adamw has none"):
        train_client(setup, work)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warmup": 6}, r"warmup must be below training.rounds \(6\)"),
        ({"optimizer": "adam"}, "optimizer must be one of 'sgd', 'adamw'"),
        ({"schedule": "step"}, "schedule must be one of"),
        ({"clip": 0.0}, "clip must be > 0"),
        ({"steps": 0}, "steps must be >= 1"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(FlocoError, match=words):
        Training(**{"rounds": 6, **options})


def test_coefficients_are_neither_clipped_nor_adams() -> None:
    setup = make(FedAvg(), optimizer="adamw", clip=1e-3, lr=0.1)
    tensors = {"a": torch.tensor(1.0), "b": torch.tensor(0.9)}

    def loss(predict, tensors, draw, batch):  # type: ignore[no-untyped-def]
        return 5 * tensors["a"] + 2 * tensors["b"]

    step = Step(loss, ("a",), coefficients={"b": (0.0, 1.0)}, weight_decay=0.0)
    message, facts = Message(1, "train", {}), setup.facts("0")
    phases = (Phase("p", (step,), epochs=1),)
    after = train_client(setup, Work("0", message, facts, tensors, phases, torch.arange(8), ("test",)))
    assert (after["a"], after["b"]) == (pytest.approx(1 - 0.1, rel=1e-4), pytest.approx(0.9 - 0.2))


def test_newcomers_train_after_a_schedule_that_is_over_and_for_as_many_steps_as_others() -> None:
    seen: list[int] = []

    def counted(batch: Inputs, generator: torch.Generator) -> Inputs:
        seen.append(len(batch))
        return batch

    federation = replace(blobs(), augment=Augment("counted", counted))
    federation = replace(federation, clients=federation.clients[:-1], held_out=federation.clients[-1:])
    setup = make(
        Floco(endpoints=3, assign_at=2), federation=federation, rounds=4, fraction=1.0, steps=3, schedule="linear"
    )
    last = train(setup)[-1]
    seen.clear()
    table = [r for r in newcomer_rows(setup, last.state) if r["size"] == "all"]
    assert [r["problem"] for r in table] == [""] * 4
    seen.clear()
    few = federation.x[:12], federation.y[:12]
    assert not try_place(setup, last.state, *few).problems
    seen.clear()
    _makers(setup, last.state, few)["local"]()
    assert len(seen) == 4 * 3


def images(n: int = 6, side: int = 16) -> torch.Tensor:
    return torch.rand(n, 2, side, side, generator=torch.Generator().manual_seed(0)) + 1


def test_flip_mirrors_some_images_and_leaves_the_others() -> None:
    x, change = images(200), find_augment("flip")
    assert change is not None
    found = change(x, torch.Generator().manual_seed(1))
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(found, x, strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, found, x, strict=True))
    assert 70 < sum(mirrored) < 130


def test_crop_moves_an_image_by_an_eighth_of_its_side_at_most_and_fills_with_zero() -> None:
    x, change, moves = images(300), find_augment("flip+crop"), set()
    assert change is not None
    for a, b in zip(change(x, torch.Generator().manual_seed(1)), x, strict=True):
        for flipped, dy, dx in itertools.product((False, True), range(-2, 3), range(-2, 3)):
            moved = (b.flip(2) if flipped else b).roll((dy, dx), (1, 2))
            moved[:, : max(dy, 0)] = moved[:, 16 + min(dy, 0) :] = 0
            moved[:, :, : max(dx, 0)] = moved[:, :, 16 + min(dx, 0) :] = 0
            if torch.equal(a, moved):
                moves.add((flipped, dy, dx))
                break
        else:
            pytest.fail("no move gives this image")
    assert len(moves) == 2 * 25


def test_only_training_batches_are_changed_and_a_function_sees_the_same_ones_in_each_engine() -> None:
    seen: list[list[float]] = []

    def noted(batch: Inputs, generator: torch.Generator) -> Inputs:
        assert isinstance(batch, torch.Tensor)
        seen.append([float(torch.rand((), generator=generator)), *batch.flatten().tolist()])
        return batch

    setup = unequal(FedAvg(), {"augment": Augment("noted", noted)})
    history = [p.evaluation.history for p in train(setup)]
    first = sorted(seen)
    assert len(first) == sum(row["steps"] for row in history)
    seen.clear()
    train(setup, Serial(setup, 8))
    assert sorted(seen) == first


def wrong_shape(batch: Inputs, generator: torch.Generator) -> Inputs:
    return batch[:, :3]


def wrong_type(batch: Inputs, generator: torch.Generator) -> Inputs:
    return batch.double()


def wrong_kind(batch: Inputs, generator: torch.Generator) -> Inputs:
    return batch.tolist()


def stray(batch: Inputs, generator: torch.Generator) -> Inputs:
    return batch + torch.randn(batch.shape)


def stray_numpy(batch: Inputs, generator: torch.Generator) -> Inputs:
    return batch + np.random.rand()  # noqa: NPY002


def fails(batch: Inputs, generator: torch.Generator) -> Inputs:
    raise ZeroDivisionError("no")


X, SEQUENCES = np.random.default_rng(0).random((40, 5)), np.random.default_rng(0).random((40, 3, 6, 9))
SMALL = np.random.default_rng(0).integers(0, 255, (40, 6, 6)).astype(np.uint8)
Y = np.arange(40) % 2


@pytest.mark.parametrize(
    ("x", "more", "augment", "words"),
    [
        (X, {}, "flip", r"'flip' is for images, inputs of shape \(N, C, H, W\), and these have \(4, 5\)"),
        (SEQUENCES, {"channels": "last", "kind": "features"}, "flip", "is for images"),
        ({"x.a": X, "x.b": X}, {}, "flip+crop", r"is for images.*these have a \(4, 5\), b \(4, 5\)"),
        (SMALL, {}, "flip+crop", "needs images with a side of 8 pixels at least"),
        (X, {}, "flop", "augment must be empty, flip, flip.crop or module:function, got 'flop'.*did you mean 'flip'"),
        (X, {}, 3, "augment must be empty, flip, flip.crop, module:function or a function, got 3"),
        (X, {}, "no_such_module:f", "data.augment = 'no_such_module:f': No module"),
        (X, {}, wrong_shape, r"must return inputs of the same form.*\(4, 5\); it returned \(4, 3\)"),
        (X, {}, wrong_type, "it returned .* torch.float64"),
        (X, {}, wrong_kind, "it returned list"),
        (X, {}, stray, "must draw its random numbers from the generator"),
        (X, {}, stray_numpy, "must draw its random numbers from the generator"),
        (X, {}, fails, "raised ZeroDivisionError on .*: no"),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)[:12]),
)
def test_an_augmentation_that_does_not_fit_is_refused_before_training(
    x: Any, more: dict[str, str], augment: str | Callable[..., Inputs], words: str
) -> None:
    data = {**x, "y": Y} if isinstance(x, dict) else (x, Y)
    samples = package.load(data, **more)
    with pytest.raises(FlocoError, match=words):
        samples.split(package.Folds(2), clients=2, augment=augment)


def test_images_do_not_move_away_from_the_targets_of_their_pixels() -> None:
    masks = np.random.default_rng(0).integers(0, 2, (40, 16, 16))
    samples = package.load((images(40).numpy().transpose(0, 2, 3, 1), masks), kind="images", task=Segmentation())
    with pytest.raises(
        FlocoError, match=r"'flip' moves images, and the targets of their pixels would stay.*\(16, 16\)"
    ):
        samples.split(Iid(), clients=2, augment="flip")


def brighter(batch: Inputs, generator: torch.Generator, by: float) -> Inputs:
    return each(lambda x: x + by, batch)


class Brighter:
    def __call__(self, batch: Inputs, generator: torch.Generator) -> Inputs:
        return brighter(batch, generator, 0.1)


def test_another_augmentation_is_another_federation() -> None:
    samples = package.load("digits")
    given = [None, "flip", "flip+crop", grey, Brighter(), partial(brighter, by=0.1), partial(brighter, by=0.2)]
    made = [samples.split(package.Folds(5), clients=5, augment=a).fingerprint() for a in given]
    assert len(set(made)) == len(given)
    assert replace(samples.split(package.Folds(5), clients=5, augment="flip"), augment=None).fingerprint() == made[0]


def test_a_run_with_everything_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    darker = "return batch * torch.rand(len(batch), 1, 1, 1, generator=generator)"
    (tmp_path / "mine.py").write_text(f"import torch\n\ndef darker(batch, generator):\n    {darker}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    base = ["data.clients=5", "training.rounds=2", "run.evaluate_every=1", "run.engine=serial", "algorithm.name=fedavg"]
    base += ["training.optimizer=adamw", "training.lr=0.002", "training.schedule=cosine", "training.warmup=1"]
    base += ["training.clip=1", "training.steps=3"]
    digests = []
    for augment in ("", "flip+crop", "mine:darker"):
        out = tmp_path / f"run-{len(digests)}"
        settings = [t for s in (*base, f"data.augment={augment}") for t in ("-s", s)]
        done = floco("run", *settings, "--out", out)
        assert done.exit_code == 0, done.output
        digests.append([r["loss_global"] for r in rows(out / "history.csv")])
        assert package.open_run(out).setup.training.clip == 1
    assert len({tuple(d) for d in digests}) == 3
