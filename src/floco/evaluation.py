"""From the scores of single clients to the rows that users read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from floco.metrics import Score, mean, worst
from floco.training import Scores

Row = dict[str, int | float | str | None]
"""One line of a CSV file; None is an empty cell."""


@dataclass(frozen=True)
class Evaluation:
    """The federation after a round: one history row, and one row for each client."""

    round: int
    history: Row
    clients: tuple[Row, ...]


@dataclass(frozen=True)
class Counts:
    """What happened since the last evaluation."""

    failed: int = 0
    bytes_down: int = 0
    bytes_up: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Return both together."""
        return Counts(self.failed + other.failed, self.bytes_down + other.bytes_down, self.bytes_up + other.bytes_up)


def client_row(round_: int, client: str, n_train: int, participated: int, scores: Scores) -> Row:
    """Return one client's row; columns of a model that the method does not have are empty."""
    both = {"personal": scores.personal, "global_local": scores.global_}
    n_test = next((s.n for s in both.values() if s is not None), 0)
    row: Row = {"round": round_, "client": client, "n_train": n_train, "n_test": n_test, "participated": participated}
    for metric in ("accuracy", "balanced_accuracy", "loss"):
        row |= {f"{metric}_{which}": None if s is None else getattr(s, metric) for which, s in both.items()}
    return row


def pooled(scores: Sequence[Score]) -> Score | None:
    """Return the score of disjoint parts taken together (balanced accuracy: the mean of theirs); None of no part."""
    if not scores:
        return None
    n = [s.n for s in scores]
    return Score(mean([s.accuracy for s in scores], n), mean([s.balanced_accuracy for s in scores], n), mean([s.loss for s in scores], n), sum(n))


def _summary(scores: Mapping[str, Score], which: str) -> Row:
    """Return mean, weighted mean and worst 5 % of the clients' accuracies, and their mean losses; empty cells for none."""
    values = {m: [getattr(s, m) for s in scores.values()] for m in ("accuracy", "balanced_accuracy", "loss")}
    n = [s.n for s in scores.values()]
    row: Row = {}
    for metric, list_ in values.items():
        row[f"{metric}_{which}"] = mean(list_) if list_ else None
        row[f"{metric}_{which}_weighted"] = mean(list_, n) if list_ else None
    row[f"accuracy_{which}_worst5"] = worst(values["accuracy"], 0.05) if n else None
    return row


def evaluation(round_: int, clients: Sequence[Row], scores: Mapping[str, Scores], global_: Score | None, counts: Counts) -> Evaluation:
    """Return the evaluation of a round.

    Args:
        round_: the round after which the models were evaluated.
        clients: the rows of single clients.
        scores: the scores of the same clients.
        global_: the global model on the global test part, or without one on the union of the clients' test parts; None:
            the method has no global model.
        counts: what happened since the evaluation before.
    """
    local = {c: s.global_ for c, s in scores.items() if s.global_ is not None}
    personal = {c: s.personal for c, s in scores.items() if s.personal is not None}
    history: Row = {"round": round_, "accuracy_global": None if global_ is None else global_.accuracy, "loss_global": None if global_ is None else global_.loss}
    history |= _summary(personal, "personal") | _summary(local, "global_local")
    history |= {"clients_evaluated": len(scores), "clients_trained": sum(1 for r in clients if r["participated"])}
    history |= {"clients_failed": counts.failed, "bytes_down": counts.bytes_down, "bytes_up": counts.bytes_up}
    return Evaluation(round_, history, tuple(clients))
