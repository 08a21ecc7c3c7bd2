"""Structured pruning: whole attention heads, FFN units and encoder blocks go, or channels of convolutions.

What is left is an ordinary smaller model. Here are the step, and what it does to transformers; for
convolutional networks see `channels`.

Scores: mean absolute weight (``l1``), mean square (``l2``), a seeded draw (``random``), or first-order Taylor
(``taylor``: Molchanov et al. 2019, arXiv 1906.10771; for heads Michel et al. 2019, arXiv 1905.10650) on
series of the train split. Heads are ranked among heads and FFN units among FFN units, because their scores
are of different kinds.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tsexp.compress import channels, features
from tsexp.compress.gradients import gradients
from tsexp.config import Config, ConfigError, PruneConfig, Unsupported, like, look_up, own_digests
from tsexp.data import Dataset
from tsexp.models import Network, choose, convolution, views
from tsexp.models.transformer import Block, Classifier
from tsexp.models.transformer.encoder import EncoderBlock
from tsexp.models.views.ridge import Config as Ridge
from tsexp.system.files import write_json

if TYPE_CHECKING:
    from tsexp.compress.fold import Context

VERSION = 3
FAMILIES = ("transformer", "views", "ridge", "convolution")
TRAINS = False


@dataclass(frozen=True)
class Kept:
    """What stays in one encoder block of the dense model: indices of heads and of FFN units, ascending.

    None of either if the block goes.
    """

    heads: tuple[int, ...]
    ffn: tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """Importance in one encoder block: float (heads,) and float (ffn,); the lowest go first."""

    heads: Tensor
    ffn: Tensor


def asked(cfg: Config, changed: bool, control: bool) -> dict[str, Any]:
    """Method, scope and ratio; with what a method of somebody's own says, and how features are ranked."""
    tuning = ("finetune_epochs", "finetune_lr", "distill", "temperature")
    found = {k: v for k, v in cfg.prune.asked().items() if k not in tuning}
    if not found:
        return {}
    if cfg.prune.scope in features.SCOPES and cfg.prune.method in features.RANKINGS:
        found["ranking"] = features.RANKINGS[cfg.prune.method]
    return found | own_digests(cfg.prune.method)


def _refuse_uncallable(method: str, function: Any) -> None:
    if not callable(function):
        raise ConfigError(f"prune.method={method} is not a function; docs/extending.md has an example")
    try:
        inspect.signature(function, follow_wrapped=False).bind("model", "config", "dataset", "seed")
    except ValueError:  # it does not tell what it takes
        return
    except TypeError as error:
        raise ConfigError(
            f"prune.method={method} cannot be called with (model, config, dataset, seed): {error}; "
            "docs/extending.md has an example"
        ) from None


def ready(cfg: Config) -> None:
    """Refuse a method of one's own that is no such function, and what cannot be done to a kind of model."""
    method = cfg.prune.method
    if ":" in method:
        _refuse_uncallable(method, look_up(method, {}))
    scope = cfg.prune.scope
    on_features = isinstance(cfg.model, views.FeatureConfig)
    kind = like(cfg.model.family)
    if cfg.prune.ratio and kind in FAMILIES and not (cfg.model.gradient or isinstance(cfg.model, Ridge)):
        raise Unsupported(
            f"prune with model={cfg.model.name} is not supported: of models that fit themselves it takes "
            "ridge, for what is left has to be fitted anew"
        )
    if cfg.prune.ratio and scope in features.SCOPES and not on_features:
        raise Unsupported(
            f"prune.scope={scope} with model={cfg.model.name} is not supported: it takes a model on features "
            "(model=t4, t4h, ridge)"
        )
    if cfg.prune.ratio and scope not in features.SCOPES and on_features and not cfg.model.gradient:
        raise Unsupported(
            f"prune.scope={scope} with model={cfg.model.name} is not supported: it has no heads, units or "
            f"blocks; allowed: {', '.join(features.SCOPES)}"
        )
    if cfg.prune.ratio and scope in features.SCOPES and method not in features.SCORES:
        raise Unsupported(
            f"prune.method={method} with prune.scope={scope} is not supported; "
            f"allowed: {', '.join(features.SCORES)}"
        )
    if cfg.prune.ratio and kind == "convolution":
        if not isinstance(cfg.model, convolution.Config):
            raise Unsupported(
                f"prune with model={cfg.model.name} is not supported: of convolutional networks it takes "
                "those that come with this package, for it must know which channels go together"
            )
        if cfg.prune.scope not in channels.SCOPES:
            raise Unsupported(
                f"prune.scope={cfg.prune.scope} with model={cfg.model.name} is not supported: convolutional "
                f"networks lose channels, no whole blocks; it has {' and '.join(channels.SCOPES)}"
            )


def apply(model: Network, context: Context, folder: Path) -> tuple[Network, list[dict[str, float]]]:
    """Return the physically smaller model; ``kept.json`` says what stayed."""
    of_family: dict[str, Callable[..., tuple[Network, list[dict[str, Any]]]]] = {
        "transformer": prune,
        "views": prune,
        "ridge": prune,
        "convolution": channels.prune,
    }
    cfg = context.cfg
    slim, kept = of_family[like(model.family)](model, cfg.prune, context.dataset, cfg.seed)
    write_json(folder / "kept.json", kept)
    return slim, []


def prune(
    model: Any, config: PruneConfig, dataset: Dataset, seed: int
) -> tuple[Network, list[dict[str, Any]]]:
    """Return the physically smaller transformer, or ridge regression, and a description of what stays."""
    seen: list[dict[str, Any]] = []
    if config.scope in features.SCOPES:
        model, seen = features.prune(model, config, dataset, seed)
        if config.scope == "features" or not isinstance(model, Classifier | views.ViewClassifier):
            return model, seen
    stay = select(score(model, config, dataset, seed), config, model.arch.head_dim)
    return shrink(model, stay), seen + [asdict(k) for k in stay]


def shrink(model: Classifier, kept: list[Kept]) -> Classifier:
    """Return the smaller model.

    Its outputs equal those of `model` with all other heads and units masked to zero and all other blocks
    skipped.

    Raises
    ------
    ValueError
        If another step has replaced layers already: pruning comes first.
    """
    choose.refuse_replaced(model)
    stay = {i: k for i, k in enumerate(kept) if k.ffn}
    arch = replace(model.arch, blocks=tuple(Block(len(k.heads), len(k.ffn)) for k in stay.values()))
    slim = type(model)(arch)
    state = {
        name: value for name, value in model.state_dict().items() if not name.startswith("encoder.blocks.")
    }
    for new, (old, k) in enumerate(stay.items()):
        block = f"encoder.blocks.{new}"
        state |= {f"{block}.{name}": value for name, value in model.encoder.blocks[old].state_dict().items()}
        heads = torch.tensor(k.heads)
        rows = (heads[:, None] * arch.head_dim + torch.arange(arch.head_dim)).flatten()
        units = torch.tensor(k.ffn)
        for name in ("attention.q", "attention.k", "attention.v"):
            _take(state, f"{block}.{name}", rows=rows)
        _take(state, f"{block}.attention.o", columns=rows)
        _take(state, f"{block}.fc1", rows=units)
        _take(state, f"{block}.fc2", columns=units)
    slim.load_state_dict(state)
    return slim.eval()


def _take(
    state: dict[str, Tensor], name: str, rows: Tensor | None = None, columns: Tensor | None = None
) -> None:
    """Keep these outputs (with their biases) or these inputs of a linear layer."""
    if rows is not None:
        state[f"{name}.weight"] = state[f"{name}.weight"][rows]
        state[f"{name}.bias"] = state[f"{name}.bias"][rows]
    if columns is not None:
        state[f"{name}.weight"] = state[f"{name}.weight"][:, columns]


def select(scores: list[Scores], config: PruneConfig, head_dim: int) -> list[Kept]:
    """Choose what stays.

    ``local`` removes the same share of every block, ``global`` the lowest of all blocks together; neither
    ever empties a block, and a higher ratio keeps a subset of what a lower one keeps. ``depth`` removes as
    many whole blocks as the ratio has room for, then the same share of the others. With ``prune.round_to`` >
    1, blocks keep a few more, so that their widths (channels) are multiples of it where they were before.
    """
    stay, ratio = tuple(range(len(scores))), config.ratio
    if config.scope == "depth":
        stay, ratio = _deep(scores, ratio)
    count = choose.everywhere if config.scope == "global" else choose.local
    heads = count([scores[i].heads for i in stay], ratio)
    ffn = count([scores[i].ffn for i in stay], ratio)
    kept = [Kept((), ())] * len(scores)
    for i, h, f in zip(stay, heads, ffn, strict=True):
        s = scores[i]
        kept[i] = Kept(
            heads=choose.best(
                s.heads,
                choose.rounded(h, len(s.heads), config.round_to // math.gcd(config.round_to, head_dim)),
            ),
            ffn=choose.best(s.ffn, choose.rounded(f, len(s.ffn), config.round_to)),
        )
    return kept


def _deep(scores: list[Scores], ratio: float) -> tuple[tuple[int, ...], float]:
    """Which blocks stay, and the ratio that is left to be reached in them.

    A block counts as its heads and units do, either kind by its share.
    """
    gone = min(len(scores) - 1, math.floor(ratio * len(scores) + 1e-9))
    stay = len(scores) - gone
    importance = _share([s.heads for s in scores]) + _share([s.ffn for s in scores])
    return choose.best(importance, stay), max(0.0, (ratio * len(scores) - gone) / stay)


def _share(scores: list[Tensor]) -> Tensor:
    """Of each block, in the sum over all."""
    if not all((s >= 0).all() and s.isfinite().all() for s in scores):
        raise ConfigError(
            "prune.scope=depth adds scores up, so all must be ≥ 0 and finite, and this prune.method gives "
            "others; use local or global"
        )
    sums = torch.stack([s.sum() for s in scores])
    return sums / sums.sum().clamp_min(1e-30)


def score(model: Classifier, config: PruneConfig, dataset: Dataset, seed: int) -> list[Scores]:
    """Importance of every head and FFN unit, one `Scores` per block."""
    found: list[Scores] = look_up(config.method, SCORES)(model, config, dataset, seed)
    wrong = _wrong(found, model)
    if wrong:
        raise ConfigError(
            f"prune.method={config.method} returned {wrong}; it must be a list of Scores, one per block, of "
            f"finite float tensors (heads,) and (ffn,): here {_sizes(model)}"
        )
    return found


def _wrong(found: Any, model: Classifier) -> str:
    """Say what somebody's own method returned instead of scores; empty if it is right."""
    if not isinstance(found, list) or not all(isinstance(s, Scores) for s in found):
        inside = sorted({type(s).__name__ for s in found}) if isinstance(found, list | tuple) else []
        return type(found).__name__ + (f" of {', '.join(inside)}" if inside else "")
    parts = [part for s in found for part in (s.heads, s.ffn)]
    if not all(isinstance(part, Tensor) for part in parts):
        return f"Scores of {', '.join(sorted({type(part).__name__ for part in parts}))}"
    sizes = [(tuple(s.heads.shape), tuple(s.ffn.shape)) for s in found]
    if sizes != [((b.heads,), (b.ffn,)) for b in model.arch.blocks]:
        return f"Scores of shapes {', '.join(f'{heads} and {ffn}' for heads, ffn in sizes) or 'none'}"
    return "" if all(bool(part.isfinite().all()) for part in parts) else "Scores that are not finite"


def _sizes(model: Classifier) -> str:
    return ", ".join(f"({b.heads},) and ({b.ffn},)" for b in model.arch.blocks)


def _groups(block: EncoderBlock, value: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Gather a `value` of all weights that go with each head (heads, members) and unit (ffn, members)."""
    a = block.attention
    heads = [value(p.weight).view(a.heads, -1) for p in (a.q, a.k, a.v)]
    heads.append(value(a.o.weight).T.reshape(a.heads, -1))
    return torch.cat(heads, 1), torch.cat([value(block.fc1.weight), value(block.fc2.weight).T], 1)


def _magnitude(power: int) -> Callable[..., list[Scores]]:
    def scores(model: Classifier, *_: Any) -> list[Scores]:
        found = []
        for block in model.encoder.blocks:
            assert isinstance(block, EncoderBlock)
            heads, ffn = _groups(block, lambda w: w.detach().abs() ** power)
            found.append(Scores(heads.mean(1), ffn.mean(1)))
        return found

    return scores


def _random(model: Classifier, config: PruneConfig, dataset: Dataset, seed: int) -> list[Scores]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Scores(torch.rand(b.heads, generator=generator), torch.rand(b.ffn, generator=generator))
        for b in model.arch.blocks
    ]


def _taylor(model: Classifier, config: PruneConfig, dataset: Dataset, seed: int) -> list[Scores]:
    """Squared change of the loss, to first order, when the unit's output is removed; mean over batches."""
    blocks = [b for b in model.encoder.blocks if isinstance(b, EncoderBlock)]
    outgoing = [w for b in blocks for w in (b.attention.o.weight, b.fc2.weight)]
    found = gradients(model, outgoing, config, dataset, seed)
    total = [Scores(torch.zeros(b.heads), torch.zeros(b.ffn)) for b in model.arch.blocks]
    for slopes in found:
        for i, block in enumerate(blocks):
            # Σ weight · gradient over the outgoing weights is the derivative by a gate on the unit.
            a = block.attention
            gate_o = (a.o.weight * slopes[2 * i]).detach().sum(0).view(a.heads, -1).sum(1)
            gate_f = (block.fc2.weight * slopes[2 * i + 1]).detach().sum(0)
            total[i] = Scores(
                total[i].heads + gate_o.square() / len(found), total[i].ffn + gate_f.square() / len(found)
            )
    return total


SCORES: dict[str, Callable[[Classifier, PruneConfig, Dataset, int], list[Scores]]] = {
    "l1": _magnitude(1),
    "l2": _magnitude(2),
    "random": _random,
    "taylor": _taylor,
}
