"""The study in docs/study: its tables come from its frozen results, its numbers in prose from its tables."""

import re
from pathlib import Path

import pytest

from tsexp.report import frozen, tables

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "docs" / "study"
INTERVAL = re.compile(r"[-+]?[\d.,]+x?(?: %)? \[[-+]?[\d.]+, [-+]?[\d.]+\]")


def test_the_tables_are_those_of_the_frozen_results_byte_for_byte(tmp_path):
    files, _ = tables.write(frozen.load(STUDY / "frozen"), tmp_path)
    kept = {file.name: file.read_bytes() for file in (STUDY / "tables").iterdir()}
    assert {file.name: file.read_bytes() for file in files} == kept  # else: make published


def test_make_published_is_that_command():
    makefile = (ROOT / "Makefile").read_text()
    assert "report tables figures page paths.frozen=docs/study/frozen paths.report=docs/study" in makefile


@pytest.mark.parametrize("page", ["docs/results.md"])
def test_every_interval_that_is_told_stands_in_a_table(page):
    text = (ROOT / page).read_text()
    text = text[text.index("## Results") :].split("\n## ")[1] if page == "README.md" else text
    told = set(INTERVAL.findall(text))
    there = "".join(file.read_text() for file in (STUDY / "tables").glob("*.md"))
    assert not sorted(number for number in told if number not in there)
