"""Which of a subject's numbers is the score of which label, whether it tells or not."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tsexp.config import ConfigError

if TYPE_CHECKING:
    from tsexp.data import FloatArray, IntArray


class Side(Protocol):
    """Whose scores they are: its name, and the labels that its columns stand for, if it tells."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def classes(self) -> list[Any] | None: ...  # noqa: D102


def by_class(
    sides: Sequence[Side], scores: Sequence[FloatArray], labels: list[Any] | None
) -> tuple[IntArray, list[FloatArray]]:
    """Return indices of labels, and scores with a column for each class in one order; as they are without."""
    if labels is None:
        return np.zeros(0, np.int64), list(scores)
    known = next((s.classes for s in sides if s.classes is not None), None)
    given = list(known) if known else labels
    # Where two labels are one number ("01" and "1", ids beyond 2**53), they are words.
    key = _key if len({_key(c) for c in given}) == len({str(c) for c in given}) else str
    if known:
        classes = [key(c) for c in known]
        keys = _as_known([key(label) for label in labels], classes)
    else:
        keys = [key(label) for label in labels]
        classes = guessed(keys, scores[0].shape[1], sides[0].name, words=set(filter(_is_word, labels)))
    strange = sorted({str(label) for label, k in zip(labels, keys, strict=True) if k not in classes})
    if strange:
        raise ConfigError(
            f"y has labels that the subject does not know: {', '.join(strange[:5])}; it knows "
            f"{', '.join(map(str, (known or classes)[:10]))}"
        )
    ordered = []
    for side, one in zip(sides, scores, strict=True):
        own = _as_known([key(c) for c in side.classes], classes) if side.classes is not None else classes
        if set(own) != set(classes) or one.shape[1] != len(classes):
            raise ConfigError(
                f"{side.name} answers {one.shape[1]} numbers per series, which are no scores of the "
                f"{len(classes)} classes; leave y out to measure energy alone"
            )
        ordered.append(np.ascontiguousarray(one[:, [own.index(c) for c in classes]]))
    return np.array([classes.index(k) for k in keys], np.int64), ordered


def _is_word(label: Any) -> bool:
    return isinstance(label, str)


def _as_known(keys: Sequence[float | str], classes: Sequence[float | str]) -> list[float | str]:
    """Spell labels as they are known where they differ by case alone: aeon makes those of .ts files small."""
    folded = {c.casefold(): c for c in classes if isinstance(c, str)}
    if len(folded) < sum(map(_is_word, classes)):
        return list(keys)
    return [k if k in classes or not isinstance(k, str) else folded.get(k.casefold(), k) for k in keys]


def _key(label: Any) -> float | str:
    """Labels that mean the same, however they are written: 1, 1.0, '1'."""
    try:
        number = float(label)
    except (TypeError, ValueError):
        return str(label)
    word = isinstance(label, str) and ("_" in label or not math.isfinite(number))  # 1_0, nan, inf
    return str(label) if word else number


def _in_order(key: float | str) -> tuple[bool, float | str]:
    return isinstance(key, str), key


def guessed(
    keys: Sequence[float | str], columns: int, name: str, words: Collection[str] = ()
) -> list[float | str]:
    """Return the classes that columns stand for where nobody says: their numbers, else the sorted labels.

    Of labels that are `words`, only where their order is certain: "10" comes before "2" and "Walk" before
    "run", unless they were taken for numbers, or made small, as aeon does.
    """
    as_words = sorted(words)
    if [_key(word) for word in as_words] != sorted(map(_key, words), key=_in_order) or as_words != sorted(
        words, key=str.casefold
    ):
        raise ConfigError(
            f"nobody says which of the {columns} numbers per series of {name} is of which class, and y has "
            f"words that are sorted otherwise as numbers or without capitals ({', '.join(as_words[:4])}, …); "
            f"give y as numbers of columns, 0 to {columns - 1}, or leave it out to measure energy alone"
        )
    numbers: list[float | str] = [float(i) for i in range(columns)]
    if 0.0 in keys and set(keys) <= set(numbers):
        return numbers
    there = sorted(set(keys), key=_in_order)
    if len(there) != columns:  # labels 1 and 2 of three columns may be the first two, or the last
        raise ConfigError(
            f"y has {len(there)} classes, but {name} answers {columns} numbers per series; give series of "
            f"all classes, or y as numbers of columns, 0 to {columns - 1}, with 0 among them, or leave it "
            "out to measure energy alone"
        )
    return there
