"""A run as a folder: its model with what is known of it, the card, the record, the script that runs it."""

import hashlib
import json
import os
import subprocess
import sys
import venv
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import openvino
import pytest

import made_runs
from conftest import skip_without_bf16
from tsexp import card, export, marks, runtimes, subcommand
from tsexp.cache import _damage
from tsexp.energy.statistics import energy_interval_j
from tsexp.energy.windows import orders
from tsexp.marks import PROTOCOL_VERSION
from tsexp.system import alive

WARNING = "foreign load of 1.0 cores; look twice"
BLOCKED = (
    "import runpy, sys\n"
    "for name in ('tsexp', 'torch', 'onnx', 'aeon', 'mlflow'): sys.modules[name] = None\n"
    "runpy.run_path(sys.argv[1], run_name='__main__')"
)
"""Runs a script where these cannot be imported."""
MODELS = {"onnxruntime": {"model.onnx"}, "openvino": {"model.xml", "model.bin"}, "eager": {"artifact"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory, italy, empty_store):
    """A store with a run in each of three runtimes, exported."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    runs = {
        name: made_runs.make(folder, italy, f"runtime={name}", "data=italy_power_demand", warnings=[WARNING])
        for name in MODELS
    }
    for name, run in runs.items():
        assert export.main([run.run_id[:8], f"{folder}/out/{name}", *run.settings]) == 0
    return SimpleNamespace(folder=folder, out=folder / "out", runs=runs)


def run_script(folder, code=None, python=sys.executable):
    """What a folder's run.py does in another folder, by itself."""
    arguments = ["-c", code] if code else []
    return subprocess.run(
        [python, *arguments, str(folder / "run.py")],
        cwd=folder.parent,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def told(folder):
    """The metadata of the model in a folder."""
    if (folder / "model.onnx").exists():
        return {p.key: p.value for p in onnx.load(folder / "model.onnx").metadata_props}
    info = openvino.Core().read_model(folder / "model.xml").get_rt_info(["tsexp"]).value
    return {k: v.value if hasattr(v, "value") else v for k, v in info.items()}


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_holds_all_it_takes_and_nothing_else_is_left(place, name):
    beside = {"MODEL_CARD.md", "record.json", "example.npz", "run.py"}
    assert {p.name for p in (place.out / name).iterdir()} == MODELS[name] | beside
    assert {p.name for p in place.out.iterdir()} >= set(MODELS)
    assert not [p for p in place.out.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_model_runs_where_neither_this_package_nor_torch_can_be_imported(place, name):
    done = run_script(place.out / name, BLOCKED)
    assert done.returncode == 0, done.stderr
    run = place.runs[name]
    expected = [run.dataset.classes[i] for i in run.scores[: export.SERIES].argmax(1)]
    assert done.stdout.split() == expected


def test_a_graph_for_one_shape_answers_alike(place):
    example = np.load(place.out / "openvino" / "example.npz")
    model = openvino.Core().read_model(place.out / "openvino" / "model.xml")
    assert model.is_dynamic()
    model.reshape(list(example["series"].shape))
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    scores = openvino.compile_model(model, "CPU", settings)(example["series"])[0]
    assert np.abs(scores - example["scores"]).max() < 1e-4 * np.abs(example["scores"]).max()


@pytest.mark.slow
def test_what_needs_this_package_says_so_and_runs_with_it(place):
    script = place.out / "eager" / "run.py"
    assert "needs tsexp" in script.read_text()
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    run = place.runs["eager"]
    assert done.stdout.split() == [run.dataset.classes[i] for i in run.scores[: export.SERIES].argmax(1)]
    assert runtimes.load(place.out / "eager" / "artifact").layers()


@pytest.mark.parametrize("name", MODELS)
def test_a_script_has_ten_lines_below_its_docstring_at_most(place, name):
    doc, *lines = (place.out / name / "run.py").read_text().splitlines()
    assert doc.startswith('"""')
    assert doc.endswith('"""')
    assert len(lines) <= 10


def test_other_scores_than_those_expected_fail_the_script(place, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in (place.out / "onnxruntime").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    example = dict(np.load(folder / "example.npz"))
    np.savez(folder / "example.npz", series=example["series"], scores=example["scores"] * 1.01)
    done = run_script(folder, BLOCKED)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_only_the_metadata_differ_and_the_artifact_is_as_it_was(place, name):
    run, there = place.runs[name], place.out / name
    assert _damage(run.artifact.folder) is None
    if name == "onnxruntime":
        before, after = (onnx.load(f / "model.onnx") for f in (run.artifact.folder, there))
        assert before.metadata_props != after.metadata_props
        del before.metadata_props[:], after.metadata_props[:]
        assert before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
    else:
        assert hashes(run.artifact.folder)["model.bin"] == hashes(there)["model.bin"]
    module = __import__(f"tsexp.runtimes.{name}", fromlist=["load"])
    x = run.dataset.x_test[:200]
    before, after = (module.load(f, "none", "cpu", 1)(x) for f in (run.artifact.folder, there))
    assert np.array_equal(before, after)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_file_tells_classes_accuracy_energy_and_where_that_comes_from(place, name):
    run, facts = place.runs[name], told(place.out / name)
    assert json.loads(facts["classes"]) == ["1", "2"]
    assert "(batch, 1, 24)" in facts["input"]
    assert "raw values" in facts["input"]
    assert "(batch, 2)" in facts["output"]
    assert facts["dataset"] == "ItalyPowerDemand"
    assert facts["dataset_sha256"] == run.dataset.checksum
    assert float(facts["accuracy"]) == pytest.approx(run.accuracy, abs=1e-6)
    assert float(facts["accuracy_lo"]) < run.accuracy < float(facts["accuracy_hi"])
    assert float(facts["energy_per_inference_j"]) == 2.5e-3
    low, high = energy_interval_j(made_runs.windows())
    assert float(facts["energy_per_inference_lo_j"]) == pytest.approx(low, rel=1e-5)
    assert float(facts["energy_per_inference_hi_j"]) == pytest.approx(high, rel=1e-5)
    assert facts["energy_is"].startswith("joules per series in batches of 1")
    assert (facts["energy_source"], facts["energy_is_estimate"]) == ("estimated:cpu_time", "true")
    assert (facts["valid"], facts["warnings"]) == ("true", WARNING)
    assert facts["run_id"] == run.run_id


def test_the_example_is_of_the_test_split_with_the_answers_of_the_run(place):
    for name, run in place.runs.items():
        example = np.load(place.out / name / "example.npz")
        assert np.array_equal(example["series"], run.dataset.x_test[: export.SERIES])
        assert np.array_equal(example["scores"], run.scores[: export.SERIES])


def test_the_card_tells_what_the_record_does(place):
    run = place.runs["onnxruntime"]
    text = (place.out / "onnxruntime" / "MODEL_CARD.md").read_text()
    manifest = run.artifact.manifest
    assert text.startswith("# ItalyPowerDemand-t3-fp32-onnxruntime\n")
    for line in (
        f"| parameters | {manifest['parameters']:,} |",
        f"| MACs per series | {manifest['macs']:,} |",
        f"| products of the graph that runs | {manifest['matmuls']['float32']} in float32 |",
        f"| accuracy, test split | {100 * run.accuracy:.1f} % [",
        "| of the control | 90.0 % |",
        "| classes | `1`, `2` |",
        "| series | 54 fitted, 13 for validation, 1029 for the test |",
        "| energy per series† | 2.5 mJ [",
        "| saving against the control† | 50.0 [45.0, 55.0] % |",
        "| latency of a call | p50 0.125 ms,",
        "| epochs | dense 3 |",
        "| machine | cpu a CPU, cores 2 |",
        f"⚠ {WARNING}",
        "An estimate, not a measurement",
        "## Limits and intended use",
        "| `model.onnx` |",
    ):
        assert line in text
    assert run.run_id in text


@pytest.mark.parametrize(
    ("products", "machine", "told"),
    [
        ({"int8": 9, "float32": 1}, {"int8_largest": "127"}, True),
        ({"int8": 9, "float32": 1}, {"int8_largest": "64"}, False),
        ({"int8": 9}, None, True),  # an older one
        ({"float32": 10}, {"int8_largest": "127"}, False),
    ],
)
def test_the_card_warns_of_cpus_on_which_int8_overflows(place, products, machine, told):
    run = place.runs["onnxruntime"]
    manifest = run.artifact.manifest | {"matmuls": products, "machine": machine}
    for runtime, warned in (("onnxruntime", told), ("eager", False)):
        row = run.client.get_run(run.run_id).data
        facts = SimpleNamespace(row=row, manifest=manifest | {"runtime": runtime})
        assert ("without VNNI" in card._limits(facts)) == warned


@pytest.mark.parametrize(
    ("runtime", "mode", "told"),
    [
        ("openvino", "none", True),
        ("openvino", "static", True),
        ("openvino", "bf16", False),
        ("onnxruntime", "none", False),
    ],
)
def test_the_card_tells_what_openvino_does_by_itself(place, runtime, mode, told):
    run = place.runs["onnxruntime"]
    manifest = run.artifact.manifest | {"runtime": runtime, "mode": mode}
    facts = SimpleNamespace(row=run.client.get_run(run.run_id).data, manifest=manifest)
    assert ("INFERENCE_PRECISION_HINT: f32" in card._limits(facts)) == told


def test_machine_code_is_told_and_what_lets_it_run(place):
    run = place.runs["onnxruntime"]
    limits = {}
    for name in ("onnxruntime", "inductor", "eager"):
        manifest = run.artifact.manifest | {"runtime": name, "matmuls": {"int8": 9}}
        facts = SimpleNamespace(row=run.client.get_run(run.run_id).data, manifest=manifest)
        limits[name] = card._limits(facts)
        assert ("checks nothing" in limits[name]) == ("without VNNI" in limits[name]) == runtimes.alone(name)
        assert ("machine code on its own CPU alone" in limits[name]) == (name == "inductor")
    allowed = {name: export._allowed(name) for name in (*limits, "my_runtime:")}
    assert allowed == {
        "onnxruntime": [],
        "eager": [],
        "inductor": ["TSEXP_OWN_CODE=inductor"],
        "my_runtime:": ["TSEXP_OWN_CODE=my_runtime"],
    }


def test_a_folder_may_be_named_as_a_job_is(place, tmp_path):
    run = place.runs["onnxruntime"]
    assert export.main([run.run_id, f"{tmp_path}/prune.ratio=0.5", *run.settings]) == 0
    assert (tmp_path / "prune.ratio=0.5" / "run.py").exists()
    assert export.main([run.run_id, "prun.ratio=0.5", *run.settings]) == 2


def test_the_record_is_whole_but_for_where_it_ran(place):
    run = place.runs["openvino"]
    record = json.loads((place.out / "openvino" / "record.json").read_text())
    assert record["metrics"] == run.client.get_run(run.run_id).data.metrics
    assert record["params"]["model.d_model"] == "16"
    assert record["tags"]["tsexp.warnings"] == WARNING
    assert record["manifest"] == run.artifact.manifest
    assert str(place.folder) not in json.dumps(record)
    told = {*(f"tsexp.{key}" for key in alive.me()), marks.FROM_STORE, "mlflow.user"}
    assert not told & record["tags"].keys()
    assert all(tag.startswith(export.PRIVATE) for tag in told)


def test_an_invalid_record_tells_no_energy(place, italy, tmp_path):
    broken = made_runs.make(
        place.folder, italy, "runtime=onnxruntime", "data=italy_power_demand", invalid=["it lied"]
    )
    assert export.main([broken.run_id, f"{tmp_path}/out", *broken.settings]) == 0
    facts, text = told(tmp_path / "out"), (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert (facts["valid"], facts["invalid_reasons"]) == ("false", "it lied")
    assert not [k for k in facts if k.startswith("energy_per")]
    assert float(facts["accuracy"]) == pytest.approx(broken.accuracy, abs=1e-6)
    assert "**The record is invalid** (it lied)" in text
    assert "mJ" not in text


def test_measured_energy_has_no_mark(place, italy, tmp_path):
    run = made_runs.make(
        place.folder, italy, "runtime=onnxruntime", "data=italy_power_demand", source="zeus:rapl"
    )
    assert export.main([run.run_id, f"{tmp_path}/out", *run.settings]) == 0
    assert told(tmp_path / "out")["energy_is_estimate"] == "false"
    text = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "†" not in text
    assert "| energy per series | 2.5 mJ [" in text


def test_a_run_whose_logged_model_was_deleted_is_called_as_its_run(place, italy, tmp_path):
    run = made_runs.make(place.folder, italy, "runtime=onnxruntime", "data=italy_power_demand")
    run.client.delete_logged_model(run.client.get_run(run.run_id).outputs.model_outputs[0].model_id)
    assert export.main([run.run_id, f"{tmp_path}/out", *run.settings]) == 0
    assert "# a job\n" in (tmp_path / "out" / "MODEL_CARD.md").read_text()


def test_intervals_by_hand():
    # Wilson, 8 of 10; of four processes t with one degree of freedom, 12.706, of what no turn explains.
    row = SimpleNamespace(scored=True, metrics={"test/accuracy": 0.8}, valid=False)
    facts = card.Facts(row, "", {}, {}, {}, "", (0, 10), {}, "")
    assert facts.accuracy() == pytest.approx((0.8, 0.490, 0.943), abs=1e-3)
    assert facts.energy_j() is None
    assert replace(facts, row=SimpleNamespace(scored=False)).accuracy() is None
    factors = [1.01 if loaded == used else 1 / 1.01 for loaded, used in orders(4, 0)]
    low, high = energy_interval_j(made_runs.windows([(1.0, 2.0 * f, 9.0) for f in factors]))
    reach = 12.706 * np.log(1.01)
    assert (low, high) == pytest.approx((2 * np.exp(-reach), 2 * np.exp(reach)), rel=1e-3)
    factors = [1.01 if loaded == "artifact" else 1 / 1.01 for loaded, _ in orders(4, 0)]
    low, high = energy_interval_j(made_runs.windows([(1.0, 2.0 * f, 9.0) for f in factors]))
    assert (low, high) == pytest.approx((2, 2))  # the turn explains it
    assert np.isnan(energy_interval_j(made_runs.windows(((1.0, 2.0),)))).all()
    # Twelve processes of one kind, eight of another: the median of all windows is not in that of the mean.
    kinds = made_runs.windows(((1.0, 1.002, 1.004),) * 12 + ((1.1, 1.1, 1.1),) * 8)
    low, high = energy_interval_j(kinds)
    assert low > 1.004
    row = SimpleNamespace(valid=True, metrics={"energy/per_inference_j": 1.004})
    assert replace(facts, row=row, raw=kinds).energy_j() == (1.004, 1.004, high)
    alone = replace(facts, row=row, raw=made_runs.windows(((1.0, 2.0),))).energy_j()
    assert np.isnan(alone[1:]).all()


@pytest.mark.parametrize(("series", "kept"), [(10.0, "best"), (0.0, "last")])
def test_the_card_says_which_weights_are_kept(place, series, kept):
    row = place.runs["onnxruntime"].client.get_run(place.runs["onnxruntime"].run_id).data
    params, metrics = row.params | {"train.select": "best"}, row.metrics | {"val/series": series}
    row = SimpleNamespace(params=params, metrics=metrics, tags=row.tags, measured=False)
    facts = card.Facts(row, "", {}, {}, {}, "", (10, 10), {}, "")
    assert f"{kept}, average with decay" in dict(card._training(facts))["weights kept"]


def test_from_the_store_where_the_cache_is_gone(place, tmp_path):
    run = place.runs["onnxruntime"]
    settings = [run.settings[0], f"paths.cache={tmp_path}/none"]
    assert export.main([run.run_id, f"{tmp_path}/out", *settings]) == 0
    there = hashes(place.out / "onnxruntime")
    assert hashes(tmp_path / "out")["model.onnx"] == there["model.onnx"]


def test_a_copy_that_answers_otherwise_is_an_error(place, monkeypatch, capsys, tmp_path):
    from tsexp.runtimes import onnxruntime

    def broken(folder, facts, target):
        model = onnx.load(folder / "model.onnx")
        for weights in model.graph.initializer:
            if weights.data_type == onnx.TensorProto.FLOAT:
                weights.CopyFrom(
                    onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weights), weights.name)
                )
        onnx.save(model, target / "model.onnx")

    monkeypatch.setattr(onnxruntime, "annotate", broken)
    run = place.runs["onnxruntime"]
    assert export.main([run.run_id, f"{tmp_path}/out", *run.settings]) == 1
    assert "answers otherwise than the artifact" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_interrupted_leaves_nothing(place, monkeypatch, capsys, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(card, "card", interrupt)
    run = place.runs["eager"]
    assert export.main([run.run_id, f"{tmp_path}/out", *run.settings]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_told_in_a_line(place, capsys, tmp_path):
    run = place.runs["eager"]
    there = place.out / "eager"
    (tmp_path / "file").write_text("")
    for words, said in (
        ([], "give a run and a folder, RUN DIR, not 0 words"),
        ([run.run_id, there], f"{there} is there already"),
        ([run.run_id, tmp_path / "file" / "out"], "is no folder that can be written to"),
        (["xyz", tmp_path / "out"], "xyz is not a run id"),
        (["0123456789", tmp_path / "out"], "no run of experiment 'tsexp' begins with 0123456789"),
        ([run.run_id, tmp_path / "out", "measure=paper"], "measure=paper is not known here"),
        ([run.run_id, tmp_path / "out", f"data.path={tmp_path}"], f"data.path={tmp_path} must hold"),
        (["--fast", run.run_id], "--fast is not an option"),
    ):
        given = {str(w).split("=")[0] for w in words}
        settings = [s for s in run.settings if s.split("=")[0] not in given]
        assert said in made_runs.refused(capsys, export, *words, *settings)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_numbers_of_an_older_protocol_are_not_told(place, capsys, tmp_path):
    run = place.runs["eager"]
    run.client.set_tag(run.run_id, "tsexp.protocol", "1")
    try:
        line = made_runs.refused(capsys, export, run.run_id, tmp_path / "out", *run.settings)
    finally:
        run.client.set_tag(run.run_id, "tsexp.protocol", str(PROTOCOL_VERSION))
    assert "was measured by an older protocol: run it again" in line


def test_settings_are_told_from_files_with_such_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.ts").write_text("")
    assert subcommand.sort(["abc", "a=b.ts", "paths.cache=x"], subcommand.PLACES) == (
        ["abc", "a=b.ts"],
        ["paths.cache=x"],
    )


EVERY = [
    *(("onnxruntime", mode) for mode in ("dynamic", "static", "qat", "weight_only")),
    *(("openvino", mode) for mode in ("static", "qat", "weight_only", "bf16")),
    *(("eager", mode) for mode in ("dynamic", "weight_only", "bf16")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "mode"), EVERY)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_number_format_is_exported_bit_for_bit(tmp_path, italy, runtime, mode, batch_size):
    skip_without_bf16(runtime, mode)
    asked = [f"runtime={runtime}", f"quant.mode={mode}", f"measure.batch_size={batch_size}"]
    run = made_runs.make(tmp_path, italy, "data=italy_power_demand", "model.d_model=32", *asked)
    assert export.main([run.run_id, f"{tmp_path}/out", *run.settings]) == 0
    if runtime != "eager":
        done = run_script(tmp_path / "out", BLOCKED)
        assert done.returncode == 0, done.stderr
        module = __import__(f"tsexp.runtimes.{runtime}", fromlist=["load"])
        x = italy.x_test[:200]
        folders = run.artifact.folder, tmp_path / "out"
        before, after = (module.load(f, mode, "cpu", 1)(x) for f in folders)
        assert np.array_equal(before, after)
        assert told(tmp_path / "out")["run_id"] == run.run_id
    assert _damage(run.artifact.folder) is None


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_series_of_unequal_length_run_as_well(tmp_path, pickup, runtime):
    run = made_runs.make(tmp_path, pickup, "data=pickup_gesture", f"runtime={runtime}")
    assert export.main([run.run_id, f"{tmp_path}/out", *run.settings]) == 0
    assert "a shorter series ends in NaN" in told(tmp_path / "out")["input"]
    done = run_script(tmp_path / "out", BLOCKED)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_model_runs_in_an_environment_that_has_its_runtime_alone(place, tmp_path, runtime):
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", runtime], check=True, timeout=600)
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not {"tsexp", "torch", "onnx"} & set(listed.split())
    done = run_script(place.out / runtime, python=str(python))
    assert done.returncode == 0, done.stderr
    run = place.runs[runtime]
    assert done.stdout.split() == [run.dataset.classes[i] for i in run.scores[: export.SERIES].argmax(1)]
