"""Names of clients, classes and categories that are probably one, written in two ways."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from floco.data.federation import Federation


def find_doubles(federation: Federation) -> Iterator[str]:
    """Yield a sentence for all names of a kind that differ in capital letters, blanks or the form of a sign only."""
    levels: Mapping[str, Sequence[str]] = getattr(federation.table, "levels", {})
    everyone = [c.id for c in (*federation.clients, *federation.held_out)]
    labels = () if federation.task.ids else federation.names  # a vocabulary has The and the
    lists = {"clients": everyone, "labels": labels, **{f"categories of {k!r}": v for k, v in levels.items()}}
    for what, names in lists.items():
        known: dict[str, str] = {}
        for name in names:
            if (other := known.setdefault(_key(name), name)) != name:
                yield (
                    f"the {what} {other!r} and {name!r} are taken as two, and differ in capital letters, blanks or the "
                    "form of a sign only: if they are one, write them the same way"
                )
                break


def _key(name: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", name).split())
    return text.casefold() if len(text) > 1 else text  # a and A are two letters
