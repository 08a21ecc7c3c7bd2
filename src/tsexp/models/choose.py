"""How many of what is scored stay, and which: for pruning, and for a model that chooses what it sees.

Scores are one float tensor per layer; the lowest go first, and no layer is ever emptied.
"""

from __future__ import annotations

from torch import Tensor

from tsexp.models.network import Network


def refuse_replaced(model: Network) -> None:
    """Refuse a model in which another step has replaced layers: pruning comes first.

    Raises
    ------
    ValueError
        Naming the layers.
    """
    if model.replaced:
        raise ValueError(f"layers were replaced before pruning: {', '.join(model.replaced)}")


def local(scores: list[Tensor], ratio: float) -> list[int]:
    """How many stay in each layer: the same share of all."""
    return [max(1, len(s) - round(ratio * len(s))) for s in scores]


def everywhere(scores: list[Tensor], ratio: float) -> list[int]:
    """How many stay in each layer if the lowest of all layers together go."""
    # The best of every layer is out of reach; the others compete.
    pool = sorted((float(v), i) for i, s in enumerate(scores) for v in s.sort(descending=True).values[1:])
    stay = [len(s) for s in scores]
    for _, i in pool[: round(ratio * sum(stay))]:
        stay[i] -= 1
    return stay


def rounded(count: int, of: int, multiple: int) -> int:
    """Keep a few more, so that it is a multiple; at most all."""
    return min(of, -(-count // multiple) * multiple)


def best(scores: Tensor, count: int) -> tuple[int, ...]:
    """Indices of the highest, ascending."""
    # Stable, so that equal scores keep their order whatever the ratio.
    return tuple(sorted(scores.sort(descending=True, stable=True).indices[:count].tolist()))
