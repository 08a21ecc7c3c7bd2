"""Reading one ``.ts`` file: aeon does it, and where it cannot, the line to blame is found here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsexp.config import ConfigError

FLAGS = ("timestamps", "missing", "univariate", "equallength", "targetlabel")
"""Header lines that need a value."""
LINE_BREAKS = (b"\n", b"\r")
SHOWN = 40
"""Characters of a wrong line that a message quotes."""


def read(file: Path, labelled: bool = True) -> tuple[Sequence[Any], list[str]]:
    """Return the series of a file, (channels, time) each, and their labels.

    Parameters
    ----------
    file
        To read.
    labelled
        Each series must have a label; else one that is missing, or a question mark, is an empty string.

    Raises
    ------
    ConfigError
        With the file, the line and what is wrong there, if it is empty, cut off or something else.
    """
    from aeon.datasets import load_from_ts_file

    try:
        raw, labels = load_from_ts_file(str(file))
    except Exception as error:  # aeon's parser raises many kinds
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        at = _blame(file, labelled) or f": aeon cannot read it ({why})"
        raise ConfigError(f"{file}{at}") from None
    if _head(file)[1].get("timestamps") == "true":  # aeon loses signs and exponents there
        raise ConfigError(f"{file}{_blame(file, labelled)}")
    if not len(raw):
        raise ConfigError(f"{file}{_blame(file, labelled) or ' holds no series; is it cut off?'}")
    if not labelled and not len(labels):
        return raw, [""] * len(raw)
    if labelled and any(not np.shape(series)[0] for series in raw):  # aeon took the values for the label
        raise ConfigError(f"{file}{_blame(file, labelled) or ': a series has no values'}")
    if len(labels) != len(raw):
        raise ConfigError(f"{file}: its header says that it has no class labels; a classifier needs them")
    labels = [str(label).strip() for label in labels]
    # aeon makes NaN of each question mark, and of what is in "banana". It takes a label that lost its end for
    # another class, and A and a for the same.
    missing = [label in ("", "NaN") for label in labels]
    labels = [label.replace("NaN", "nan") for label in labels]
    lost = _lost(file) if any(label.upper() != label for label in labels) else ""
    if lost:
        raise ConfigError(f"{file}{lost}")
    if (labelled and any(missing)) or _cut_off(file, labels):
        wrong = _blame(file, labelled) or ": a series has no label; add it, or remove the series"
        raise ConfigError(f"{file}{wrong}")
    return raw, ["" if gone else label for label, gone in zip(labels, missing, strict=True)]


def as_written(file: Path, labels: Sequence[str]) -> list[str]:
    """Return labels of `read` as the file spells them: aeon makes their letters small."""
    if all(label.upper() == label for label in labels):
        return list(labels)
    lines = _lines(file)
    start = _header(lines)[0] or 0
    spelled = {label.lower(): label for line in lines[start + 1 :] if (label := line.split(":")[-1].strip())}
    return [spelled.get(label, label) for label in labels]


def _cut_off(file: Path, labels: Sequence[str]) -> bool:
    """The file ends without a line break, in the beginning of a label."""
    last = labels[-1].lower()
    if not last or file.read_bytes().endswith(LINE_BREAKS) or labels.count(labels[-1]) > 1:
        return False
    known = _head(file)[2]
    return last not in known and any(label.startswith(last) for label in known)


def _lost(file: Path) -> str:
    """Name labels that aeon would not tell from others: by upper and lower case, by a question mark."""
    lines = _lines(file)
    start, tags, _ = _header(lines)
    seen: dict[str, str] = {}
    for i, line in enumerate(lines):
        label = line.split(":")[-1].strip()
        if start is None or i <= start or _no_label(label) or tags.get("targetlabel") == "true":
            continue
        if "?" in label:
            return (
                f", line {i + 1}: label {label}: a question mark is a missing value; call it something else"
            )
        if seen.setdefault(label.lower(), label) != label:
            both = f"{seen[label.lower()]} and {label}"
            return f", line {i + 1}: labels {both} differ by case alone; call them something else"
    return ""


def _head(file: Path) -> tuple[int | None, dict[str, str], list[str]]:
    """Return what `_header` does, of a file whose series are not read."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as text:
        return _header(line.strip() for line in text)


def _lines(file: Path) -> list[str]:
    """Return the lines as aeon splits them; bytes that are no text stay recognisable."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as text:
        return [line.strip() for line in text]


def _header(lines: Iterable[str]) -> tuple[int | None, dict[str, str], list[str]]:
    """Return the index of ``@data``, what the lines before it say, and the labels they name."""
    tags: dict[str, str] = {}
    labels: list[str] = []
    for i, line in enumerate(lines):
        key, *values = line.lower().split() or [""]
        if key == "@data":
            return i, tags, labels
        if key.startswith("@"):
            tags[key[1:]] = values[0] if values else ""
            labels = values[1:] if key == "@classlabel" else labels
    return None, tags, labels


def _blame(file: Path, labelled: bool) -> str:
    """Return ``, line 7: …`` for the first line that no ``.ts`` file may have; empty if each looks right."""
    lines = _lines(file)
    if not any(lines):
        return " is empty"
    start, tags, labels = _header(lines)
    end = len(lines) if start is None else start + 1
    for i, line in enumerate(lines, 1):
        wrong = _strange(line) or (_wrong_tag(line) if i <= end else "")
        if wrong:
            return f", line {i}: {wrong}{_quoted(line)}"
    if start is None:
        return f", line {len(lines)}: it ends before @data; is it cut off?"
    if not any(lines[end:]):
        return f", line {len(lines)}: it holds no series after @data; is it cut off?"
    if split := [label for label in labels if ":" in label]:
        return f": label {split[0]}: a colon stands between channels; call it something else"
    for i, line in enumerate(lines[end:], end + 1):
        wrong = _wrong_series(line, lines[end], tags, labels, labelled)
        if wrong:
            cut = i == len(lines) and not file.read_bytes().endswith(LINE_BREAKS)
            return f", line {i}: {wrong}{_quoted(line)}{'; is it cut off?' if cut else ''}"
    return ""


def _strange(line: str) -> str:
    control = any((ord(c) < 32 and c != "\t") or c == "\x7f" or "\udc80" <= c <= "\udcff" for c in line)
    return "this is no text" if control else ""


def _wrong_tag(line: str) -> str:
    """Say what is wrong with a line of the header."""
    if not line or line.startswith("#"):
        return ""
    if not line.startswith("@"):
        return "a header line begins with @, a comment with #, and series follow @data"
    key, *values = line.lower().split()
    if key[1:] in FLAGS and len(values) != 1:
        return f"{key} is true or false"
    if key == "@timestamps" and values == ["true"]:
        return "time stamps are not read; give the values alone, and say @timestamps false"
    if key == "@classlabel" and values != ["false"] and (values[:1] != ["true"] or len(values) < 2):
        return "@classLabel is true and the labels, or false"
    if (key == "@problemname" and not values) or (key == "@data" and values):
        return f"{key} has {'no' if values else 'a'} value"
    return ""


def _wrong_series(
    line: str, first: str, tags: dict[str, str], labels: Sequence[str], needs_label: bool
) -> str:
    """Say what is wrong with the line of a series, given the first of the file."""
    if not line:
        return "an empty line; remove it"
    labelled = "true" in (tags.get("classlabel", "true"), tags.get("targetlabel"))
    channels = line.split(":")[: -1 if labelled else None]
    known = first.split(":")[: -1 if labelled else None]
    if len(channels) != len(known):
        what = "and a label, separated by colons" if labelled else "separated by colons"
        return f"channels {what}: here are {len(channels)}, in the first series {len(known)}"
    if labelled and not channels:
        return "no label behind a colon; add it, or say @classLabel false"
    if len(channels) > 1 and tags.get("univariate", "true") == "true":
        return f"{len(channels)} channels, and the header says @univariate true"
    lengths = {len(channel.split(",")) for channel in channels}
    if len(lengths) > 1:
        return f"channels of {' and '.join(map(str, sorted(lengths)))} values; a series has one length"
    equal = tags.get("equallength", "true") == "true"
    if equal and channels and lengths != {len(known[0].split(","))}:
        first_has = len(known[0].split(","))
        return (
            f"{lengths.pop()} values, the first series has {first_has}; say @equalLength false if they differ"
        )
    label = line.split(":")[-1]
    judged = labelled and (needs_label or not _no_label(label))
    return _wrong_value(channels) or (_wrong_label(label, labels) if judged else "")


def _wrong_value(channels: Sequence[str]) -> str:
    for value in ",".join(channels).split(","):
        try:
            float(value.replace("?", "nan"))
        except ValueError:
            return f"{value[:SHOWN]!r} is no number"
    return ""


def _wrong_label(label: str, labels: Sequence[str]) -> str:
    if _no_label(label):
        return "no label; add it, or remove the series"
    if labels and label.strip().lower() not in labels:
        return f"label {label[:SHOWN]!r} is none of @classLabel"
    return ""


def _no_label(label: str) -> bool:
    return label.strip().lower() in ("", "?", "nan")


def _quoted(line: str) -> str:
    shown = "".join(c if c.isprintable() else "·" for c in line)
    return f": {shown[:SHOWN]}{'…' if len(shown) > SHOWN else ''}" if shown else ""
