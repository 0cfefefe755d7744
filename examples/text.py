"""Texts as ids: a model that continues the texts of several authors, and one for each of them."""

import importlib
import pydoc

import numpy as np

import floco

# --8<-- [start:ids]
# A stand-in for your own texts: what Python says of six of its modules. Each module is a client.
texts = {name: pydoc.plain(pydoc.render_doc(importlib.import_module(name))) for name in
         ("csv", "json", "random", "statistics", "textwrap", "zipfile")}  # fmt: skip
letters = sorted({letter for text in texts.values() for letter in text if letter.isprintable()})
number = {letter: i for i, letter in enumerate(letters)}

LENGTH = 40  # letters of a sample; a further one is the last target
rows: dict[str, list[np.ndarray]] = {"x": [], "y": [], "client": [], "start": []}
seen: set[bytes] = set()  # a text that repeats itself would be tested on what it was trained on
for client, text in texts.items():
    ids = np.array([number[letter] for letter in text[:20_000] if letter in number])
    for start in range(0, len(ids) - LENGTH, LENGTH):
        if (piece := ids[start : start + LENGTH].tobytes()) in seen:
            continue
        seen.add(piece)
        rows["x"].append(ids[start : start + LENGTH])
        rows["y"].append(ids[start + 1 : start + LENGTH + 1])  # the next letter, at every place
        rows["client"].append(np.array(client))
        rows["start"].append(np.array(start))
arrays = {name: np.stack(values) for name, values in rows.items()} | {"names": np.array(letters)}
# --8<-- [end:ids]

# --8<-- [start:run]
federation = floco.load(arrays, task="tokens").split(floco.Natural(), order="start")
model = floco.model("gru", federation)  # an embedding, a GRU, a linear layer for every token
run = floco.fit(model, federation, floco.Floco(endpoints=2), rounds=4, lr=2.0, fraction=1.0, batch_size=32, seed=0)

print(run.clients[["client", "n_train", "accuracy_personal", "perplexity_personal"]].to_string())
print("".join(run.predict(arrays["x"][:1], "json")["labels"][0]))
# --8<-- [end:run]
