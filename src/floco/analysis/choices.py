"""Which models clients have chosen, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from floco.core.delivery import CANDIDATES

if TYPE_CHECKING:
    import pandas as pd

_WORDS = {
    "global": "the global model",
    "personal": "their personal model",
    "best": "the best mixture",
    "finetuned": "their fine-tuned model",
    "local": "a local model",
}


def describe(clients: pd.DataFrame) -> list[str]:
    """Return what the clients of each method have chosen, a sentence each; [] where there was no choice.

    Args:
        clients: their rows of clients.csv after the last round, of all seeds, with `method` in a comparison.
    """
    if "delivered" not in clients:
        return []
    rows = clients[clients["delivered"].isin(CANDIDATES)]
    groups = rows.groupby("method", sort=False) if "method" in rows else [("", rows)]
    said = []
    for name, own in groups:
        counts = own["delivered"].value_counts()
        shown = ", ".join(f"{counts[which]} {_WORDS[which]}" for which in CANDIDATES if which in counts)
        prefix = f"{name!s}: " if name else ""
        said.append(f"{prefix}of {len(own)} clients, {shown} (deliver.model)")
    return said
