"""What docs/study and docs/company keep: tables come from frozen results, numbers in prose from tables."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from tsexp.report import company as deploying
from tsexp.report import frozen, tables
from tsexp.report.statistics import aggregate

ROOT = Path(__file__).parents[1]
STUDY, COMPANY = (ROOT / "docs" / part for part in ("study", "company"))
FOUR = ("RefrigerationDevices", "ACSF1", "PLAID", "ElectricDevices")
INTERVAL = re.compile(r"[-+]?[\d.,]+x?(?: %)? \[[-+]?[\d.]+, [-+]?[\d.]+\]")


@pytest.fixture(scope="module")
def study():
    return frozen.load(STUDY / "frozen")


@pytest.fixture(scope="module")
def trainings(study):
    """Results of the study by seed."""
    return {int(seed): part for seed, part in study.results.groupby("seed")}


@pytest.fixture(scope="module")
def hours(trainings):
    """Those of T1 to T3, each of which had an hour of its own."""
    return [part[part["model"].isin(["t1", "t2", "t3"])] for part in trainings.values()]


@pytest.fixture(scope="module")
def rows(study):
    """Results of the study, averaged."""
    return aggregate(study)


@pytest.fixture(scope="module")
def company():
    return frozen.load(COMPANY / "frozen")


@pytest.fixture(scope="module")
def averaged(company):
    """Results of the company, averaged; it takes seconds."""
    return aggregate(company)


@pytest.mark.parametrize("part", ["study", "company"])
def test_the_tables_are_those_of_the_frozen_results_byte_for_byte(part, tmp_path, request):
    files, _ = tables.write(request.getfixturevalue(part), tmp_path)
    kept = {file.name: file.read_bytes() for file in (ROOT / "docs" / part / "tables").iterdir()}
    assert {file.name: file.read_bytes() for file in files} == kept  # else: make published


def test_make_published_is_that_command():
    makefile = (ROOT / "Makefile").read_text()
    assert "for part in study company; do" in makefile
    assert "report tables figures page paths.frozen=docs/$$part/frozen paths.report=docs/$$part " in makefile


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_every_interval_that_is_told_stands_in_a_table(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.S | re.M)  # make run's own output
    told = set(INTERVAL.findall(text))
    assert len(told) > 20
    parts = [STUDY] if "results" in page else [STUDY, COMPANY]
    there = "".join(file.read_text() for part in parts for file in (part / "tables").glob("*.md"))
    assert not sorted(number for number in told if number not in there)


def test_the_study_is_three_trainings_of_everything_on_one_kind_of_machine(trainings):
    assert list(trainings) == [0, 1, 2]
    for part in trainings.values():
        assert len(part) == 177
        assert set(part["config"]) == set(trainings[0]["config"])
        assert set(part["machine"]) == set(trainings[0]["machine"])
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


def nine_of_ten(times):
    return " to ".join(f"{times.quantile(q):.2f}".removeprefix("0") for q in (0.05, 0.95))


def within_a_runtime(results):
    """Speedup over the dense model in fp32 in the same runtime, by config."""
    where = ["dataset", "model", "runtime"]
    plain = results[["ratio", "mode"]].eq([0, "none"]).all(axis=1)
    dense = results[plain].set_index(where)["speedup"]
    others = results[~plain & (results["runtime"] != "eager")].set_index([*where, "config"])["speedup"]
    return (others / dense).dropna().droplevel(where)


def test_how_far_the_speedups_of_another_training_are_is_as_told(hours):
    page = (ROOT / "docs" / "results.md").read_text()
    study, *others = (part.set_index("config") for part in hours)
    itself = study[["ratio", "mode", "runtime"]].eq([0, "none", "eager"]).all(axis=1)
    for seed, other in enumerate(others, 1):
        times = (other["speedup"] / study["speedup"])[~itself].dropna()
        assert f"seed {seed} {nine_of_ten(times)} times in nine of ten of {len(times)} ways" in page
    apart = [within_a_runtime(part) / within_a_runtime(hours[0]) for part in hours[1:]]
    told = ", ".join(f"seed {seed} {nine_of_ten(times)} times" for seed, times in enumerate(apart, 1))
    assert f"Within a runtime: {told} in nine of ten of {len(apart[0])} ways" in page
    control = [(part["latency_p50_ms"] * part["speedup"]) for part in (study, *others)]
    assert f"{nine_of_ten(control[1] / control[0])} times as long for seed 1 as for seed 0" in page
    assert (
        f"1.9 (T4 among them) and {(control[2] / control[0]).median():.2f} times as long, in the median"
        in page
    )
    assert f"a warning in {(others[1]['warnings'].fillna('') != '').sum()}. It is what counts here" in page


def test_how_much_is_open_is_as_told(rows):
    page = (ROOT / "docs" / "results.md").read_text()
    pruned = rows[(rows["ratio"] > 0) & (rows["mode"] == "none")]["degradation"].value_counts()
    assert set(pruned.index) == {"kept", "undecided"}
    assert f"of {pruned.sum()} prunings, {pruned['kept']} keep their accuracy within a point, none is" in page
    assert f"and {pruned['undecided']} are open" in page
    rounded = rows[(rows["ratio"] == 0) & (rows["mode"] != "none")]["degradation"].value_counts()
    assert set(rounded.index) == {"kept", "undecided"}
    assert rounded["undecided"] == 4
    assert f"Of {rounded.sum()} unpruned models in int8, {rounded['kept']} keep" in page


def test_what_would_look_like_a_gain_is_as_told(rows):
    pruned = rows[(rows["ratio"] > 0) & (rows["mode"] == "none")].groupby("model")
    gains = {m: (of["accuracy_pct"] > of["dense_accuracy_pct"]).sum() for m, of in pruned}
    ways = {len(of) for m, of in pruned if m in ("t1", "t2")}
    assert ways == {gains["t2"]} == {15}
    told = f"T2 would look like a gain in all {gains['t2']} ways, T1 in {gains['t1']} of 15."
    assert told in (ROOT / "docs" / "results.md").read_text()


def test_energies_beside_the_forest_are_as_told(rows):
    rows = rows.set_index(["dataset", "model"]).sort_index()
    datasets = ("RefrigerationDevices", "ElectricDevices", "PLAID")
    page = (ROOT / "docs" / "results.md").read_text()

    def times(ratio):
        for dataset in datasets:
            quant, t4 = rows.loc[(dataset, "quant_forest")].iloc[0], rows.loc[(dataset, "t4")]
            (energy_j,) = t4.loc[(t4["scope"] == "all") & (t4["ratio"] == ratio), "estimated_j"]
            yield f"{energy_j / quant['estimated_j']:.2f}".removeprefix("0")

    told = "half of everything gone needs {}, {} and {} times QUANT's energy† (RefrigerationDevices, Electric"
    assert told.format(*times(0.5)) in page
    assert "with three quarters gone {}, {} and {} times.".format(*times(0.75)) in page


def test_the_table_beside_the_forest_is_what_was_measured(rows):
    section = (ROOT / "docs" / "results.md").read_text().split("## Would something else")[1].split("\n## ")[0]
    table = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    rows = rows[(rows["mode"] == "none")].set_index(["dataset", "model", "runtime", "scope", "ratio"])
    ways = [("quant_forest", "eager", "-", 0), *(("t4", "onnxruntime", *w) for w in (("-", 0), ("all", 0.5)))]
    ways += [("t4", "onnxruntime", "all", 0.75), ("minirocket", "eager", "-", 0)]
    assert [line[0] for line in table] == ["RefrigerationDevices", "ElectricDevices", "PLAID"]
    for dataset, *cells in table:
        for way, cell in zip(ways, cells, strict=True):
            row = rows.loc[(dataset, *way)]
            assert cell == f"{row['accuracy_pct']:.1f} %, {1000 * row['estimated_j']:.3g} mJ†", (dataset, way)


WAYS = {  # model, runtime, scope, ratio, and the number format if it is not fp32
    "T4, eager PyTorch": ("t4", "eager", "-", 0),
    "T4, ONNX Runtime": ("t4", "onnxruntime", "-", 0),
    "half of its heads and units gone (`local`)": ("t4", "onnxruntime", "local", 0.5),
    "half of its layers (`depth`)": ("t4", "onnxruntime", "depth", 0.5),
    "half of its kernels and tokens (`features`)": ("t4", "onnxruntime", "features", 0.5),
    "three quarters of them": ("t4", "onnxruntime", "features", 0.75),
    "85 percent of them": ("t4", "onnxruntime", "features", 0.85),
    "half of kernels, tokens, heads and units (`all`)": ("t4", "onnxruntime", "all", 0.5),
    "three quarters of all that": ("t4", "onnxruntime", "all", 0.75),
    "T4, OpenVINO": ("t4", "openvino", "-", 0),
    "T3, eager PyTorch": ("t3", "eager", "-", 0),
    "T3, ONNX Runtime": ("t3", "onnxruntime", "-", 0),
    "half of its layers": ("t3", "onnxruntime", "depth", 0.5),
    "T1, trained until validation says stop, ONNX Runtime": ("t1", "onnxruntime", "-", 0),
    "one of its eight layers left": ("t1", "onnxruntime", "depth", 0.875),
    "T2, trained until validation says stop, ONNX Runtime": ("t2", "onnxruntime", "-", 0),
    "three of its twelve layers left": ("t2", "onnxruntime", "depth", 0.75),
    "two of them left, with three quarters of their heads and units": ("t2", "onnxruntime", "depth", 0.875),
    "FCN, eager PyTorch": ("fcn", "eager", "-", 0),
    "FCN, ONNX Runtime": ("fcn", "onnxruntime", "-", 0),
    "FCN, half of its channels gone": ("fcn", "onnxruntime", "local", 0.5),
    "FCN, static int8": ("fcn", "onnxruntime", "-", 0, "static"),
    "FCN, half of its channels gone, static int8": ("fcn", "onnxruntime", "local", 0.5, "static"),
    "ResNet, eager PyTorch": ("resnet", "eager", "-", 0),
    "ResNet, ONNX Runtime": ("resnet", "onnxruntime", "-", 0),
    "ResNet, half of its channels gone": ("resnet", "onnxruntime", "local", 0.5),
    "ResNet, static int8": ("resnet", "onnxruntime", "-", 0, "static"),
    "ResNet, half of its channels gone, static int8": ("resnet", "onnxruntime", "local", 0.5, "static"),
    "LITETime, eager PyTorch": ("litetime", "eager", "-", 0),
    "LITETime, ONNX Runtime": ("litetime", "onnxruntime", "-", 0),
    "LITETime, half of its channels gone": ("litetime", "onnxruntime", "local", 0.5),
    "LITETime, static int8": ("litetime", "onnxruntime", "-", 0, "static"),
    "LITETime, half of its channels gone, static int8": ("litetime", "onnxruntime", "local", 0.5, "static"),
    "InceptionTime, eager PyTorch": ("inceptiontime", "eager", "-", 0),
    "InceptionTime, ONNX Runtime": ("inceptiontime", "onnxruntime", "-", 0),
    "InceptionTime, half of its channels gone": ("inceptiontime", "onnxruntime", "local", 0.5),
    "InceptionTime, static int8": ("inceptiontime", "onnxruntime", "-", 0, "static"),
    "InceptionTime, half of its channels gone, static int8": (
        "inceptiontime",
        "onnxruntime",
        "local",
        0.5,
        "static",
    ),
    "QUANT": ("quant_forest", "eager", "-", 0),
    "MiniROCKET": ("minirocket", "eager", "-", 0),
    "MultiROCKET-Hydra": ("multirocket_hydra", "eager", "-", 0),
    "1-NN DTW": ("dtw_1nn", "eager", "-", 0),
}

SOME = {
    "T4, eager PyTorch": WAYS["T4, eager PyTorch"],
    "T4, ONNX Runtime": WAYS["T4, ONNX Runtime"],
    "T4, half of everything gone": WAYS["half of kernels, tokens, heads and units (`all`)"],
    "T4, three quarters of everything gone": WAYS["three quarters of all that"],
    "QUANT, a forest on quantiles": WAYS["QUANT"],
    "MiniROCKET": WAYS["MiniROCKET"],
    "FCN, half of its channels gone, static int8": WAYS["FCN, half of its channels gone, static int8"],
    "ResNet, half of its channels gone": WAYS["ResNet, half of its channels gone"],
    "the same, static int8": WAYS["ResNet, half of its channels gone, static int8"],
}


@pytest.mark.parametrize(("name", "ways"), [("docs/t4.md", WAYS), ("README.md", SOME)])
def test_what_is_told_of_the_company_is_what_was_measured(averaged, name, ways):
    rows = averaged
    rows = rows[rows["batch_size"] == 1].set_index(["dataset", "model", "runtime", "scope", "ratio", "mode"])
    assert rows.index.is_unique
    lines = (ROOT / name).read_text().split("| test accuracy %, energy† a series |")[1].splitlines()
    datasets = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert len(datasets) == 4
    seen = set()
    for line in lines[2:]:
        if not line.startswith("| "):
            break
        label, *said = (cell.strip() for cell in line.strip("|").split("|"))
        seen.add(label)
        for dataset, cell in zip(datasets, said, strict=True):
            place = (dataset, *(*ways[label], "none")[:5])
            if cell == "–":
                assert place not in rows.index
                continue
            row = rows.loc[place]
            n = "" if row["n"] == 5 else f" (n = {row['n']})"
            energy_mj = 1000 * row["estimated_j"]
            told = f"{energy_mj:,.0f}" if energy_mj >= 100 else f"{energy_mj:.3g}".removeprefix("0")
            assert cell == f"{row['accuracy_pct']:.1f}, {told} mJ{n}", place
    assert seen == ways.keys()


def test_what_points_are_lost_against_is_as_told(averaged):
    rows = averaged
    rows = rows[(rows["batch_size"] == 1) & (rows["model"] == "t4") & (rows["scope"] == "all")]
    control = rows[rows["ratio"] == 0.5].set_index("dataset")["control_accuracy_pct"]
    told = [f"{control[dataset]:.1f}" for dataset in FOUR]
    page, readme = ((ROOT / name).read_text() for name in ("docs/t4.md", "README.md"))
    on = (f"{accuracy} on {dataset}" for accuracy, dataset in zip(told[1:], FOUR[1:], strict=True))
    assert f"as long in all: {told[0]} % on {FOUR[0]}, " + ", ".join(on) in page
    assert f"(T4: {', '.join(told)} %; negative" in readme


def test_how_far_controls_were_from_each_other_is_as_told(company):
    results = company.results
    control_j = results["estimated_reference_j"]
    times = control_j / control_j.groupby([results[k] for k in ("dataset", "model", "batch_size")]).transform(
        "median"
    )
    least, low, high, most = (f"{q:.2f}".removeprefix("0") for q in times.quantile([0, 0.05, 0.95, 1]))
    told = f"took {least} to {most} times its median (energy†), in nine of ten records {low} to {high}, for"
    assert told in (ROOT / "docs" / "t4.md").read_text()


def test_the_fastest_within_a_point_is_as_told(averaged):
    """Of T4, single series: the datasets and the number of times, in the words of both pages."""
    rows = averaged
    rows = rows[(rows["batch_size"] == 1) & (rows["model"] == "t4") & (rows["drop_pt"] <= 1)]
    fastest = {dataset: of.loc[of["speedup"].idxmax()] for dataset, of in rows.groupby("dataset")}
    assert all(row["n"] == 5 for row in fastest.values())
    page = (ROOT / "docs" / "t4.md").read_text()
    for dataset, row in fastest.items():
        told = re.search(
            rf"([\d.]+) (?:times )?on {dataset} \(([\w ]+) gone, (no|[\d.]+) points? (less|more)", page
        )
        assert told, dataset
        share = {0.5: "half", 0.75: "three quarters"}[row["ratio"]]
        where = {"all": "", "features": " of kernels and tokens", "depth": " of its layers"}[row["scope"]]
        lost = f"{abs(row['drop_pt']):.1f}".removeprefix("0")
        assert told[1] == f"{row['speedup']:.1f}", dataset
        assert told[2] == share + where, dataset
        assert told[3] == ("no" if lost == ".0" else lost), dataset
        assert told[4] == ("more" if row["drop_pt"] <= -0.05 else "less"), dataset
    four = [fastest[d]["speedup"] for d in ("RefrigerationDevices", "ACSF1", "PLAID", "ElectricDevices")]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "{:.0f}, {:.0f}, {:.0f} and {:.0f} times as fast as dense eager".format(*four) in readme


NETS = {"fcn": "FCN", "resnet": "ResNet", "litetime": "LITETime", "inceptiontime": "InceptionTime"}


def spread(values, digits=1):
    return f"{values.min():.{digits}f} to {values.max():.{digits}f}".replace(" 0.", " .").removeprefix("0")


def test_what_is_told_of_convolutional_nets_is_what_was_measured(averaged):
    rows = averaged
    rows = rows[rows["batch_size"] == 1]
    rows = rows.set_index(["model", "dataset", "runtime", "scope", "ratio", "mode"]).sort_index()
    t4 = rows.xs(
        ("t4", "onnxruntime", "all", 0.75, "none"), level=("model", "runtime", "scope", "ratio", "mode")
    )
    nets = rows.loc[list(NETS)]

    def of(scope, ratio, mode, runtime="onnxruntime"):
        return nets.xs((runtime, scope, ratio, mode), level=("runtime", "scope", "ratio", "mode"))

    dense, plain, half = of("-", 0, "none", "eager"), of("-", 0, "none"), of("local", 0.5, "none")
    int8, both = of("-", 0, "static"), of("local", 0.5, "static")
    page, readme = ((ROOT / name).read_text() for name in ("docs/t4.md", "README.md"))
    readme = " ".join(readme.split())
    five = [(net, d) for net in ("resnet", "fcn") for d in FOUR if d != "PLAID"]
    five += [("litetime", d) for d in ("ACSF1", "ElectricDevices")]
    for ways in (dense, plain, half):
        assert {place: n for place, n in ways["n"].items() if n > 1} == dict.fromkeys(five, 5)
    assert {place for place, n in int8["n"].items() if n == 5} == set(five)
    assert (int8["n"] == both["n"]).all()
    behind = rows.xs(("t4", "eager", "-", 0, "none"), level=("model", "runtime", "scope", "ratio", "mode"))
    behind = behind["accuracy_pct"].reindex(dense.index, level="dataset") - dense["accuracy_pct"]
    assert f"FCN is {spread(behind['fcn'])} points behind" in page
    assert f"ResNet {spread(behind['resnet'])}, LITETime {spread(behind['litetime'])}" in page
    assert f"answer together, {spread(behind['inceptiontime'])}" in page

    def beside(ways):
        return ways["estimated_j"] / t4["estimated_j"].reindex(ways.index, level="dataset")

    alone = plain["speedup"]
    assert f"makes FCN and ResNet {spread(alone[['fcn', 'resnet']])} times as fast" in page
    assert (
        f"(LITETime {spread(alone['litetime'])}, InceptionTime {spread(alone['inceptiontime'], 2)})" in page
    )
    assert f"leaves them at {beside(plain).min():.1f} to {beside(plain).max():.0f} times the energy†" in page
    faster, less = f"{spread(half['speedup'])} times as fast", half["estimated_saving_pct"]
    assert f"{faster}, for {less.min():.0f} to {less.max():.0f} % less energy†" in page
    assert f"take {beside(plain).min():.0f} to {beside(plain).max():.0f} times the energy†" in readme
    assert (
        f"or {beside(half).min():.1f} to {beside(half).max():.0f} times with half of their channels" in readme
    )

    resnet, other = dense.loc["resnet", "accuracy_pct"], half.loc[("inceptiontime", "ACSF1"), "accuracy_pct"]
    assert f"ResNet has {resnet['ACSF1']:.1f} % on ACSF1 (five seeds; by one, InceptionTime" in readme
    assert f"with half of its channels gone {other:.1f})" in readme
    told = "{:.1f} on PLAID, {:.1f} on ElectricDevices, {:.1f} on RefrigerationDevices.".format(
        *resnet[["PLAID", "ElectricDevices", "RefrigerationDevices"]]
    )
    assert told in readme

    in_runtime = int8["speedup"] / plain["speedup"].reindex(int8.index)
    told = f"static int8 makes them {spread(in_runtime)} times as fast as fp32 in ONNX Runtime"
    assert told in page
    assert told in readme
    told = f"{spread(both['speedup'])} times as fast as dense eager PyTorch"
    assert f"half of the channels gone as well, {told}" in page
    assert f"half of their channels gone as well {told}" in readme
    joules = beside(both)
    assert f"at {spread(joules)} times the energy† of T4 with three quarters of everything gone" in page
    assert f"{spread(joules)} times the energy† of that T4" in readme
    for net, dataset in five:
        row = both.loc[net, dataset]
        energy = f"{1000 * row['estimated_j']:.3g}".removeprefix("0")
        assert f"{NETS[net]} so has {row['accuracy_pct']:.1f} % on {dataset} for {energy} mJ†" in page
    rounded = (int8["accuracy_pct"] - plain["accuracy_pct"].reindex(int8.index)).loc[five].abs()
    assert f"rounding moves their accuracy by at most {rounded.max():.1f} points" in page
    # What was exported before convolutions saw images: all that static int8 was not measured of.
    before = {
        net: [d for d in FOUR if (net, d) in plain.index and (net, d) not in int8.index] for net in NETS
    }
    told = "; ".join(f"{NETS[net]} on {', '.join(where)}" for net, where in before.items() if where)
    assert f"before ONNX Runtime convolved images: {told} ([log.md]" in page

    kept = set(half.index[half["degradation"] == "kept"])
    assert kept == {("resnet", "ElectricDevices"), ("litetime", "RefrigerationDevices")}
    assert "lost" not in set(half["degradation"])
    assert "ResNet on ElectricDevices and LITETime on RefrigerationDevices are seen to keep" in page
    open_ = half.loc[half["degradation"] == "undecided", "drop_pt"]
    assert f"all else is open, from {open_.min():.1f} to {open_.max():.1f} points" in page


def test_what_is_told_of_t3_and_t2_is_what_was_measured(averaged):
    rows = averaged
    rows = rows[(rows["batch_size"] == 1) & (rows["mode"] == "none") & (rows["runtime"] == "onnxruntime")]
    rows = rows.set_index(["model", "scope", "ratio", "dataset"]).sort_index()
    t3, t4 = rows.loc[("t3", "-", 0)], rows.loc[("t4", "all", 0.75)]
    times, behind = t3["estimated_j"] / t4["estimated_j"], t4["accuracy_pct"] - t3["accuracy_pct"]
    page = (ROOT / "docs" / "t4.md").read_text()
    assert f"needs {times.min():.2f}".replace("0.", ".") + f" to {times.max():.1f} times the energy†" in page
    assert f"is {behind.min():.1f} to {behind.max():.1f} points less accurate" in page
    three, two = (rows.loc[("t2", "depth", ratio, FOUR[0])] for ratio in (0.75, 0.875))
    assert f"it is {three['speedup']:.1f} times as fast as its control" in page
    assert f"PyTorch, {three['drop_pt']:.1f}".replace(" 0.", " .") + " points less accurate" in page
    assert f"with two {two['speedup']:.1f} times, {two['drop_pt']:.1f} points less" in page
    assert {three["degradation"], two["degradation"]} == {"undecided"}


def test_speedups_of_batches_are_as_told(averaged):
    rows = averaged
    rows = rows[(rows["batch_size"] == 32) & (rows["model"] == "t4")]
    rows = rows.set_index(["dataset", "scope", "ratio"])["speedup"]
    datasets = ("RefrigerationDevices", "ACSF1", "PLAID", "ElectricDevices")
    most, seen, half, runtime = (
        tuple(f"{rows[dataset, scope, ratio]:.1f}" for dataset in datasets)
        for scope, ratio in (("all", 0.75), ("features", 0.75), ("all", 0.5), ("-", 0))
    )
    page = (ROOT / "docs" / "t4.md").read_text()
    told = zip(("{} times as fast on {}", "{} on {}", "{} on {}", "{} on {}"), most, datasets, strict=True)
    assert ", ".join(words.format(times, dataset) for words, times, dataset in told) in page
    assert "three quarters of kernels and tokens {}, {}, {} and {};".format(*seen) in page
    assert "half of everything {}, {}, {} and {};".format(*half) in page
    assert "ONNX Runtime alone {}, {}, {} and {}.".format(*runtime) in page


ESTIMATORS = {"QUANT": "quant_forest", "MiniROCKET": "minirocket"}


def test_what_batches_cost_is_as_told(averaged):
    """T4's in its records, estimators' as they are; the same seeds of both."""
    rows = averaged
    rows = rows[(rows["batch_size"] == 32) & (rows["mode"] == "none")]
    rows = rows.set_index(["model", "scope", "ratio", "dataset"]).sort_index()
    ways = {f"{name}": (model, "-", 0.0) for name, model in ESTIMATORS.items()} | {
        "T4, half of everything gone": ("t4", "all", 0.5),
        "T4, three quarters of everything gone": ("t4", "all", 0.75),
    }
    page = (ROOT / "docs" / "t4.md").read_text()
    for name, way in ways.items():
        of = rows.loc[way].loc[list(FOUR)]
        seeds = "" if (of["n"] == 3).all() else f" (n = {of['n'].iloc[0]})"
        assert of["n"].nunique() == 1
        told = " | ".join(f"{1000 * j:.3g}".removeprefix("0") for j in of["estimated_j"])
        assert f"| {name}{seeds} | {told} |" in page
    quant = rows.loc[("quant_forest", "-", 0.0)]["estimated_j"]
    shares = [rows.loc[("t4", "all", ratio)]["estimated_j"] / quant for ratio in (0.5, 0.75)]
    readme = " ".join((ROOT / "README.md").read_text().split())
    half, quarter = (spread(share.loc[list(FOUR[:3])]) for share in shares)
    electric = [f"{share.loc[FOUR[3]]:.1f}".removeprefix("0") for share in shares]
    assert f"times QUANT's energy† with half gone, {quarter} with three quarters" in readme
    assert f"{half} times QUANT's" in readme
    assert f"({electric[0]} and {electric[1]} on ElectricDevices)" in readme


def test_the_answer_in_short_is_what_was_measured(company, averaged):
    rows = averaged
    rows = rows[(rows["batch_size"] == 1) & (rows["mode"] == "none") & (rows["runtime"] == "onnxruntime")]
    t4 = rows[rows["model"] == "t4"].set_index(["scope", "ratio", "dataset"]).sort_index()
    readme = " ".join((ROOT / "README.md").read_text().split())

    def less(*way):
        saving = t4.loc[way]["estimated_saving_pct"]
        assert len(saving) == 4
        return f"{saving.min():.0f} to {saving.max():.0f} %"

    faster = t4.loc[("all", 0.5)]["speedup"]
    assert f"to ONNX Runtime takes {less('-', 0.0)} off" in readme
    assert (
        f"gone as well: {less('all', 0.5)}, {faster.min():.0f} to {faster.max():.0f} times as fast; three "
        f"quarters gone: {less('all', 0.75)}."
    ) in readme
    state = {ratio: t4.loc[("all", ratio)]["degradation"].value_counts() for ratio in (0.5, 0.75)}
    assert [dict(state[ratio]) for ratio in (0.5, 0.75)] == [
        {"kept": 2, "undecided": 2},
        {"kept": 1, "undecided": 3},
    ]
    assert (t4.loc["all"]["drop_pt_lo"] <= 0).all()  # no loss is seen
    assert "excluded on two datasets, open on two" in readme
    assert "three quarters (open on three)" in readme
    withheld = company.results[(company.results["model"] == "t4") & (company.results["batch_size"] == 1)]
    withheld = withheld[(withheld["scope"] == "all") & (withheld["dataset"] == "ElectricDevices")]
    cost = [f"{c:.1f}".removeprefix("0") for c in withheld.groupby("ratio")["val_drop_pt"].mean()]
    assert f"half gone costs {cost[0]} points, three quarters {cost[1]}" in readme

    beside = company.comparisons[company.comparisons["model_b"] == "quant_forest"]

    def head_to_head(dataset, ratio):
        of = beside[(beside["dataset"] == dataset) & (beside["ratio_a"] == ratio)]
        of = of[of["scope_a"] == "all"]
        assert sorted(of["seed_a"]) == [0, 1, 2]
        saving = of["estimated_saving_pct"]
        assert (of["estimated_saving_pct_lo"] > 0).all()
        return f"{saving.min():.0f} to {saving.max():.0f} %"

    three = [f"{head_to_head(dataset, 0.75)} less energy† on {dataset}" for dataset in FOUR[:1]]
    three += [f"{head_to_head(dataset, 0.75)} on {dataset}" for dataset in FOUR[1:3]]
    assert f"{three[0]}, {three[1]} and {three[2]}" in readme
    electric = beside[(beside["dataset"] == FOUR[3]) & (beside["ratio_a"] == 0.5)]["difference_pt"]
    assert f"half gone is {spread(electric)} points ahead, for {head_to_head(FOUR[3], 0.5)} less" in readme
    for name, accuracy in re.findall(r"(MiniROCKET|T4|QUANT)(?: has)? (\d\d\.\d)(?: %| on average)?", readme):
        if accuracy in ("93.3", "91.7", "90.2"):
            page = (ROOT / "docs" / "t4.md").read_text().split("### Other sets")[1]
            assert re.search(rf"{name} (?:has )?{accuracy}", page)


def test_how_many_records_bear_a_warning_is_as_told(company):
    results = company.results
    warned = results["warnings"].fillna("") != ""
    foreign = results["warnings"].fillna("").str.contains("foreign load")
    page = (ROOT / "docs" / "t4.md").read_text()
    assert f"{warned.sum()} of {len(results)} records bear a warning" in page
    assert f"; {foreign.sum()} for what ran beside them" in page
    beside = company.comparisons["warnings"].fillna("") != ""
    assert f"{beside.sum()} of the {len(beside)} bear a warning" in page


def test_what_is_told_of_dynamic_int8_is_what_was_measured(averaged):
    rows = averaged
    rows = rows[(rows["batch_size"] == 1) & (rows["model"] == "t4")].set_index(["dataset", "mode"])
    datasets = ("RefrigerationDevices", "ACSF1", "PLAID", "ElectricDevices")
    told, rounded = [], []
    for dataset in datasets:
        plain, dynamic = (rows.loc[[(dataset, mode)]] for mode in ("none", "dynamic"))
        unpruned = plain[(plain["ratio"] == 0) & (plain["runtime"] == "onnxruntime")]["speedup"].item()
        rounded.append(dynamic["speedup"].item() / unpruned)
        fastest = plain[plain["drop_pt"] <= 1]["speedup"].max()
        told.append(f"{fastest / dynamic['speedup'].item():.1f}")
    page = (ROOT / "docs" / "t4.md").read_text()
    assert "These are {}, {}, {} and {} times as fast as dense dynamic int8".format(*told) in page
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"T4 run at {spread(np.array(rounded), 2)} times its speed in fp32" in readme


@pytest.mark.parametrize(
    ("label", "scope", "ratio"),
    [
        ("T4", "-", 0),
        ("half of everything gone", "all", 0.5),
        ("three quarters of everything gone", "all", 0.75),
    ],
)
def test_accuracies_and_their_spread_are_as_told(company, label, scope, ratio):
    results = company.results
    results = results[(results["model"] == "t4") & (results["batch_size"] == 1) & (results["mode"] == "none")]
    rows = results[(results["runtime"] == "onnxruntime") & (results["scope"] == scope)]
    of = 100 * rows[rows["ratio"] == ratio].groupby("dataset")["accuracy"].agg(["mean", "std"])
    told = [
        f"{of.loc[dataset, 'mean']:.1f} ± " + f"{of.loc[dataset, 'std']:.1f}".removeprefix("0")
        for dataset in FOUR
    ]
    assert f"| {label} | {' | '.join(told)} |" in (ROOT / "docs" / "t4.md").read_text()


def test_energies_of_t4_beside_estimators_are_as_told(company, averaged):
    rows = averaged
    rows = rows[(rows["batch_size"] == 1) & (rows["mode"] == "none") & (rows["runtime"] != "openvino")]
    estimators = rows[rows["model"].isin(["quant_forest", "minirocket"])].set_index(["model", "dataset"])
    t4 = rows[(rows["model"] == "t4") & (rows["runtime"] == "onnxruntime")]
    t4 = t4.set_index(["scope", "ratio", "dataset"]).sort_index()

    def told(shares):
        return "{}, {}, {} and {}".format(
            *(f"{s:.1f}" if s >= 1 else f"{s:.2f}".removeprefix("0") for s in shares.loc[list(FOUR)])
        )

    energy_j = estimators["estimated_j"]
    forest, rocket = energy_j["quant_forest"], energy_j["minirocket"]
    plain, half, quarter = (t4["estimated_j"][way] for way in (("-", 0.0), ("all", 0.5), ("all", 0.75)))
    page = (ROOT / "docs" / "t4.md").read_text()
    assert f"T4 needs {told(plain / forest)} times the energy† of QUANT on RefrigerationDevices" in page
    assert f"with half of everything gone {told(half / forest)} times, with three quarters" in page
    assert f"with three quarters {told(quarter / forest)}." in page
    assert f"MiniROCKET needs {told(rocket / half)} times as much as T4" in page
    batches = averaged
    batches = batches[(batches["batch_size"] == 32) & (batches["mode"] == "none")]
    batches = batches.set_index(["model", "scope", "ratio", "dataset"]).sort_index()
    beside = batches["estimated_j"]["t4"] / batches["estimated_j"]["quant_forest"]["-", 0.0]
    long = list(FOUR[:3])
    told = f"needs {spread((plain / forest)[long])} times as much for single series, "
    assert f"{told}{spread(beside['-', 0.0][long])} times in batches of 32 (T4 of one seed)" in page
    assert (batches.loc[("t4", "-", 0.0), "n"] == 1).all()
    assert max((quarter / forest)[long].max(), beside["all", 0.75][long].max()) < 1
    assert (beside["all", 0.5][long] < 1).to_dict() == {d: d == "ACSF1" for d in long}
    more, local = half / forest, t4.loc[("local", 0.5), "estimated_j"] / forest
    assert (more.loc[list(FOUR[:3])] > 1).all()
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "with half gone it needs more. On ElectricDevices" in readme
    assert f"half of everything, {more[FOUR[0]]:.1f} times QUANT's energy†, on {FOUR[0]}" in page
    assert f"half of heads and units, {local['PLAID']:.1f} times, on PLAID" in page
    of = company.results[company.results["dataset"] == FOUR[3]]
    of = of[(of["batch_size"] == 1) & (of["mode"] == "none")]
    seen = 100 * of.groupby(["model", "scope", "ratio"])["val_accuracy"].mean()
    ahead = [seen["t4", "all", ratio] - seen["quant_forest", "-", 0] for ratio in (0.5, 0.75)]
    told = f"gone is {ahead[0]:.1f} points ahead of QUANT, with three quarters {-ahead[1]:.1f} behind."
    assert told.replace(" 0.", " .") in page


def test_what_is_deployed_and_what_stands_on_the_front_is_as_told(company, averaged):
    rows = averaged
    rows = rows[rows["batch_size"] == 1].sort_values("estimated_j")
    less = []
    for dataset in FOUR:
        of = rows[rows["dataset"] == dataset]
        front = of[of["accuracy_pct"] > of["accuracy_pct"].cummax().shift(fill_value=0)]
        assert ((front["model"] == "t4") & (front["ratio"] > 0)).any(), dataset
        assert front.iloc[-1]["model"] == "t4", dataset
        t4 = of[(of["model"] == "t4") & (of["scope"] == "all") & (of["ratio"] == 0.75)].iloc[0]
        cheaper = front[(front["estimated_j"] < t4["estimated_j"]) & (front["model"] != "t4")]
        nets = {FOUR[0]: {"fcn"}, FOUR[3]: {"fcn", "resnet"}}.get(dataset, set())
        assert nets <= set(cheaper["model"]) <= {"t1", "t3"} | nets
        less += list(t4["accuracy_pct"] - cheaper["accuracy_pct"])
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"ElectricDevices, which need less for {min(less):.0f} to {max(less):.0f} points less" in readme
    advice = dict(deploying.advice(company, deploying.compared(averaged)))
    chosen = {
        batch: {d: re.match(r"deploy (\w+)", advice[f"{d} (batch_size {batch})"])[1] for d in FOUR}
        for batch in (1, 32)
    }
    assert chosen[1] == dict.fromkeys(FOUR, "t4") | dict.fromkeys(FOUR[::2], "quant_forest")
    assert chosen[32] == dict.fromkeys(FOUR, "t4") | {FOUR[0]: "quant_forest"}
    others = rows[rows["model"] != "t4"].groupby("dataset")["accuracy_pct"].max()
    ahead = rows[rows["model"] == "t4"].groupby("dataset")["accuracy_pct"].max() - others
    page = (ROOT / "docs" / "t4.md").read_text()
    assert f"on ElectricDevices by {ahead.pop('ElectricDevices'):.0f} points" in page
    assert f"on the others by {spread(ahead)}, which may be chance" in page


def test_what_keeps_its_accuracy_is_as_told(company, averaged):
    rows = averaged
    rows = rows[(rows["model"] == "t4") & (rows["batch_size"] == 1) & (rows["ratio"] > 0)]
    names = {
        ("features", 0.5): "half of kernels and tokens",
        ("features", 0.75): "three quarters of kernels and tokens",
        ("features", 0.85): "85 percent of kernels and tokens",
        ("all", 0.5): "half of everything",
        ("all", 0.75): "three quarters of everything",
        ("local", 0.5): "half of heads and units",
        ("depth", 0.5): "half of the layers",
    }
    page = (ROOT / "docs" / "t4.md").read_text()
    kept, lost = re.search(
        r"accuracy within a point: (.*?)\. Seen to lose more: (.*?); the rest", page
    ).groups()
    told = set()
    for state, said in (("kept", kept), ("lost", lost)):
        for part in said.split("; "):
            what, where = part.split(" on ")
            told |= {(state, what, d) for d in FOUR if d in where or where == "all four"}
    there = {
        (row["degradation"], names[row["scope"], row["ratio"]], row["dataset"])
        for _, row in rows.iterrows()
        if row["degradation"] in ("kept", "lost")
    }
    assert told == there
    withheld = company.results[company.results["model"] == "t4"]
    withheld = withheld[(withheld["scope"] == "all") & (withheld["batch_size"] == 1)]
    cost = withheld.groupby(["dataset", "ratio"])["val_drop_pt"].mean()
    first, last = (
        [f"{cost[d, ratio]:.1f}".removeprefix("0") for ratio in (0.5, 0.75)] for d in (FOUR[0], FOUR[3])
    )
    assert f"costs {first[0]} points on RefrigerationDevices" in page
    assert f"and {last[0]} on ElectricDevices (893), three quarters {first[1]} and {last[1]}," in page
    readme = " ".join((ROOT / "README.md").read_text().split())
    acsf1, plaid = (f"{cost[d, 0.75]:.1f}".removeprefix("0") for d in ("ACSF1", "PLAID"))
    assert f"it loses {first[1]}, {acsf1}, {plaid} and {last[1]} points" in readme


def test_what_is_told_head_to_head_is_what_was_measured(company):
    page = (ROOT / "docs" / "t4.md").read_text().split("Head to head (")[1]
    lines = [line for line in page.splitlines() if line.startswith("| ")][1:]
    told = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    told = told[: next(i for i, row in enumerate(told) if row[0].startswith("test accuracy"))]
    there = [
        [
            f"{100 * row['accuracy_a']:.1f}, {100 * row['accuracy_b']:.1f}",
            "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(row[f"difference_pt{e}"] for e in ("", "_lo", "_hi"))),
            "{:.1f} [{:.1f}, {:.1f}]".format(*(row[f"estimated_saving_pct{e}"] for e in ("", "_lo", "_hi"))),
        ]
        for row in company.comparisons.to_dict("records")
    ]
    assert len(told) == len(there) > 5
    assert sorted([row[1], row[2], row[4]] for row in told) == sorted(there)
    readme = " ".join((ROOT / "README.md").read_text().split())
    half = [row for row in told if row[0].startswith("ElectricDevices, half of everything gone")]
    points, less = ([float(row[i].split()[0]) for row in half] for i in (2, 4))
    assert (
        f"MiniROCKET in the one that was compared, by {points[3]:.1f} points and {less[3]:.0f} % less;"
        in readme
    )


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
    xeon = {way: told for way, told in xeon.items() if way[0] != "t4"}  # another T4 than today's
    assert xeon.keys() == epyc.keys()
    page = (ROOT / "docs" / "reproducing.md").read_text()
    page = page[page.index("## Somebody else's machine") :]

    def told(value):
        return f"{value:.2f}".removeprefix("0")

    times = {way: epyc[way][0] / xeon[way][0] for way in xeon}
    low, middle, high = (np.quantile(list(times.values()), q) for q in (0.05, 0.5, 0.95))
    assert f"{told(middle)} times as large in the median, {told(low)} to {told(high)} in nine of ten" in page
    assert f"; {len(times)} ways to deploy" in page
    for model in ("t1", "t2", "t3"):
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
        for model in ("t1", "t2", "t3")
    }
    assert "up to {t1:.1f}, {t2:.1f} and {t3:.1f} points apart".format(**apart) in page


@pytest.mark.parametrize("part", ["study", "company"])
def test_what_is_kept_names_no_place_of_the_machine_that_measured_it(part, request):
    kept = request.getfixturevalue(part)
    names = [*kept.results["run_name"], *(n for of in kept.about["left_out"].values() for n in of)]
    assert not [name for name in names if "/" in name or "paths." in name or "tracking." in name]
