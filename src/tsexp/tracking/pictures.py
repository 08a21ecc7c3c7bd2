"""What a run shows, drawn from plain arrays.

For every job, to be looked at in a browser: laying out and drawing in print quality would take as long as all
else that is logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DPI = 80
PARTS = {"train_": "train", "val_": "validation"}
"""How the name of a curve begins → what it was computed on; what follows is the quantity."""
COLOURS = {"train": "C0", "validation": "C1"}
LABELS = {"lr": "learning rate"}

History = Sequence[Mapping[str, float]]


def quantities(fits: Mapping[str, History]) -> dict[str, list[str]]:
    """Return quantity → its curves, in order: ``{"loss": ["train_loss", "val_loss"], …}``."""
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(k for history in fits.values() for line in history for k in line):
        if key != "epoch":
            prefix = next((p for p in PARTS if key.startswith(p)), "")
            found.setdefault(key.removeprefix(prefix), []).append(key)
    return found


def curves(path: Path, fits: Mapping[str, History]) -> bool:
    """Draw training curves: a column for each fit, a row with an axis of its own for each quantity.

    Parameters
    ----------
    path
        Of the PNG file.
    fits
        Name → one dict per epoch, as `training.Fitted.history` has it.

    Returns
    -------
    bool
        False, and nothing is drawn, if no fit has a history (estimators have none).
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    fits = {name: history for name, history in fits.items() if history}
    rows = quantities(fits)
    if not rows:
        return False
    width, height = 1.1 + 4.2 * len(fits), 0.7 + 2.0 * len(rows)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(len(rows), len(fits), squeeze=False, sharex="col", sharey="row")
    for (quantity, keys), row in zip(rows.items(), axes, strict=True):
        parts = [part for part in map(_part, keys) if part]
        for axis, history in zip(row, fits.values(), strict=True):
            for key in keys:
                points = [(line["epoch"], line[key]) for line in history if key in line]
                part, marker = _part(key), "." if len(points) < 3 else ""
                axis.plot(*np.reshape(points, (-1, 2)).T, label=part, color=COLOURS.get(part), marker=marker)
            axis.grid(alpha=0.3)
        if len(parts) > 1:
            row[-1].legend()
        of = f", {parts[0]}" if len(parts) == 1 else ""
        row[0].set_ylabel(f"{LABELS.get(quantity, quantity)}{of}")
    for axis, name in zip(axes[0], fits, strict=True):
        axis.set_title(name)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels(axes[:, 0])
    figure.subplots_adjust(
        left=1 / width,
        right=1 - 0.1 / width,
        bottom=0.5 / height,
        top=1 - 0.3 / height,
        hspace=0.15,
        wspace=0.08,
    )
    figure.savefig(path, dpi=DPI)
    return True


def _part(key: str) -> str:
    return next((label for prefix, label in PARTS.items() if key.startswith(prefix)), "")


def confusion(
    path: Path,
    labels: np.ndarray[Any, Any],
    answers: Mapping[str, np.ndarray[Any, Any]],
    classes: Sequence[str],
) -> None:
    """Draw confusion matrices side by side.

    Parameters
    ----------
    path
        Of the PNG file.
    labels
        Indices into `classes`: (series,).
    answers
        Title → what was answered instead, like `labels`.
    classes
        Names.
    """
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    side = max(4.0, 0.45 * len(classes) + 1.5)
    figure = Figure(figsize=(len(answers) * side, side))
    for axis, (name, answered) in zip(
        np.atleast_1d(figure.subplots(1, len(answers))), answers.items(), strict=True
    ):
        ConfusionMatrixDisplay.from_predictions(
            labels,
            answered,
            labels=range(len(classes)),
            display_labels=[name.replace("$", r"\$") for name in classes],  # two would be a formula
            ax=axis,
            colorbar=False,
            cmap="Blues",
        )
        axis.set_title(name)
    figure.savefig(path, dpi=DPI)
