"""A server state as one dictionary of tensors, as a file holds it."""

from __future__ import annotations

from urllib.parse import quote, unquote

from floco.core.values import ServerState, Tensors


def flat_state(state: ServerState) -> Tensors:
    """Return all tensors of a state under `shared/`, `kept/` and `client/ID/`: the inverse of `restore_state`."""
    groups = {"shared": state.shared, "kept": state.kept}
    groups |= {f"client/{quote(c, safe='')}": tensors for c, tensors in state.by_client.items()}
    return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def restore_state(flat: Tensors, number: int) -> ServerState:
    """Return the state after round `number` from its tensors: the inverse of `flat_state`."""
    shared: Tensors = {}
    kept: Tensors = {}
    by_client: dict[str, Tensors] = {}
    for name, tensor in flat.items():
        kind, _, rest = name.partition("/")
        if kind == "client":
            client, _, leaf = rest.partition("/")
            by_client.setdefault(unquote(client), {})[leaf] = tensor
        else:
            (shared if kind == "shared" else kept)[rest] = tensor
    return ServerState(shared, kept, by_client, number)
