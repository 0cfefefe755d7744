"""Adapters: matrices A and B of LoRA, the methods that send one of them, and peft's own models and files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

import floco as package
from conftest import adapted, blobs, make, same, small_net, train
from floco.algorithms import FedAvg, FedSALoRA, FFALoRA, Floco, FlocoPlus
from floco.client.round import models
from floco.core.adapters import lora_matrices
from floco.core.errors import FlocoError
from floco.core.network import build_network
from floco.core.values import PERSONAL
from floco.deliver.adapter import backbone
from floco.engines.engine import start_engine
from floco.simplex import Mixing

A, B, HEAD = ("0.lora_A",), ("0.lora_B",), ("2.weight", "2.bias")
METHODS = [FedAvg(), FFALoRA(), FedSALoRA(), Floco(endpoints=3, mix="lora"), FlocoPlus(endpoints=3, mix="lora")]
OWN = {"endpoints": 3, "mix": "lora", "centers": "own", "step": "middle"}


def ends(algorithm: Any, engine: str = "serial", **options: Any) -> Any:
    setup = make(algorithm, model=adapted, **options)
    if engine == "serial":
        return train(setup)[-1]
    running = start_engine(setup, engine, 2 if engine == "processes" else 1)
    try:
        return train(setup, running)[-1]
    finally:
        running.close()


def test_matrices_are_found_by_their_names() -> None:
    layout = build_network(adapted, seed=0).layout
    assert layout.parameters == (*A, *B, *HEAD)  # what is frozen is not there
    assert lora_matrices(layout) == (A, B)
    assert Mixing.chosen(layout, "lora") == B


@pytest.mark.parametrize("algorithm", [FFALoRA(), FedSALoRA(), Floco(mix="lora")], ids=lambda a: a.name)
def test_without_adapters_it_is_refused(algorithm: Any) -> None:
    with pytest.raises(FlocoError, match=r"needs LoRA adapters.*get_peft_model"):
        make(algorithm, model=small_net)


@pytest.mark.parametrize(
    ("algorithm", "sent"),
    [
        (FedAvg(), (*A, *B, *HEAD)),  # FedIT: adapters averaged as any other parameter
        (FFALoRA(), (*B, *HEAD)),
        (FedSALoRA(), A),
        (Floco(endpoints=3, mix="lora"), (*A, *B, *HEAD)),
    ],
    ids=lambda a: getattr(a, "name", ""),
)
def test_what_is_sent(algorithm: Any, sent: tuple[str, ...]) -> None:
    assert set(ends(algorithm).state.shared) == set(sent)


def test_ffa_lora_is_fedavg_with_frozen_matrices_a_to_the_bit() -> None:
    def frozen() -> nn.Module:
        model = adapted()
        model[0].lora_A.requires_grad_(False)
        return model

    mine, other = ends(FFALoRA()), train(make(FedAvg(), model=frozen))[-1]
    assert same(mine.state.shared, other.state.shared)
    assert not mine.memories  # A comes from the initial network
    mine, other = mine.evaluation.history, other.evaluation.history
    assert mine["loss_personal"] == other["loss_personal"]
    assert mine["loss_global"] == other["loss_global"]


def test_fedsa_lora_is_fedavg_whose_clients_keep_all_but_a() -> None:
    """With one client that always trains, nobody else's A is averaged in."""
    one = {"federation": blobs(sizes=(60,)), "fraction": 1.0}
    mine, other = ends(FedSALoRA(), **one), ends(FedAvg(), **one)
    kept = mine.memories.of(next(iter(mine.participated))).tensors
    assert set(kept) == {*B, *HEAD}
    assert same({**mine.state.shared, **kept}, other.state.shared)


@pytest.mark.parametrize("algorithm", METHODS, ids=lambda a: a.name)
def test_engines_agree_and_what_is_frozen_stays(algorithm: Any) -> None:
    serial, processes, cohort = (ends(algorithm, e).state.shared for e in ("serial", "processes", "cohort"))
    assert same(serial, processes)
    assert all(torch.allclose(serial[n], cohort[n], atol=1e-5) for n in serial)
    setup = make(algorithm, model=adapted)
    before = {n: p.detach().clone() for n, p in setup.network.module.named_parameters()}
    train(setup)
    assert same(before, dict(setup.network.module.state_dict()))


@pytest.mark.parametrize("cls", [Floco, FlocoPlus])
def test_with_one_endpoint_it_is_fedavg_to_the_bit(cls: Any) -> None:
    mine, other = ends(cls(endpoints=1, mix="lora")).state.shared, ends(FedAvg()).state.shared
    assert same({n: t[0] if n in B else t for n, t in mine.items()}, other)


def test_a_client_of_floco_has_a_matrix_b_of_its_own() -> None:
    """B = sum_m alpha_m B_m at its center, and so its B A."""
    last = ends(Floco(**OWN))
    client = next(c for c, n in last.participated.items() if n)
    memory = last.memories.of(client)
    assert memory is not None
    assert not any(n.startswith(PERSONAL) for n in memory.tensors)
    setup = make(Floco(**OWN), model=adapted)
    message = setup.algorithm.message(last.state, client, "evaluate")
    mine = models(setup, client, message, memory.tensors).personal
    center = memory.tensors["at/center"].float()
    assert torch.allclose(mine["0.lora_B"], torch.einsum("m,m...->...", center, last.state.shared["0.lora_B"]))
    assert torch.equal(mine["0.lora_A"], last.state.shared["0.lora_A"])


class Words(nn.Module):
    """An embedding whose matrix A is zero at first, as peft has it."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_embedding_A, self.lora_embedding_B = nn.Parameter(torch.zeros(2, 5)), nn.Parameter(torch.randn(7, 2))
        self.body, self.head = nn.Linear(5, 7).requires_grad_(False), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x) + x @ self.lora_embedding_A.T @ self.lora_embedding_B.T)


def test_a_matrix_a_of_zeros_is_refused_where_it_would_stay() -> None:
    with pytest.raises(FlocoError, match="'lora_embedding_A' is zero"):
        train(make(FFALoRA(), model=Words))


def test_a_backbone_that_is_anothers_too_is_copied_and_one_that_is_not_is_shared() -> None:
    held = nn.Linear(5, 5).requires_grad_(False)
    made: list[int] = []

    def build(backbone: nn.Module) -> nn.Module:
        made[:] = [backbone.weight.data_ptr()]
        return nn.Sequential(backbone, nn.Linear(5, 3))

    network = build_network(lambda: build(held), seed=0)
    before = network.fingerprint()
    assert network.module[0].weight.data_ptr() != made[0]
    held.weight.data.add_(1)
    assert network.fingerprint() == before
    half = nn.Linear(5, 5).half().requires_grad_(False)
    with pytest.warns(UserWarning, match="float16"):
        build_network(lambda: build(half), seed=0)
    assert half.weight.dtype == torch.float16
    network = build_network(lambda: build(nn.Linear(5, 5).requires_grad_(False)), seed=0)
    assert network.module[0].weight.data_ptr() == made[0]


# peft and transformers


def texts() -> package.Federation:
    """Four clients whose labels follow the first id, in an order of their own; some ids are masked."""
    g = np.random.default_rng(0)
    ids, mask = g.integers(1, 50, (160, 8)), np.ones((160, 8), dtype=np.int64)
    client = np.repeat([f"client-{k}" for k in range(4)], 40)
    mask[:, 6:] = g.integers(0, 2, (160, 1))
    arrays = {"x.input_ids": ids, "x.attention_mask": mask, "y": (ids[:, 0] + np.arange(160) // 80) % 3}
    return package.load({**arrays, "client": client}).split(package.Natural())


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft calls transformers


def bert() -> nn.Module:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():  # as pretrained weights from a file, always the same
        torch.manual_seed(7)
        return BertForSequenceClassification(
            BertConfig(vocab_size=50, num_labels=3, max_position_embeddings=8, **small)
        )


def wrapped(**settings: Any) -> nn.Module:
    chosen = {"r": 2, "target_modules": ["query", "value"], "modules_to_save": ["classifier"], **settings}
    return peft.get_peft_model(bert(), peft.LoraConfig(**chosen))


@pytest.fixture(scope="module")
def trained() -> Any:
    return package.fit(wrapped, texts(), Floco(**OWN), rounds=2, lr=0.1, seed=0)


def test_numbers_of_a_run_are_those_of_the_models_that_it_gives(trained: Any) -> None:
    federation = trained.setup.federation
    for row in trained.clients.to_dict("records"):
        test = federation.client(row["client"]).test
        x = {n: federation.normalize({n: t[test] for n, t in federation.x.items()})[n] for n in federation.x}
        with torch.no_grad():
            logits = trained.personal(row["client"])(**x).logits
        assert (logits.argmax(1) == federation.y[test]).double().mean().item() == row["accuracy_personal"]
        loss = nn.functional.cross_entropy(logits, federation.y[test]).item()
        assert loss == pytest.approx(row["loss_personal"], abs=1e-6)


def test_nothing_frozen_is_sent_or_kept(trained: Any) -> None:
    sent = trained.progress.state.shared
    assert all("lora_" in n or "modules_to_save" in n for n in sent)
    assert trained.history["parameters_up"].iloc[-1] < sum(p.numel() for p in bert().parameters())


def test_an_adapter_is_exported_and_loaded_with_plain_peft(trained: Any, tmp_path: Path) -> None:
    (file,) = trained.export(tmp_path, ["client-1"], kind="peft")
    assert sorted(p.name for p in file.parent.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.safetensors.json",
        "adapter_model.safetensors.md",
    ]
    card = json.loads((file.parent / "adapter_model.safetensors.json").read_text())
    assert card["backbone"] == backbone(bert().requires_grad_(False))
    assert file.stat().st_size < 20_000
    loaded = peft.PeftModel.from_pretrained(bert(), str(file.parent)).eval()
    ids = torch.randint(1, 50, (5, 8))
    assert torch.equal(loaded(input_ids=ids).logits, trained.personal("client-1")(input_ids=ids).logits)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = wrapped()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask).logits


def unsaved() -> nn.Module:
    model = wrapped(modules_to_save=None)
    model.base_model.model.classifier.requires_grad_(True)
    return model


@pytest.mark.parametrize(("model", "words"), [(bert, "is a BertFor"), (Around, "is a Around"), (unsaved, "no part of")])
def test_a_model_that_is_more_than_its_adapter_is_not_exported_as_one(model: Any, words: str, tmp_path: Path) -> None:
    run = package.fit(model, texts(), FedAvg(), rounds=1)
    with pytest.raises(FlocoError, match=words):
        run.export(tmp_path / "out", kind="peft")
    assert not (tmp_path / "out").exists()


def test_the_example_runs_on_a_small_stand_in_for_its_model_and_its_films(tmp_path: Path) -> None:
    """Without a network: a language model of two layers, of its own words, and users who like one genre each."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "drama", "comedy", "war"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    model = tmp_path / "data" / "minilm"
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(model)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    settings = BertConfig(vocab_size=len(words), **sizes)
    BertModel(settings).save_pretrained(model)
    g = np.random.default_rng(0)
    genre, client = g.integers(0, 3, 22 * 200), np.repeat([f"user-{i:02d}" for i in range(22)], 200)
    rating = np.where(genre == np.repeat(np.arange(22) % 3, 200), 5, 2).astype(np.float32)
    np.savez(tmp_path / "data" / "films.npz", text=np.array(["film drama", "film comedy", "film war"])[genre],
             rating=rating, client=client)  # fmt: skip
    script = Path(__file__).parents[1] / "examples" / "adapters.py"
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the own adapter is better than rmse_global_local for" in done.stdout
    assert "its logits are the same: True" in done.stdout
    assert len([*(tmp_path / "adapters").glob("*/adapter_model.safetensors")]) == 21  # and the shared one
