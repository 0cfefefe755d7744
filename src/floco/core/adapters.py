"""LoRA adapters: a frozen weight W_0 (F, D) plus B A, with trained matrices A (r, D) and B (F, r)."""

from __future__ import annotations

import re

from floco.core.errors import FlocoError
from floco.core.values import Layout

_MATRIX = re.compile(r"(?:^|\.)lora_(?:embedding_)?([AB])(?:\.|$)")


def lora_matrices(layout: Layout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the trained matrices A, and of the matrices B, in the network's order.

    They are known by their names, which peft and loralib give them.
    """
    found: dict[str, list[str]] = {"A": [], "B": []}
    for name in layout.parameters:
        if matrix := _MATRIX.search(name):
            found[matrix[1]].append(name)
    return tuple(found["A"]), tuple(found["B"])


def require_lora(name: str, layout: Layout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the same; raises if the method or setting `name` finds no pair of matrices."""
    a, b = lora_matrices(layout)
    if not a or not b:
        raise FlocoError(
            f"{name} needs LoRA adapters, trained parameters called lora_A and lora_B as the library peft has them: "
            "make the model with peft.get_peft_model"
        )
    return a, b
