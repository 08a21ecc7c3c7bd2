"""Measuring end to end, in the worker process.

What is scored and counted is the artifact, and every failure says why.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from conftest import TINY, compose, compressed
from rapl_tree import add_zone, planted
from tsexp import energy, models, pipeline, runtimes, training
from tsexp.cache import Cache
from tsexp.config import Config, ConfigError, MeasureConfig, QuantConfig, RuntimeConfig, Unsupported
from tsexp.data import Dataset
from tsexp.energy import MeasuringFailed, Record, hardware, measuring, meters
from tsexp.runtimes import Artifact
from tsexp.system import cpu
from tsexp.training import Fitted


@dataclass(frozen=True)
class Bench:
    """A dense and a pruned model, deployed."""

    cfg: Config
    dataset: Dataset
    slim_model: Fitted
    dense: Artifact
    slim: Artifact
    cache: Cache

    def measure(self, artifact: Artifact | None = None, **changes: object) -> Record:
        config: MeasureConfig = replace(self.cfg.measure, **changes)  # type: ignore[arg-type]
        scores, reference_scores = (
            energy.score(a, self.dataset, self.cfg.measure, self.cache) for a in (self.slim, self.dense)
        )
        return energy.measure(
            artifact or self.slim,
            self.dense,
            scores,
            reference_scores,
            self.dataset,
            config,
            0,
            progress=False,
        )


@pytest.fixture(scope="module")
def bench(italy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    cfg = compose(*TINY, "data=italy_power_demand", "prune.ratio=0.5", "prune.finetune_epochs=0")
    cache = Cache(tmp_path_factory.mktemp("cache"))
    dense = training.train(cfg.model, cfg.train, cfg.seed, italy, cache)
    slim = compressed(dense, cfg, italy, cache)
    deployed = [runtimes.deploy(m, cfg.quant, cfg.runtime, italy, cache) for m in (dense, slim)]
    return Bench(cfg, italy, slim, *deployed, cache)


@pytest.fixture(scope="module")
def record(bench: Bench) -> Record:
    return bench.measure()


@pytest.fixture
def copied(bench: Bench, tmp_path: Path) -> Artifact:
    """The pruned artifact, in another place."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(bench.slim.folder, folder)
    return Artifact(replace(bench.slim.entry, folder=folder), runtimes.read_manifest(folder))


@pytest.fixture
def in_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run code in each measuring process (and in no other) before it does anything."""

    def plant(code: str) -> None:
        (tmp_path / "planted.py").write_text(
            f"{code}\nfrom tsexp.energy.worker import compare, measure, peaks, score\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(measuring, "WORKER", "planted")

    return plant


def answers(artifact: Artifact, series: np.ndarray, batch_size: int) -> np.ndarray:
    """Scores of the loaded artifact, in batches as it is measured."""
    predictor = runtimes.load(artifact.folder)
    return np.concatenate([predictor(series[i : i + batch_size]) for i in range(0, len(series), batch_size)])


def test_record_is_valid_however_busy_the_machine_is(record: Record) -> None:
    assert record.invalid_reasons == ()


def test_energy_without_a_counter_is_labelled_an_estimate(record: Record) -> None:
    if not all(meters.available("cpu").values()):
        pytest.skip("a counter answers here")
    assert record.energy_source == "estimated:cpu_time"
    assert "estimate" in record.raw["scope"]


def test_estimate_is_cpu_time_times_watts_in_every_window(bench: Bench, record: Record) -> None:
    if record.energy_source != "estimated:cpu_time":
        pytest.skip("a counter answers here")
    for w in record.raw["windows"]:
        assert 0 <= w["energy_j"] <= bench.cfg.measure.watts_per_core * w["cpu_s"]


def test_scores_are_those_of_the_loaded_artifacts(bench: Bench, record: Record) -> None:
    np.testing.assert_allclose(
        record.scores, answers(bench.slim, bench.dataset.x_test, 1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        record.reference_scores, answers(bench.dense, bench.dataset.x_test, 1), rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(record.scores, record.reference_scores, rtol=1e-2)
    val = energy.score(bench.slim, bench.dataset, bench.cfg.measure, bench.cache).val
    np.testing.assert_allclose(
        val, answers(bench.slim, bench.dataset.x_train[bench.dataset.val], 1), rtol=1e-4, atol=1e-5
    )


def test_scores_are_kept_for_the_cpu_that_made_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def score() -> None:
        energy.score(bench.slim, bench.dataset, bench.cfg.measure, bench.cache)

    score()
    monkeypatch.setattr(measuring, "_asked", mock.Mock(side_effect=LookupError))
    score()
    here = cpu.facts()
    monkeypatch.setattr(cpu, "facts", lambda: here | {"cpu_vectors": "mmx"})
    with pytest.raises(LookupError):
        score()


def test_scores_of_an_artifact_of_other_libraries_are_kept_for_those_that_are_here(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that came from a store is known by its files, whatever answers with them."""
    made_by = {**bench.slim.manifest["versions"], "onnxruntime": "1.0"}
    fetched = replace(bench.slim, manifest=bench.slim.manifest | {"versions": made_by})

    def score() -> None:
        energy.score(fetched, bench.dataset, bench.cfg.measure, bench.cache)

    score()
    monkeypatch.setattr(measuring, "_asked", mock.Mock(side_effect=LookupError))
    score()
    monkeypatch.setattr(measuring, "installed", lambda name: "99.0")
    with pytest.raises(LookupError):
        score()


def test_threads_that_may_spin_are_warned_of_in_a_process_that_was_not_told(
    bench: Bench, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert hardware.threads_spin(2)
    assert not hardware.threads_spin(1)
    assert not record.raw["threads_spin"]
    two = energy.measure(
        *[bench.slim] * 2,
        *[energy.score(bench.slim, bench.dataset, replace(bench.cfg.measure, threads=2), bench.cache)] * 2,
        bench.dataset,
        replace(bench.cfg.measure, threads=2),
        0,
        progress=False,
    )
    assert two.raw["threads"] == 2
    assert not two.raw["threads_spin"], "it was told"


def test_series_are_scored_in_batches_as_they_are_measured(bench: Bench) -> None:
    # The ranges of ONNX Runtime's dynamic mode depend on the whole batch, so that answers in batches of 64
    # are those of another classifier.
    dynamic = runtimes.deploy(
        bench.slim_model,
        QuantConfig("dynamic"),
        RuntimeConfig("onnxruntime", "cpu"),
        bench.dataset,
        bench.cache,
    )
    made = {}
    for batch_size in (1, 16):
        made[batch_size] = energy.score(
            dynamic, bench.dataset, replace(bench.cfg.measure, batch_size=batch_size), bench.cache
        ).test
        np.testing.assert_allclose(
            made[batch_size], answers(dynamic, bench.dataset.x_test, batch_size), rtol=1e-4, atol=1e-5
        )
    assert np.abs(made[1] - made[16]).max() > 1e-3
    scores = energy.score(dynamic, bench.dataset, bench.cfg.measure, bench.cache)
    record = energy.measure(
        dynamic, bench.dense, scores, scores, bench.dataset, bench.cfg.measure, 0, progress=False
    )
    assert record.invalid_reasons == ("the reference answers otherwise than when it was scored",)


def test_artifact_that_answers_otherwise_than_it_was_scored_is_invalid(bench: Bench) -> None:
    scores = energy.score(bench.slim, bench.dataset, bench.cfg.measure, bench.cache)
    wrong = replace(scores, test=scores.test + 0.1)
    record = energy.measure(
        bench.slim, bench.slim, wrong, scores, bench.dataset, bench.cfg.measure, 0, progress=False
    )
    assert record.invalid_reasons == ("the artifact answers otherwise than when it was scored",)


def test_accuracy_and_drop_follow_from_the_scores(bench: Bench, record: Record) -> None:
    accuracy, dense = (
        float((s.argmax(1) == bench.dataset.y_test).mean()) for s in (record.scores, record.reference_scores)
    )
    assert record.metrics["test/accuracy"] == pytest.approx(accuracy)
    assert record.metrics["test/control_accuracy"] == pytest.approx(dense)
    assert record.metrics["vs_dense/accuracy_drop_pt"] == pytest.approx(100 * (dense - accuracy))
    np.testing.assert_array_equal(record.labels, bench.dataset.y_test)


def test_windows_and_latencies_are_as_many_as_asked_shared_among_processes(
    bench: Bench, record: Record
) -> None:
    config = bench.cfg.measure
    kept = [w for w in record.raw["windows"] if not w["discarded"]]
    for name in ("artifact", "reference"):
        mine = [w for w in kept if w["subject"] == name]
        assert [w["pair"] for w in mine] == list(range(config.repeats))
        assert [w["process"] for w in mine] == [
            p for p in range(config.processes) for _ in range(config.repeats // config.processes)
        ]
    assert len(record.raw["latencies_ms"]) == config.latency_calls
    assert record.raw["threads"] == config.threads
    assert record.metrics["memory/peak_mb"] > 0
    assert record.metrics["measure/processes"] == config.processes
    assert all(record.metrics[f"cost/{k}"] > 0 for k in ("load_ms", "first_call_ms"))


def test_measuring_stops_when_the_interval_is_narrow_enough(bench: Bench) -> None:
    assert bench.measure(repeats=16, processes=16, target_pct=1e6).raw["processes"] == energy.LEAST_PROCESSES
    assert bench.measure(repeats=10, processes=10, target_pct=1e-6).raw["processes"] == 10


def test_an_allocator_by_other_rules_is_a_fact_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in hardware.describe().get("allocator", ()):
        monkeypatch.delenv(name)
    assert "allocator" not in hardware.describe()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "2000000000")
    assert hardware.describe()["allocator"] == ["MALLOC_TRIM_THRESHOLD_"]


def test_peaks_of_the_machine_are_looked_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = energy.peaks(bench.cfg.measure, bench.cache)
    assert {"fp32", "bf16"} <= set(seen) <= {"fp32", "bf16", "int8"}
    assert all(0.1 < rate < 1e5 for rate in seen.values())
    monkeypatch.setattr(measuring, "WORKER", "nothing")
    assert energy.peaks(bench.cfg.measure, bench.cache) == seen
    monkeypatch.setattr(measuring, "installed", lambda name: None)  # int8's is ONNX Runtime's
    with pytest.raises(MeasuringFailed, match="no result"):
        energy.peaks(bench.cfg.measure, bench.cache)


def test_sizes_are_counted_on_the_artifact(bench: Bench, record: Record) -> None:
    for artifact in (bench.dense, bench.slim):
        stored = models.load(artifact.folder)
        shipped = [p for p in artifact.folder.iterdir() if p.name not in {"manifest.json", "entry.json"}]
        assert set(artifact.manifest["files"]) == {p.name for p in shipped}
        assert artifact.manifest["bytes"] == sum(p.stat().st_size for p in shipped)
        assert artifact.manifest["parameters"] == sum(p.numel() for p in stored.parameters())
        assert artifact.manifest["macs"] == models.count_macs(stored)
    for k in ("parameters", "macs", "bytes", "channels"):
        assert bench.slim.manifest[k] < bench.dense.manifest[k]
    for k in ("parameters", "macs", "bytes"):
        assert record.metrics[f"size/{k}"] == bench.slim.manifest[k]
    assert record.metrics["vs_dense/size_ratio"] == pytest.approx(
        bench.dense.manifest["bytes"] / bench.slim.manifest["bytes"]
    )
    assert record.metrics["prune/achieved_ratio"] == pytest.approx(0.5, abs=0.05)


def test_copied_artifact_answers_bit_equal_without_the_original(
    bench: Bench, copied: Artifact, tmp_path: Path
) -> None:
    expected = answers(bench.slim, bench.dataset.x_test[:64], 64)
    moved = copied.folder.rename(tmp_path / "once more")
    predictor = runtimes.load(moved)
    np.testing.assert_array_equal(predictor(bench.dataset.x_test[:64]), expected)
    assert predictor.weights_digest() == runtimes.load(bench.slim.folder).weights_digest()


def test_weights_digest_notices_one_changed_weight(bench: Bench) -> None:
    predictor = runtimes.load(bench.slim.folder)
    before = predictor.weights_digest()
    next(predictor.model.parameters()).data.view(-1)[0] += 1e-3  # type: ignore[attr-defined]
    assert predictor.weights_digest() != before


def test_batch_size_does_not_change_an_answer(bench: Bench) -> None:
    predictor = runtimes.load(bench.slim.folder)
    single = np.concatenate([predictor(bench.dataset.x_test[i : i + 1]) for i in range(32)])
    np.testing.assert_allclose(single, predictor(bench.dataset.x_test[:32]), rtol=1e-4, atol=1e-5)


def test_damaged_artifact_is_refused_with_the_file(copied: Artifact, bench: Bench) -> None:
    weights = copied.folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.safetensors is not what the manifest lists"):
        runtimes.load(copied.folder)
    with pytest.raises(
        MeasuringFailed, match=r"ValueError: .*weights\.safetensors is not what the manifest lists"
    ) as caught:
        bench.measure(copied)
    assert "Traceback" in caught.value.details


def test_killed_worker_is_told_with_its_signal(
    bench: Bench, in_the_worker: Callable[[str], None], tmp_path: Path
) -> None:
    """What a library unpacked is gone with it (a compiled model, by PyTorch)."""
    note = f"open({str(tmp_path / 'left')!r}, 'w').write(os.environ['TMPDIR'])"
    leave = "open(os.environ['TMPDIR'] + '/unpacked', 'w').close()"
    in_the_worker(f"import os, signal\n{note}\n{leave}\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(MeasuringFailed, match="killed by SIGKILL"):
        bench.measure()
    assert not Path((tmp_path / "left").read_text()).exists()


def test_worker_that_ends_without_a_result_is_told_with_its_status(
    bench: Bench, in_the_worker: Callable[[str], None]
) -> None:
    in_the_worker("import os\nos._exit(7)")
    with pytest.raises(MeasuringFailed, match="ended with status 7 and no result"):
        bench.measure()


def test_measuring_too_long_is_stopped_and_the_lock_is_free(bench: Bench) -> None:
    from tsexp.system.locking import owning_the_machine

    with pytest.raises(MeasuringFailed, match=r"longer than measure\.timeout_s=0\.2") as caught:
        bench.measure(timeout_s=0.2)
    assert "most recent call first" in caught.value.details
    with owning_the_machine():
        pass


def test_requiring_a_counter_where_none_answers_fails(
    bench: Bench, in_the_worker: Callable[[str], None], tmp_path: Path
) -> None:
    nowhere = str(tmp_path / "nowhere")
    in_the_worker(f"import zeus.device.cpu.rapl as r\nr.RAPL_DIR = r.CONTAINER_RAPL_DIR = {nowhere!r}")
    with pytest.raises((MeasuringFailed, ConfigError), match=r"measure\.require=measured"):
        bench.measure(require="measured")


@pytest.mark.usefixtures("record")  # everything is scored
def test_a_counter_that_stops_answering_between_two_processes_is_told(
    bench: Bench, in_the_worker: Callable[[str], None], tmp_path: Path
) -> None:
    root, seen = tmp_path / "intel-rapl", tmp_path / "seen"
    package = add_zone(root / "intel-rapl:0", "package-0", 1e6)
    name = root / "intel-rapl:0" / "name"
    then = [
        f"seen, name = pathlib.Path({str(seen)!r}), pathlib.Path({str(name)!r})",
        "name.unlink() if seen.exists() else seen.touch()",
    ]
    in_the_worker("\n".join([planted(root, {package: 50.0}), *then]))
    with pytest.raises(MeasuringFailed, match=r"was zeus:rapl .* is estimated:cpu_time now: measure again"):
        bench.measure(window_s=0.05, idle_s=0.05, repeats=4, processes=4)


def test_worker_reads_the_machines_counters(
    bench: Bench, in_the_worker: Callable[[str], None], tmp_path: Path
) -> None:
    root = tmp_path / "intel-rapl"
    package = add_zone(root / "intel-rapl:0", "package-0", 1e6)
    in_the_worker(planted(root, {package: 50.0}))
    record = bench.measure(require="measured", window_s=0.2, idle_s=0.3)
    assert record.energy_source == "zeus:rapl"
    assert record.metrics["power/mean_w"] == pytest.approx(50, rel=0.15)
    assert record.metrics["power/idle_w"] == pytest.approx(50, rel=0.15)
    assert record.metrics["energy/per_inference_j"] == pytest.approx(
        50 / record.metrics["throughput/series_per_s"], rel=0.15
    )
    per_correct = record.metrics["energy/per_inference_j"] / record.metrics["test/accuracy"]
    assert record.metrics["energy/per_correct_j"] == pytest.approx(per_correct)
    assert "1 whole CPU package" in record.raw["scope"]


@pytest.mark.parametrize(
    ("mode", "name", "device", "message"),
    [
        ("qat", "eager", "cpu", r"quant\.mode=qat with runtime=eager on cpu is not supported"),
        ("none", "eager", "tpu", r"on tpu is not supported"),
    ],
)
def test_unsupported_combination_is_refused_with_what_is_supported(
    bench: Bench, mode: str, name: str, device: str, message: str
) -> None:
    with pytest.raises(Unsupported, match=message) as caught:
        runtimes.deploy(
            bench.slim_model, QuantConfig(mode), RuntimeConfig(name, device), bench.dataset, bench.cache
        )
    table = str(caught.value).splitlines()[1:]
    assert list(dict.fromkeys(line.split()[0] for line in table)) == list(runtimes.RUNTIMES)
    assert all(line.split()[1] in ("cpu", "cuda") and "none" in line for line in table)


def test_unknown_runtime_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        ConfigError, match=r"runtime\.name=eagr is not known; allowed: .*eager.*did you mean eager"
    ):
        runtimes.check(QuantConfig("none"), RuntimeConfig("eagr", "cpu"))


def test_same_model_is_deployed_once(bench: Bench) -> None:
    again = runtimes.deploy(bench.slim_model, bench.cfg.quant, bench.cfg.runtime, bench.dataset, bench.cache)
    assert again.entry.reused
    assert again.folder == bench.slim.folder


def without_inductor(quant: QuantConfig) -> list[RuntimeConfig]:
    """It compiles for 20 s; the slow sweep over runtime=auto has it."""
    return [c for c in runtimes.candidates(quant, RuntimeConfig("auto", "cpu")) if c.name != "inductor"]


def test_automatic_choice_takes_the_fastest_that_keeps_the_accuracy(bench: Bench) -> None:
    quant = replace(bench.cfg.quant, mode="none")
    artifacts = [
        runtimes.deploy(bench.slim_model, quant, one, bench.dataset, bench.cache)
        for one in without_inductor(quant)
    ]
    chosen, tried = energy.choose(artifacts, artifacts[0], bench.dataset, bench.cfg.measure, bench.cache)
    assert [t["runtime"] for t in tried] == [a.manifest["runtime"] for a in artifacts]
    assert {"eager", "onnxruntime"} <= {t["runtime"] for t in tried}
    assert all(t["accuracy_drop_pt"] == 0 and t["val_series"] == len(bench.dataset.val) for t in tried)
    assert chosen is artifacts[int(np.argmin([t["cpu_ms"] for t in tried]))]


def test_automatic_choice_leaves_out_what_cannot_be_deployed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = replace(bench.cfg.runtime, name="auto")
    cfg = replace(bench.cfg, runtime=runtime, quant=replace(bench.cfg.quant, mode="none"))
    real = runtimes.deploy

    def deploy(fitted: Fitted, quant: QuantConfig, runtime: RuntimeConfig, *rest: Any) -> Artifact:
        if runtime.name not in works:
            raise RuntimeError("its compiler is broken\n  as 100 lines tell")
        return real(fitted, quant, runtime, *rest)

    monkeypatch.setattr(runtimes, "deploy", deploy)
    works = {"eager"}
    made = pipeline.make(cfg, bench.dataset, bench.cache)
    chosen, tried = pipeline.choose(made, cfg, bench.dataset, bench.cache)
    assert chosen.manifest["runtime"] == "eager"
    why = {t["runtime"]: t.get("error") for t in tried}
    assert why["onnxruntime"] == "RuntimeError: its compiler is broken\n  as 100 lines tell"
    assert "runtime=auto goes on without onnxruntime: RuntimeError: its compiler is broken" in caplog.text
    assert "100 lines" not in caplog.text
    told = pipeline.judge(made, chosen, cfg, bench.dataset, bench.cache).warnings
    assert "runtime=auto went on without onnxruntime: RuntimeError: its compiler is broken" in told
    works = set()
    with pytest.raises(MeasuringFailed, match=r"no runtime takes the model: .*its compiler is broken"):
        pipeline.make(cfg, bench.dataset, bench.cache)
    with pytest.raises(RuntimeError, match="its compiler is broken"):
        pipeline.make(replace(cfg, runtime=replace(runtime, name="eager")), bench.dataset, bench.cache)


def test_automatic_choice_goes_by_wall_time_where_several_threads_share_the_work(bench: Bench) -> None:
    config = replace(bench.cfg.measure, threads=2)
    _, tried = energy.choose([bench.slim], bench.slim, bench.dataset, config, bench.cache)
    assert set(tried[0]) == {"runtime", "accuracy_drop_pt", "val_series", "wall_ms"}


def test_automatic_choice_judges_on_series_that_the_model_was_not_fitted_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The dense model is better on train series, the other one on validation series: that decides.
    val = bench.dataset.val
    right = np.eye(len(bench.dataset.classes), dtype=np.float32)[bench.dataset.y_train]
    answers = {bench.slim.signature: right[val], bench.dense.signature: 1 - right[val]}
    monkeypatch.setattr(measuring, "score", lambda a, *_: energy.Scores(right[:0], answers[a.signature]))
    chosen, tried = energy.choose(
        [bench.dense, bench.slim], bench.slim, bench.dataset, bench.cfg.measure, bench.cache
    )
    assert chosen is bench.slim
    assert [t["accuracy_drop_pt"] for t in tried] == [100, 0]


def test_automatic_choice_leaves_out_what_does_not_load(bench: Bench, copied: Artifact) -> None:
    (copied.folder / "weights.safetensors").write_bytes(b"")
    chosen, tried = energy.choose(
        [copied, bench.slim], bench.slim, bench.dataset, bench.cfg.measure, bench.cache
    )
    assert chosen is bench.slim
    assert "damaged" in tried[0]["error"]
    with pytest.raises(MeasuringFailed, match="none of the runtimes works"):
        energy.choose([copied], bench.slim, bench.dataset, bench.cfg.measure, bench.cache)
