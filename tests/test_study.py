"""The study in docs/study: its tables come from its frozen results, its numbers in prose from its tables."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

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


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_every_interval_that_is_told_stands_in_a_table(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.S | re.M)  # make run's own output
    told = set(INTERVAL.findall(text))
    assert len(told) > 20
    there = "".join(file.read_text() for file in (STUDY / "tables").glob("*.md"))
    assert not sorted(number for number in told if number not in there)


@pytest.fixture(scope="module")
def trainings():
    """Results of the study and of what waits to join it, by seed."""
    waiting = (frozen.load(part) for part in (STUDY / "waiting").iterdir())
    parts = [part.results for part in (frozen.load(STUDY / "frozen"), *waiting)]
    return {part["seed"].unique().item(): part for part in sorted(parts, key=lambda part: min(part["seed"]))}


def test_what_waits_can_be_averaged_with_the_study(trainings):
    study, *waiting = trainings.values()
    assert waiting
    for part in waiting:
        assert set(part["config"]) <= set(study["config"])
        assert set(part["machine"]) == set(study["machine"])
        assert part["valid"].all()


def test_what_each_training_loses_is_as_told(trainings):
    section = (ROOT / "docs" / "results.md").read_text().split("## Another training\n")[1].split("\n## ")[0]
    head, _, *rows = (
        [c.strip() for c in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| ")
    )
    assert len(rows) > 5
    for way, *cells in rows:
        model, scope, ratio = re.fullmatch(r"(T\d), `(\w+)` ([.\d]+)", way).groups()
        for dataset, cell in zip(head[1:], cells, strict=True):
            lost = [
                f"{row + 0:+.1f}"
                for part in trainings.values()
                for row in part[
                    (part["dataset"] == dataset)
                    & (part["model"] == model.lower())
                    & (part["scope"] == scope)
                    & (part["ratio"] == float(ratio))
                    & (part["mode"] == "none")
                ]["accuracy_drop_pt"]
            ]
            assert len(lost) > 1
            assert cell == ", ".join(lost), (way, dataset)


def test_how_far_the_speedups_of_another_training_are_is_as_told(trainings):
    page = (ROOT / "docs" / "results.md").read_text()
    study, *others = (part.set_index("config") for part in trainings.values())
    itself = study[["ratio", "mode", "runtime"]].eq([0, "none", "eager"]).all(axis=1)
    for other in others:
        times = (other["speedup"] / study["speedup"])[~itself].dropna()
        low, high = (f"{times.quantile(q):.2f}".removeprefix("0") for q in (0.05, 0.95))
        (seed,) = other["seed"].unique()
        assert f"seed {seed} {low} to {high} times in nine of ten of {len(times)} ways" in page


def cells(folder):
    """Way to deploy a model → speedup and accuracy, of the Markdown tables in a folder."""
    found = {}
    for name in ("pruning", "quantization", "hybrids"):
        lines = [line for line in (folder / f"{name}.md").read_text().splitlines() if line.startswith("| ")]
        head, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        for row in (dict(zip(head, row, strict=True)) for row in rows):
            if row["dataset"] == "RefrigerationDevices" and row.get("runtime") != "eager":
                way = (row["model"], *(row.get(k, "") for k in ("runtime", "scope", "ratio", "mode")), name)
                found[way] = float(row["speedup"].split()[0]), float(row["accuracy %"].split()[0])
    return found


def test_how_far_two_machines_differ_is_what_their_tables_say(tmp_path):
    tables.write(frozen.load(STUDY / "frozen" / "epyc_seed0"), tmp_path)
    xeon, epyc = cells(STUDY / "xeon"), cells(tmp_path)
    assert xeon.keys() == epyc.keys()
    page = (ROOT / "docs" / "reproducing.md").read_text()
    page = page[page.index("## Somebody else's machine") :]

    def told(value):
        return f"{value:.2f}".removeprefix("0")

    times = {way: epyc[way][0] / xeon[way][0] for way in xeon}
    low, middle, high = (np.quantile(list(times.values()), q) for q in (0.05, 0.5, 0.95))
    assert f"{told(middle)} times as large in the median, {told(low)} to {told(high)} in nine of ten" in page
    assert f"; {len(times)} ways to deploy" in page
    for model in ("t1", "t2", "t3", "t4"):
        of = [t for way, t in times.items() if way[0] == model]
        assert f"{model.upper()} {told(min(of))} to {told(max(of))}" in page
        ranks = [[machine[way][0] for way in xeon if way[0] == model] for machine in (xeon, epyc)]
        assert spearmanr(*ranks).statistic > 0.985
    within = []
    for way in xeon:
        plain = (way[0], "onnxruntime", "", "", "none", "quantization")
        if way[1] != "openvino" and way != plain:
            within.append(times[way] / times[plain])
    low, middle, high = (np.quantile(within, q) for q in (0.05, 0.5, 0.95))
    assert (
        f"({len(within)} ways) | {told(middle)} times in the median, {told(low)} to {told(high)} in" in page
    )
    assert f"{told(min(within))} to {told(max(within))} in all" in page
    apart = {
        model: max(abs(epyc[way][1] - xeon[way][1]) for way in xeon if way[0] == model)
        for model in ("t1", "t2", "t3", "t4")
    }
    assert apart["t4"] == 0
    assert "up to {t1:.1f}, {t2:.1f} and {t3:.1f} points apart".format(**apart) in page
