"""All figures of the study as PDF and PNG: functions of the frozen results alone, in one style."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tsexp.report.figures.accuracy_energy import accuracy_energy
from tsexp.report.figures.channels import channels
from tsexp.report.figures.confusion import confusion
from tsexp.report.figures.drawing import CannotDraw, Drawing
from tsexp.report.figures.pruning import WAYS, pruning_ways, ratio
from tsexp.report.figures.quant_runtime import quant_runtime
from tsexp.report.figures.ranks import critical_difference
from tsexp.report.figures.roofline import roofline
from tsexp.report.figures.windows import windows
from tsexp.report.frozen import Frozen
from tsexp.report.points import Study, study_of
from tsexp.report.style import STYLE
from tsexp.system.files import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTES = "notes.md"
FIGURES: dict[str, Callable[[Study], Drawing]] = {
    "accuracy_energy_measured": partial(accuracy_energy, side="measured"),
    "accuracy_energy_estimated": partial(accuracy_energy, side="estimated"),
    "ratio": ratio,
    WAYS: pruning_ways,
    "quant_runtime": quant_runtime,
    "channels": channels,
    "roofline": roofline,
    "windows_measured": partial(windows, side="measured"),
    "windows_estimated": partial(windows, side="estimated"),
    "confusion": confusion,
    "critical_difference": critical_difference,
}
"""Name of the files → what draws it."""
# Neither the date nor the version of the drawing library: they would change the bytes and not the picture.
METADATA = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}


def draw(frozen: Frozen, folder: Path) -> list[Path]:
    """Draw every figure that the data allows; equal results give equal bytes.

    Parameters
    ----------
    frozen
        The results.
    folder
        Gets NAME.pdf and NAME.png, and ``notes.md``: what each caption has to say, and why a figure is not
        there. Older figures of the study that can no longer be drawn are removed.

    Returns
    -------
    list of Path
        The files, notes last.
    """
    import matplotlib.style

    folder.mkdir(parents=True, exist_ok=True)
    study = study_of(frozen)
    files, lines = [], ["# Notes to the figures", "", *(f"- {note}" for note in study.notes), ""]
    for name, make in FIGURES.items():
        try:
            if study.points.empty:
                raise CannotDraw("there is no record with finite scores")
            with matplotlib.style.context(STYLE, after_reset=True):
                drawing = make(study)
                _settle(drawing.figure)
                files += [_save(drawing.figure, folder / f"{name}.{kind}") for kind in METADATA]
            lines += [f"## {name}", "", *(f"- {note}" for note in drawing.notes), ""]
        except CannotDraw as reason:
            lines += [f"## {name}", "", f"Not drawn: {reason}.", ""]
            for kind in METADATA:
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
    with whole(folder / NOTES) as partial:
        partial.write_text("\n".join(lines))
    return [*files, folder / NOTES]


def _settle(figure: Figure) -> None:
    """Lay out once and for all: the solver's last digits differ from one process to the next."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        bounds = axes.get_position(original=True).bounds
        axes.set_position([round(v, 5) for v in bounds], which="original")  # type: ignore[arg-type]


def _save(figure: Figure, path: Path) -> Path:
    kind = path.suffix.removeprefix(".")
    with whole(path) as partial:
        figure.savefig(partial, format=kind, metadata=METADATA[kind])
        if kind == "png":
            _palette(partial)
    return path


def _palette(path: Path) -> None:
    """256 colours, more than these pictures need: a third of the bytes, and a repository keeps them all."""
    from PIL import Image

    with Image.open(path) as image:
        dpi, few = image.info["dpi"], image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(path, format="png", dpi=dpi, optimize=True)
