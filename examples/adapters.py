"""A language model of which each client has an adapter of its own: how many stars somebody gives a film.

First, once (120 MB): pip install 'floco[peft]'; python benchmarks/fetch.py films minilm
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

import floco

if Path("adapters").exists():
    sys.exit("adapters is there already, where this writes: remove it")
logging.set_verbosity_error()  # transformers says that the classifier is new, and so it is
logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
USERS, RATINGS, LENGTH = 20, 200, 20  # tokens of a text

# --8<-- [start:data]
films = np.load("data/films.npz")
rng, chosen = np.random.default_rng(int(sys.argv[1]) if len(sys.argv) > 1 else 0), []
names, counts = np.unique(films["client"], return_counts=True)
for user in rng.permutation(names[counts >= RATINGS])[:USERS]:
    chosen += rng.permutation(np.flatnonzero(films["client"] == user))[:RATINGS].tolist()

tokenizer = AutoTokenizer.from_pretrained("data/minilm")
texts = films["text"][chosen].tolist()  # "Dumbo (1941): Animation, Children, Drama, Musical"
tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np")
federation = floco.load({
    "x.input_ids": tokens["input_ids"],
    "x.attention_mask": tokens["attention_mask"],
    "y": films["rating"][chosen],  # half a star to five
    "client": films["client"][chosen],
}, task="regression").split(floco.Natural())  # fmt: skip
# --8<-- [end:data]


# --8<-- [start:model]
def backbone() -> nn.Module:
    return AutoModelForSequenceClassification.from_pretrained("data/minilm", num_labels=1)


def build() -> nn.Module:
    model = backbone()
    layers = model.config.num_hidden_layers
    where = {"target_modules": ["query", "value"], "layers_to_transform": [layers - 2, layers - 1]}
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, modules_to_save=["classifier"], **where))


# --8<-- [end:model]
# --8<-- [start:run]
algorithm = floco.Floco(endpoints=5, centers="own", step="middle")
settings = {"optimizer": "adamw", "lr": 0.005, "batch_size": 16, "fraction": 1.0, "epochs": 1, "rounds": 6}
run = floco.fit(build, federation, algorithm, seed=0, **settings)

users = run.clients[["client", "n_train", "rmse_global_local", "rmse_personal"]].set_index("client")
for client in federation.clients:  # who knows nothing of a film says what the user usually gives
    usual, test = federation.y[client.train].mean(), federation.y[client.test]
    users.loc[client.id, "rmse_usual"] = float((test - usual).square().mean().sqrt())
print(users.sort_values("rmse_personal").round(2).to_string())
print("errors in stars:", users.mean().round(3).to_dict())
for other in ("rmse_global_local", "rmse_usual"):
    better = int((users["rmse_personal"] < users[other]).sum())
    print(f"the own adapter is better than {other} for {better} users of {len(users)}")
whole = sum(p.numel() for p in backbone().parameters())
sent = run.history["bytes_up"].sum() / USERS / settings["rounds"]
print(f"a user sends {sent / 1e3:.0f} kB a round; the whole model has {4 * whole / 1e6:.0f} MB")
# --8<-- [end:run]

# --8<-- [start:export]
run.export("adapters", kind="peft")  # a folder for each user: its adapter and its classifier, and a card
user = federation.clients[0].id
alone = PeftModel.from_pretrained(backbone(), f"adapters/{user}").eval()  # without floco
inputs = {name: torch.tensor(ids[:5]) for name, ids in tokens.items() if name != "token_type_ids"}
with torch.no_grad():
    found = alone(**inputs).logits
    expected = run.personal(user)(**inputs).logits
print("loaded with peft, its logits are the same:", torch.equal(found, expected))
# --8<-- [end:export]
