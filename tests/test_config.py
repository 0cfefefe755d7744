from collections.abc import Callable
from pathlib import Path

import pytest

from floco.algorithms import ALGORITHMS, Floco, FlocoPlus
from floco.core.errors import FlocoError
from floco.core.values import Training
from floco.runs.config import Config
from floco.runs.reference import methods, reference
from floco.runs.toml import parse, read, to_toml

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


def test_defaults_are_complete() -> None:
    config = read(None)
    assert config.algorithm == Floco(endpoints=3, assign_at=config.training.rounds // 2).resolved(config.training)
    assert config.data.source == "digits"
    assert parse({}).algorithm == Floco(assign_at=50).resolved(parse({}).training)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_printing_and_reading_is_the_identity(name: str, write_toml: Callable[[str], Path]) -> None:
    config = read(None, [f"algorithm.name={name}", "data.samples=30", "data.order=position", "training.lr=1e-3"])
    assert read(write_toml(to_toml(config))) == config


def test_overrides_have_the_last_word(write_toml: Callable[[str], Path]) -> None:
    path = write_toml('seed = 1\n[algorithm]\nname = "floco"\nendpoints = 5\n[training]\nrounds = 20\n')
    config = read(path, ["training.rounds=8", "algorithm.radius=0.3", "seed=2", 'algorithm.mix=["a", "b"]'])
    assert (config.seed, config.training.rounds) == (2, 8)
    assert config.algorithm == Floco(endpoints=5, radius=0.3, assign_at=4, mix=("a", "b")).resolved(config.training)


KEPT = [  # method of a file and of -s, the file's setting, and the value that the other method has then
    ("floco", "floco+", "radius", 0.3),
    ("floco+", "floco", "radius", 0.3),
    ("floco", "floco", "radius", 0.3),
    ("floco+", "floco+", "pull", 0.3),
    ("ditto", "apfl", "pull", None),  # there is none
    ("ditto", "floco+", "pull", 1.0),  # of the same name, and another one
]


@pytest.mark.parametrize(("method", "other", "key", "kept"), KEPT)
def test_another_algorithm_keeps_what_both_have_from_the_same_class(
    write_toml: Callable[[str], Path], method: str, other: str, key: str, kept: float | None
) -> None:
    path = write_toml(f'[algorithm]\nname = "{method}"\n{key} = 0.3\n')
    assert getattr(read(path, [f"algorithm.name={other}"]).algorithm, key, None) == kept


def test_an_empty_value_is_none() -> None:
    assert read(None, ["data.samples="]).data.samples is None
    assert read(None, ["algorithm.assign_at=never"]).algorithm.assign_at == "never"


BAD = [
    ("[trainig]\n", "unknown key 'trainig'; did you mean 'training'?"),
    ("[training]\nround = 5\n", "training: unknown key 'round'; did you mean 'rounds'?"),
    ("[training]\nrounds = 2.5\n", "training.rounds must be a whole number, got 2.5"),
    ('[training]\nrounds = "5"\n', "training.rounds must be a whole number, got '5'"),
    ("[training]\nrounds = 0\n", "training.rounds must be >= 1, got 0"),
    ("[training]\nrounds = true\n", "training.rounds must be a whole number, got True"),
    ("[training]\nlr = nan\n", "training.lr must be > 0, got nan"),
    ("[training]\nfraction = 1.5\n", "training.fraction must be > 0 and <= 1, got 1.5"),
    ('[algorithm]\nname = "flocco"\n', "algorithm.name must be one of"),
    ("[algorithm]\nradius = -0.1\n", "algorithm.radius must be >= 0, got -0.1"),
    ("[algorithm]\nassign_at = 500\n", "assign_at must be at most training.rounds (100), got 500"),
    ('[algorithm]\nname = "fedavg"\nradius = 0.1\n', "algorithm: unknown key 'radius'"),
    ('[data]\nsplit = "fold"\n', "data.split must be one of folds, dirichlet"),
    ('[data]\nnormalize = "fixed"\n', 'mean and std belong to normalize = "fixed"'),
    ("seed = -1\n", "seed must be >= 0, got -1"),
    ("data = 3\n", "data must be a table, got 3"),
    ("[data\n", "not a TOML file"),
]


@pytest.mark.parametrize(("text", "says"), BAD, ids=[s for _, s in BAD])
def test_a_wrong_file_is_named_with_its_key(text: str, says: str, write_toml: Callable[[str], Path]) -> None:
    path = write_toml(text)
    with pytest.raises(FlocoError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


OPTIONS = [  # options, of a right file, and what an error begins with; BAD has errors of files
    (["training.rounds=0"], "-s training.rounds=0: training.rounds must be >= 1, got 0"),
    (["seed=3", "training.round=5", "training.lr=0.1"], "-s training.round=5: training: unknown key 'round'"),
    (["algorithm.name=flocco"], "-s algorithm.name=flocco: algorithm.name must be one of"),
    (["algorithm.name=ditto", "algorithm.radius=0.1"], "-s algorithm.radius=0.1: algorithm: unknown key 'radius'"),
    (["training.rounds=5", "algorithm.assign_at=9"], "-s algorithm.assign_at=9: assign_at must be at most"),
    (["data.normalize=fixed"], "-s data.normalize=fixed: data.mean and std belong to"),
]


@pytest.mark.parametrize("given", [True, False], ids=["file", "no file"])
@pytest.mark.parametrize(("options", "says"), OPTIONS, ids=[s for _, s in OPTIONS])
def test_a_wrong_option_is_named_and_not_the_file(
    options: list[str], says: str, given: bool, write_toml: Callable[[str], Path]
) -> None:
    path = write_toml("seed = 1\n[training]\nrounds = 20\n") if given else None
    with pytest.raises(FlocoError) as caught:
        read(path, ["training.batch_size=9", *options, "run.device=cpu"])
    assert str(caught.value).startswith(says)
    assert str(path) not in str(caught.value)


def test_a_missing_file_and_a_broken_override_are_named(tmp_path: Path) -> None:
    with pytest.raises(FlocoError, match="none.toml: No such file"):
        read(tmp_path / "none.toml")
    with pytest.raises(FlocoError, match="key=value"):
        read(None, ["training.rounds"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_shipped_configurations_are_valid(path: Path) -> None:
    assert isinstance(read(path), Config)


def test_the_papers_settings() -> None:
    """CIFAR-10 as in the paper: 100 clients of 500 samples, 30 a round, 500 rounds, assignment in round 250."""
    paper = Training(rounds=500, fraction=0.3, epochs=5, batch_size=50, lr=0.02, momentum=0.5, weight_decay=5e-4)
    folds, released, dirichlet = (
        read(next(p for p in CONFIGS if p.stem == f"cifar10-{n}")) for n in ("folds", "folds-released", "dirichlet")
    )
    assert folds.training == released.training == dirichlet.training == paper
    assert folds.algorithm == Floco(endpoints=10, assign_at=250, radius=0.1).resolved(folds.training)
    assert released.algorithm == Floco(
        endpoints=10, assign_at=250, radius=0.1, sampler="released", normalize=False
    ).resolved(released.training)
    assert dirichlet.algorithm == Floco(endpoints=10, assign_at=250, radius=0.3).resolved(dirichlet.training)
    assert (folds.data.split.share, released.data.split.share, dirichlet.data.split.alpha) == (0.8, 0.84, 0.5)
    assert {(c.data.clients, c.data.samples, c.data.test_share) for c in (folds, released, dirichlet)} == {
        (100, 500, 0.2)
    }


def test_lossless_numbers_are_taken() -> None:
    assert parse({"training": {"rounds": 5.0, "lr": 1}}).training == Training(rounds=5, lr=1.0)


def test_the_reference_in_the_docs_is_the_generated_one() -> None:
    text = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    assert reference() in text


def test_the_table_of_methods_in_the_documents_is_the_generated_one() -> None:
    text = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    assert methods() in text
    assert all(f"| `{name}` |" in text for name in ALGORITHMS)


def test_every_algorithm_has_its_settings_in_the_reference() -> None:
    assert "`algorithm.pull` (floco+) | `1.0` |" in reference()
    assert FlocoPlus.name in reference()
