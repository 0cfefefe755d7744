"""Which model a client takes home."""

from __future__ import annotations

from dataclasses import dataclass

from floco.core.errors import FlocoError
from floco.core.settings import Settings, setting
from floco.core.values import Facts, Layout, Phase, Step, plain_loss

CANDIDATES = ("global", "personal", "best", "finetuned", "local")
"""Models that a client can choose among, in the order in which equal ones are preferred."""


@dataclass(frozen=True)
class Delivery(Settings):
    """Which model each client takes home: the one that is evaluated as its personal model, whatever the algorithm.

    >>> Delivery(model="chosen", held_back=0.25).hold_back(22)
    6
    """

    model: str = setting(
        "personal",
        "the method's personal model; finetuned: that, after local training before each use; chosen: the global model, "
        "or another one that is better on held-back samples by more than a standard error",
        choices=("personal", "finetuned", "chosen"),
    )
    head_epochs: int | None = setting(
        None, "finetuned, chosen: epochs of the head alone, before those of everything (empty: training.epochs)", low=0
    )
    epochs: int | None = setting(None, "finetuned, chosen: epochs of everything (empty: training.epochs)", low=0)
    held_back: float = setting(
        0.2, "chosen: share of a client's training part that no model is trained on", above=0, below=1
    )
    local_epochs: int = setting(
        0, "chosen: epochs, from the initial values, of a local model that can be taken, too (0: there is none)", low=0
    )

    def __post_init__(self) -> None:
        """Check the fields that depend on each other."""
        Settings.__post_init__(self)
        if self.model == "finetuned" and self.head_epochs == 0 == self.epochs:
            raise FlocoError('model = "finetuned" needs head_epochs or epochs above 0, and both are 0')

    def check(self, layout: Layout) -> None:
        """Raise if a head is to be trained alone, and the network has none."""
        if self.model != "personal" and self.head_epochs != 0 and not layout.head:
            raise FlocoError(
                "deliver.head_epochs trains the nn.Linear that gives the logits, and the model has none that is "
                "trained: set deliver.head_epochs = 0"
            )

    def hold_back(self, n: int) -> int:
        """Return how many of a client's n training samples no model is trained on: 0 or 2 at least, and below n.

        With one sample nothing can be chosen, as the error of a difference is unknown.
        """
        held = round(self.held_back * n) if self.model == "chosen" else 0
        return held if 2 <= held < n else 0

    def trainings(self, facts: Facts) -> dict[str, tuple[Phase, ...]]:
        """Return the phases by which a client makes further models of its own: `finetuned` and `local`."""
        if self.model == "personal":
            return {}
        loss, layout = plain_loss(facts.task), facts.layout
        head = Phase("probing", (Step(loss, layout.head),), self.head_epochs)
        whole = Phase("personal", (Step(loss, layout.parameters),), self.epochs)
        made = {"finetuned": tuple(phase for phase in (head, whole) if phase.epochs != 0)}
        if self.model == "chosen" and self.local_epochs:
            made["local"] = (Phase("local", (Step(loss, layout.parameters),), self.local_epochs),)
        return {name: phases for name, phases in made.items() if phases}
