"""A finished table as Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


LINES = ("why", "chosen")
"""Prose of several lines a row."""
LONG = 40
"""A LaTeX table of more rows may break across pages."""
LATEX = {
    "†": r"\textdagger{}",
    "⚠": r"\textsuperscript{!}",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "×": r"$\times$",
    "–": "--",
    "·": r"$\cdot$",
}
SPECIAL = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"})
WIDTHS = {
    "A": "p{3.4cm}",
    "B": "p{2.4cm}",
    "claim": "p{1.8cm}",
    "paper": "p{1.4cm}",
    "verdict": "p{1.5cm}",
    "why": "p{3.4cm}",
    "chosen": "p{3.4cm}",
    "deployed": "p{3.6cm}",
}
"""Columns of prose break their lines."""


@dataclass(frozen=True)
class Table:
    """A finished table: `shown` is text, `numbers` what it was made of, the rest paragraphs in Markdown."""

    name: str
    caption: str
    shown: pd.DataFrame
    numbers: pd.DataFrame
    right: tuple[bool, ...]
    above: tuple[str, ...] = ()
    below: tuple[str, ...] = ()


def without_html(markdown: str) -> str:
    """Return Markdown in which the names of somebody's data make no HTML."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", markdown)


def markdown(table: Table) -> str:
    """As GitHub and most readers of Markdown take it."""
    cells = table.shown.map(lambda text: text.replace("|", r"\|"))
    align = ["right" if right else "left" for right in table.right]
    text = cells.to_markdown(index=False, disable_numparse=True, colalign=align)
    return without_html("\n\n".join([*table.above, table.caption, text, *table.below]) + "\n")


def csv(table: Table) -> str:
    """Numbers, to ten digits."""
    # Fewer digits than there are: the last ones depend on the CPU's vector instructions.
    return str(table.numbers.to_csv(index=False, lineterminator="\n", float_format="%.10g"))


def latex(table: Table) -> str:
    """A ``table`` (a ``longtable`` if it is long) with the rules of booktabs, in ASCII."""
    cells = (
        table.shown.style.format(escape="latex")
        .format_index(escape="latex", axis="columns")
        .hide(axis="index")
    )
    long = len(table.shown) > LONG or any(c in table.shown for c in LINES)
    body = cells.to_latex(
        hrules=True,
        caption=table.caption.translate(SPECIAL),
        label=f"tab:{table.name}",
        column_format="".join(
            WIDTHS.get(head, "r" if right else "l")
            for head, right in zip(table.shown, table.right, strict=True)
        ),
        environment="longtable" if long else None,
        position_float=None if long else "centering",
    )
    for sign, command in LATEX.items():
        body = body.replace(sign, command)
    small = "\\scriptsize\\setlength{\\tabcolsep}{3pt}\n"
    if long:
        width = "\\setlength{\\LTcapwidth}{\\linewidth}"
        return f"% \\usepackage{{booktabs,longtable}}\n{{{small}{width}\n{body}}}\n"
    # A float begins in the normal size again; a table wider than the text is shrunk to it.
    start, end = "\\begin{tabular}", "\\end{tabular}"
    shrunk = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{"
    body = body.replace(start, small + shrunk + start).replace(end, end + "}")
    return f"% \\usepackage{{booktabs,graphicx}}\n{body}"
