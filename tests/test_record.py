"""From raw windows to numbers, and whether they may be trusted, on made-up windows with a known answer."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from tsexp import pipeline
from tsexp.energy import Scores, validity
from tsexp.energy.record import Record, assemble
from tsexp.energy.statistics import summarize
from tsexp.energy.validity import judge
from tsexp.energy.windows import orders
from tsexp.report.statistics import mcnemar_p, over_seeds_and_series
from tsexp.tasks import classification
from tsexp.tasks.classification import drop, quality

PAIRS, PROCESSES = 16, 8
NAMES = ("artifact", "reference")
IDLE_W = 4.0
Raw = dict[str, Any]


def make(saving_pct: float = 40.0, speedup: float = 2.0, noise: float = 0.01, seed: int = 0) -> Raw:
    """A clean measurement: the reference needs 10 J and 1 s for 100 series.

    The artifact needs `saving_pct` less energy, and 1/`speedup` of the time.
    """
    draw = np.random.default_rng(seed)
    windows: list[Raw] = []

    def add(subject: str, pair: int, wall_s: float, cpu_s: float, energy_j: float, inferences: int) -> None:
        window = {
            "process": max(pair, 0) % PROCESSES,
            "subject": subject,
            "pair": pair,
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "energy_j": energy_j,
            "inferences": inferences,
        }
        windows.append(window | {"foreign_cpu_s": 0.0, "discarded": False})

    for process in range(PROCESSES):
        add("idle", -1, 1.0, 0.0, IDLE_W + (1 if process % 2 else -1), 0)
        windows[-1]["process"] = process
    for pair in range(PAIRS):
        # A window of the artifact is as long as one of the reference: more calls.
        more = round(100 * speedup)
        wobble = 1 + noise * draw.uniform(-1, 1, 2)
        add("artifact", pair, 1.0, 0.9, wobble[0] * (1 - saving_pct / 100) * 10.0 * more / 100, more)
        add("reference", pair, 1.0, 0.9, wobble[1] * 10.0, 100)
    return {
        "windows": windows,
        "latencies_ms": list(range(1, 102)),
        "started": {
            n: [
                {"load_s": 0.1 * k, "load_j": k, "first_call_s": 0.01 * k, "first_call_j": 2.0 * k}
                for k in (1, 2, 9)
            ]
            for n in NAMES
        },
        "meter_overhead_s": [0.001, 0.002, 0.009],
        "repeats": PAIRS,
        "processes": PROCESSES,
        "window_s": 1.0,
        "orders": [turns(order) for order in orders(PROCESSES, seed)],
        "same_outputs": dict.fromkeys(NAMES, True),
        "same_weights": dict.fromkeys(NAMES, True),
        "as_scored": dict.fromkeys(NAMES, True),
        "throttle_events": 0,
    }


def turns(order: Any) -> Raw:
    """Who is loaded, and who is used, first and second, as ``windows.json`` has it."""
    return {k: sorted(NAMES, key=first.__ne__) for k, first in zip(("load", "use"), order, strict=True)}


def of(raw: Raw, subject: str) -> list[Raw]:
    return [w for w in raw["windows"] if w["subject"] == subject]


def test_clean_measurement_bears_no_warning() -> None:
    assert judge(make()) == ((), ())


def test_known_ratios_come_back() -> None:
    raw = make(saving_pct=40.0, speedup=2.0, noise=0.0)
    m = summarize(raw)
    assert m["vs_dense/speedup"] == pytest.approx(2.0)
    assert m["vs_dense/cpu_speedup"] == pytest.approx(2.0)
    assert m["vs_dense/energy_saving_pct"] == pytest.approx(40.0)
    assert m["energy/per_inference_j"] == pytest.approx(0.06)
    assert m["energy/window_j"] == pytest.approx(12.0)
    assert m["power/mean_w"] == pytest.approx(12.0)
    assert m["throughput/series_per_s"] == pytest.approx(200.0)
    assert m["measure/window_wall_s"] == pytest.approx(1.0)
    assert [m[f"latency/p{p}_ms"] for p in (50, 90, 99)] == [51, 91, 100]
    assert m["energy/reference_per_inference_j"] == pytest.approx(0.1)
    assert (m["measure/pairs"], m["measure/processes"], m["measure/meter_overhead_ms"]) == (
        PAIRS,
        PROCESSES,
        pytest.approx(2.0),
    )
    assert (
        m["cost/load_ms"],
        m["cost/load_j"],
        m["cost/first_call_ms"],
        m["cost/first_call_j"],
    ) == pytest.approx((200, 2, 20, 4))


def test_net_energy_is_gross_minus_mean_idle_power() -> None:
    m = summarize(make(speedup=4.0, noise=0.0))
    assert m["power/idle_w"] == pytest.approx(IDLE_W)
    assert m["energy/per_inference_net_j"] == pytest.approx(m["energy/per_inference_j"] - IDLE_W * 1.0 / 400)


def test_wall_and_cpu_speedup_are_told_apart() -> None:
    raw = make()
    for w in of(raw, "reference"):
        w["cpu_s"] = 0.45
    m = summarize(raw)
    assert m["vs_dense/speedup"] == pytest.approx(2.0)
    assert m["vs_dense/cpu_speedup"] == pytest.approx(1.0)


@pytest.mark.parametrize(("saving", "speedup"), [(40.0, 2.0), (0.0, 1.0), (-25.0, 0.5)])
def test_intervals_enclose_the_median_and_the_truth(saving: float, speedup: float) -> None:
    raw = make(saving, speedup, noise=0.02)
    for w in raw["windows"]:
        w["wall_s"] *= 1 + 0.01 * math.sin(7 * w["pair"] + (w["subject"] == "artifact"))
    m = summarize(raw)
    assert m["vs_dense/energy_saving_lo"] < m["vs_dense/energy_saving_pct"] < m["vs_dense/energy_saving_hi"]
    assert m["vs_dense/energy_saving_lo"] < saving < m["vs_dense/energy_saving_hi"]
    assert m["vs_dense/energy_saving_hi"] - m["vs_dense/energy_saving_lo"] < 8
    assert m["vs_dense/speedup_lo"] < speedup < m["vs_dense/speedup_hi"]


def test_ratios_are_taken_within_pairs() -> None:
    raw = make(noise=0.0)
    for w in raw["windows"]:
        if w["subject"] != "idle":
            w["energy_j"] *= 1 + w["pair"]  # the machine needs more and more; both alike
    m = summarize(raw)
    assert m["vs_dense/energy_saving_lo"] == pytest.approx(40.0)
    assert m["vs_dense/energy_saving_hi"] == pytest.approx(40.0)


def test_pairs_are_matched_by_number_not_by_position() -> None:
    raw = make(noise=0.03)
    shuffled = copy.deepcopy(raw)
    np.random.default_rng(0).shuffle(shuffled["windows"])
    assert summarize(shuffled) == summarize(raw)


def test_same_thing_twice_has_speedup_one_and_saving_zero_in_the_interval() -> None:
    m = summarize(make(0.0, 1.0, noise=0.02))
    assert m["vs_dense/energy_saving_lo"] <= 0 <= m["vs_dense/energy_saving_hi"]
    assert m["vs_dense/speedup_lo"] <= 1 <= m["vs_dense/speedup_hi"]


def test_discarded_windows_count_for_nothing() -> None:
    raw = make()
    clean = summarize(raw)
    for name in NAMES:
        raw["windows"].insert(3, of(raw, name)[0] | {"energy_j": -1e6, "wall_s": 77.0, "discarded": True})
    raw["windows"].insert(0, of(raw, "idle")[0] | {"energy_j": 1e9, "discarded": True})
    assert summarize(raw) == clean


def plant_zero_energy(raw: Raw) -> None:
    of(raw, "artifact")[3]["energy_j"] = 0.0


def plant_negative_energy(raw: Raw) -> None:
    of(raw, "reference")[3]["energy_j"] = -1.0


def plant_short_window(raw: Raw) -> None:
    of(raw, "artifact")[2]["wall_s"] = 0.5


def plant_other_answers(raw: Raw) -> None:
    raw["same_outputs"]["artifact"] = False


def plant_other_weights(raw: Raw) -> None:
    raw["same_weights"]["reference"] = False


def plant_otherwise_than_scored(raw: Raw) -> None:
    raw["as_scored"]["artifact"] = False


def plant_missing_pair(raw: Raw) -> None:
    for w in raw["windows"]:
        w["discarded"] |= w["pair"] == 4


def plant_unknown_energy(raw: Raw) -> None:
    plant_missing_pair(raw)
    next(w for w in raw["windows"] if w["discarded"])["energy_j"] = None


def plant_window_that_nobody_tells_of(raw: Raw) -> None:
    next(w for w in raw["windows"] if w["subject"] == "artifact")["energy_j"] = None


def plant_estimate_of_work_elsewhere(raw: Raw) -> None:
    raw |= {"source": "estimated:cpu_time", "children_cpu_s": 1.0}


INVALID = [
    (plant_zero_energy, ["a window with zero or negative energy"]),
    (plant_negative_energy, ["a window with zero or negative energy"]),
    (
        plant_short_window,
        ["1 windows of the artifact shorter than 1 s: measure again"],
    ),
    (plant_other_answers, ["the artifact answers the probe batch differently after the windows"]),
    (plant_other_weights, ["the weights of the reference changed while it was measured"]),
    (plant_otherwise_than_scored, ["the artifact answers otherwise than when it was scored"]),
    (
        plant_missing_pair,
        [
            f"only {PAIRS - 1} of {PAIRS} windows of the {name}: the others were discarded (counter wrap)"
            for name in NAMES
        ],
    ),
    (
        plant_unknown_energy,
        [
            f"only {PAIRS - 1} of {PAIRS} windows of the {name}: the others were discarded (the meter did "
            "not tell)"
            for name in NAMES
        ],
    ),
    (plant_window_that_nobody_tells_of, ["a window whose energy the meter did not tell"]),
    (
        plant_estimate_of_work_elsewhere,
        ["the artifact or the reference works in processes of its own, which the estimate does not see"],
    ),
]


@pytest.mark.parametrize(("plant", "reasons"), INVALID, ids=[plant.__name__ for plant, _ in INVALID])
def test_planted_fault_makes_a_record_invalid_and_is_told(plant: Any, reasons: list[str]) -> None:
    raw = make()
    plant(raw)
    invalid, _ = judge(raw)
    assert list(invalid) == reasons


def test_all_faults_are_told_at_once() -> None:
    raw = make()
    for plant in (plant_zero_energy, plant_short_window, plant_other_answers, plant_other_weights):
        plant(raw)
    assert len(judge(raw)[0]) == 4


def test_window_a_little_short_is_accepted() -> None:
    raw = make()
    of(raw, "artifact")[2]["wall_s"] = validity.SHORTEST + 0.001
    assert judge(raw)[0] == ()


def plant_foreign_load(raw: Raw) -> None:
    for w in raw["windows"]:
        w["foreign_cpu_s"] = 0.5 * w["wall_s"]


def plant_work_elsewhere(raw: Raw) -> None:
    raw |= {"source": "zeus:rapl", "children_cpu_s": 10.0}
    for w in raw["windows"]:
        w["foreign_cpu_s"] = 10.0 / (2 * PAIRS)


def plant_throttling(raw: Raw) -> None:
    raw["throttle_events"] = 3


def plant_threads_that_spin(raw: Raw) -> None:
    raw |= {"threads_spin": True, "threads": 2}


def plant_cores_not_asked_for(raw: Raw) -> None:
    raw["threads"] = 1
    for w in of(raw, "artifact"):
        w["cpu_s"] = 1.9


def plant_gpu_slowed(raw: Raw) -> None:
    for w in of(raw, "artifact"):
        w["gpu_slowed_by"] = ["heat"] if w["pair"] < 2 else ["its power limit"] if w["pair"] == 2 else []
    for w in of(raw, "reference"):
        w["gpu_slowed_by"] = None


def plant_gpu_shared(raw: Raw) -> None:
    for w in of(raw, "reference"):
        w["gpu_foreign"] = (None, 0, 1, 2)[w["pair"] % 4]


def plant_discarded(raw: Raw) -> None:
    raw["windows"] += [w | {"energy_j": -5.0, "discarded": True} for name in NAMES for w in of(raw, name)[:1]]


def plant_wide_interval(raw: Raw) -> None:
    for w in of(raw, "artifact"):
        w["energy_j"] *= (1.12, 0.88)[w["process"] // 2 % 2]  # which no order explains


def plant_asked_for_narrower(raw: Raw) -> None:
    raw["target_pct"] = 0.001


WARNINGS = [
    (
        plant_foreign_load,
        "interference: other processes used 0.5 cores: trust vs_dense/cpu_speedup, not vs_dense/speedup",
    ),
    (
        plant_work_elsewhere,
        "interference: part .* child processes: trust vs_dense/speedup, not vs_dense/cpu_speedup",
    ),
    (
        plant_threads_that_spin,
        "interference: 2 threads, .* may spin .*; start Python with OMP_WAIT_POLICY=PASSIVE",
    ),
    (
        plant_cores_not_asked_for,
        "interference: the artifact uses 1.9 cores, measure.threads=1: see its n_jobs; trust",
    ),
    (plant_gpu_shared, "interference: up to 2 other processes on the GPU, .*: stop them"),
    (plant_throttling, "throttling: heat slowed the CPU down 3 times: ratios hold, .*; cool the machine"),
    (
        plant_gpu_slowed,
        f"throttling: the GPU .* by heat and its power limit in 3 of {2 * PAIRS} windows: ratios hold",
    ),
    (plant_discarded, r"meter: 2 windows were lost \(counter wrap\) .* raise measure.window_s"),
    (
        plant_wide_interval,
        r"interval: .* ± \d+ % of what is left, not ± 5 \(usual\): raise measure.processes, to about \d+$",
    ),
    (
        plant_asked_for_narrower,
        r"interval: .*, not ± 0.001 \(measure.target_pct\): raise measure.processes, to about \d+$",
    ),
]


@pytest.mark.parametrize(("plant", "pattern"), WARNINGS, ids=[plant.__name__ for plant, _ in WARNINGS])
def test_planted_disturbance_is_warned_of_and_nothing_else(plant: Any, pattern: str) -> None:
    raw = make(noise=0.002)
    plant(raw)
    invalid, warned = judge(raw)
    assert invalid == ()
    assert len(warned) == 1, warned
    assert re.match(pattern, warned[0]), warned


def test_what_the_interval_holds_is_not_warned_of() -> None:
    raw = make(noise=0.002)
    for (
        name
    ) in NAMES:  # both alike: they vary between processes, and drift, and the saving is known all the same
        for w in of(raw, name):
            w["energy_j"] *= (1.1 if w["process"] % 2 else 0.9) * (1 + 0.2 * w["pair"] / PAIRS)
    assert judge(raw) == ((), ())


@pytest.mark.parametrize("events", [0, None], ids=["none counted", "cannot count"])
def test_no_throttling_is_no_warning(events: int | None) -> None:
    assert judge(make() | {"throttle_events": events}) == ((), ())


def test_idle_helpers_are_no_work_elsewhere() -> None:
    raw = make() | {"source": "estimated:cpu_time", "children_cpu_s": 0.1}  # of 28.8 s
    assert judge(raw) == ((), ())


def test_gpu_at_ease_and_alone_is_no_warning() -> None:
    raw = make()
    for w in raw["windows"]:
        w |= {"gpu_slowed_by": [], "gpu_foreign": 0}
    assert judge(raw) == ((), ())


def predictions(
    accuracy: float, series: int = 400, classes: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), draw.choice(classes, series - classes, p=[0.55, 0.25, 0.15, 0.05])]
    scores = draw.normal(size=(series, classes)).astype(np.float32)
    right = draw.random(series) < accuracy
    scores[right, labels[right]] += 6
    return scores, labels.astype(np.int64)


def test_scores_agree_with_sklearn_and_torchmetrics() -> None:
    scores, labels = predictions(0.7)
    m = quality(scores, labels, "test")
    guess = scores.argmax(1)
    assert m["test/accuracy"] == pytest.approx(accuracy_score(labels, guess))
    assert m["test/balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, guess))
    assert m["test/macro_f1"] == pytest.approx(f1_score(labels, guess, average="macro"))
    s, y = torch.from_numpy(scores), torch.from_numpy(labels)
    assert m["test/accuracy"] == pytest.approx(float(multiclass_accuracy(s, y, 4, average="micro")), abs=1e-6)
    assert m["test/balanced_accuracy"] == pytest.approx(
        float(multiclass_accuracy(s, y, 4, average="macro")), abs=1e-6
    )
    assert m["test/macro_f1"] == pytest.approx(float(multiclass_f1_score(s, y, 4, average="macro")), abs=1e-6)
    assert m["test/nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(s.double(), y)), abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_test_split_of_one_class_is_judged_without_a_warning() -> None:
    """As a split of a single series is; what is in nobody's test split has no recall."""
    m = quality(np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], np.float32), np.array([1, 1]), "test")
    assert m["test/balanced_accuracy"] == m["test/accuracy"] == 0.5


def test_the_same_scores_have_no_drop_and_no_interval() -> None:
    scores, labels = predictions(0.7)
    m = drop(scores, scores.copy(), labels)
    assert [m[f"vs_dense/accuracy_drop_{k}"] for k in ("pt", "lo", "hi")] == [0, 0, 0]


def test_other_scores_without_a_flip_are_no_proof_that_there_is_no_drop() -> None:
    scores, labels = predictions(0.7)
    m = drop(scores, 3 * scores, labels)
    assert m["vs_dense/accuracy_drop_pt"] == 0
    assert m["vs_dense/accuracy_drop_lo"] < 0 < m["vs_dense/accuracy_drop_hi"]


def test_drop_agrees_with_a_brute_force_bootstrap() -> None:
    (reference, labels), (other, _) = predictions(0.9), predictions(0.8, seed=1)
    scores = (
        np.where((np.arange(len(labels)) % 3 == 0)[:, None], np.roll(reference, 1, axis=1), reference)
        + 0 * other
    )
    m = drop(scores, reference, labels)
    lost = (reference.argmax(1) == labels).astype(float) - (scores.argmax(1) == labels)
    draw = np.random.default_rng(5)
    drops = [100 * lost[draw.integers(0, len(lost), len(lost))].mean() for _ in range(4000)]
    assert m["vs_dense/accuracy_drop_pt"] == pytest.approx(100 * lost.mean())
    assert m["vs_dense/accuracy_drop_lo"] == pytest.approx(np.percentile(drops, 2.5), abs=0.5)
    assert m["vs_dense/accuracy_drop_hi"] == pytest.approx(np.percentile(drops, 97.5), abs=0.5)
    assert m["vs_dense/accuracy_drop_lo"] < m["vs_dense/accuracy_drop_pt"] < m["vs_dense/accuracy_drop_hi"]


def flipped(lost: int, gained: int, n: int) -> tuple[float, float, float]:
    """The drop of two models of which each is right alone on so many of `n` series."""
    right_a, right_b = np.arange(n) >= lost, ~((np.arange(n) >= lost) & (np.arange(n) < lost + gained))
    scores, reference = (np.stack([~r, r], 1).astype(np.float32) for r in (right_a, right_b))
    m = drop(scores, reference, np.ones(n, np.int64))
    return tuple(m[f"vs_dense/accuracy_drop_{end}"] for end in ("pt", "lo", "hi"))


@pytest.mark.parametrize("n", [20, 100, 375, 7711])
def test_the_interval_of_a_drop_leaves_out_0_where_the_exact_test_does(n: int) -> None:
    """A bootstrap leaves it out from four flips on, where McNemar's p is .125."""
    for flips in range(1, 13):
        _, low, high = flipped(flips, 0, n)
        assert (low > 0) == (mcnemar_p(flips, 0) < 0.05), flips
        assert flipped(0, flips, n)[1:] == pytest.approx((-high, -low))


def test_the_interval_of_a_drop_and_the_exact_test_are_hardly_apart() -> None:
    """The test is conservative: what it does not see at .05 the interval may, up to a p of .064."""
    for lost in range(1, 41):
        for gained in range(lost + 1):
            sees, p = flipped(lost, gained, 100)[1] > 0, mcnemar_p(lost, gained)
            assert sees if p < 0.05 else not sees or p < 0.064


def test_the_interval_of_a_drop_is_what_the_report_has_for_one_seed() -> None:
    for lost, gained, n in ((0, 0, 10), (3, 1, 40), (20, 4, 375), (9, 30, 60), (5, 0, 5)):
        answers = np.zeros((1, n))
        answers[0, :lost], answers[0, lost : lost + gained] = 1, -1
        if lost + gained:  # else both give the very same scores, which have no interval
            assert flipped(lost, gained, n) == pytest.approx(
                [100 * v for v in over_seeds_and_series(answers)]
            )


@pytest.mark.parametrize("n", [40, 100, 375])
@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.02), (0.05, 0.01), (0.1, 0.08), (0.005, 0.005)])
def test_the_interval_of_a_drop_covers_the_drop_on_other_series(n: int, lost: float, gained: float) -> None:
    """At least 93 %; where hardly any answers differ, it errs on the safe side."""
    draws = np.random.default_rng(n).multinomial(n, [lost, gained, 1 - lost - gained], size=1500)
    intervals = {(a, b): flipped(a, b, n) for a, b in {(int(a), int(b)) for a, b, _ in draws}}
    intervals[0, 0] = (0, *(100 * v for v in over_seeds_and_series(np.zeros((1, n)))[1:]))
    truth = 100 * (lost - gained)
    assert np.mean([intervals[a, b][1] <= truth <= intervals[a, b][2] for a, b, _ in draws]) >= 0.93


def test_better_than_the_reference_is_a_negative_drop() -> None:
    labels = np.array([0, 1] * 50)
    perfect = np.eye(2, dtype=np.float32)[labels]
    constant = np.tile(np.array([[1, 0]], dtype=np.float32), (100, 1))
    m = drop(perfect, constant, labels)
    assert m["vs_dense/accuracy_drop_pt"] == -50
    assert m["vs_dense/accuracy_drop_hi"] < 0
    assert drop(constant, perfect, labels)["vs_dense/accuracy_drop_pt"] == 50


def test_class_missing_from_the_test_split_is_no_obstacle() -> None:
    scores, labels = predictions(0.9)
    kept = labels != 3
    m = quality(scores[kept], labels[kept], "val")
    assert m["val/accuracy"] == pytest.approx(accuracy_score(labels[kept], scores[kept].argmax(1)))
    assert math.isfinite(m["val/nll"])


def test_the_same_windows_make_the_same_intervals() -> None:
    raw = make(noise=0.05)
    assert summarize(raw) == summarize(raw)


def assembled(
    raw: Raw, scores: np.ndarray, reference: np.ndarray, labels: np.ndarray, val: int = 0
) -> Record:
    manifest = {"parameters": 5, "macs": 7, "bytes": 100, "channels": 6, "device": "cpu"}
    dense = {"parameters": 10, "macs": 14, "bytes": 300, "channels": 8, "device": "cpu"}
    dataset = SimpleNamespace(y_test=labels, y_train=labels, val=np.arange(val), task="classification")
    both = (Scores(s, s[:val]) for s in (scores, reference))
    return assemble(raw | {"source": "estimated:cpu_time"}, *both, manifest, dense, dataset)


def test_validation_series_are_scored_beside_and_counted() -> None:
    scores, labels = predictions(0.8)
    reference, _ = predictions(0.9)
    got = assembled(make(), scores, reference, labels, val=50).metrics
    accuracy, of_reference = ((s[:50].argmax(1) == labels[:50]).mean() for s in (scores, reference))
    assert got["val/accuracy"] == pytest.approx(accuracy)
    assert got["val/accuracy_drop_pt"] == pytest.approx(100 * (of_reference - accuracy))
    assert got["val/series"] == 50
    assert got["test/control_accuracy"] == pytest.approx((reference.argmax(1) == labels).mean())
    without = assembled(make(), scores, reference, labels).metrics
    assert without["val/series"] == 0
    assert {k for k in without if k.startswith("val/")} == {"val/series"}


def test_costs_and_when_they_have_paid() -> None:
    scores, labels = predictions(0.9)
    got = assembled(
        make(saving_pct=40.0, noise=0.0), scores, scores, labels
    )  # 0.1 J per series become 0.06 J
    paid = [
        {"wall_s": 2.0, "cpu_s": 3.0, "energy_j": {}},
        {"wall_s": 1.0, "cpu_s": 1.0, "energy_j": {"zeus:rapl": 99.0}},
    ]
    m = got.with_costs({"wall_s": 10.0, "cpu_s": 20.0, "energy_j": {}}, paid, 5.0).metrics
    assert [m[f"cost/{k}"] for k in ("train_s", "train_j", "compress_s", "compress_j")] == [10, 100, 3, 20]
    assert m["cost/break_even_inferences"] == pytest.approx(20 / 0.04)
    measured = replace(got, energy_source="zeus:rapl").with_costs(
        {"wall_s": 10.0, "cpu_s": 20.0, "energy_j": {"zeus:rapl": 7.0}}, paid[1:], 5.0
    )
    assert (measured.metrics["cost/train_j"], measured.metrics["cost/compress_j"]) == (7, 99)
    assert (
        "cost/compress_j"
        not in replace(got, energy_source="zeus:rapl").with_costs(paid[1], paid, 5.0).metrics
    )
    same = (
        assembled(make(saving_pct=0.2, speedup=1.0, noise=0.05), scores, scores, labels)
        .with_costs(paid[0], paid, 5.0)
        .metrics
    )
    assert same["vs_dense/energy_saving_lo"] < 0
    assert "cost/break_even_inferences" not in same
    worse = assembled(make(saving_pct=-10.0), scores, scores, labels).with_costs(paid[0], paid, 5.0).metrics
    assert "cost/break_even_inferences" not in worse


def test_cpu_time_is_no_estimate_of_what_trained_on_a_gpu() -> None:
    scores, labels = predictions(0.9)
    got = assembled(make(saving_pct=40.0, noise=0.0), scores, scores, labels)
    cost = {"wall_s": 2.0, "cpu_s": 3.0, "energy_j": {}}

    def costs(train: str, step: str) -> dict[str, float]:
        stages = [cost | {"device": step}, cost]
        return got.with_costs(cost | {"device": train}, stages, 5.0).metrics

    assert {k: v for k, v in costs("cpu", "cpu").items() if k in ("cost/train_j", "cost/compress_j")} == {
        "cost/train_j": 15,
        "cost/compress_j": 30,
    }
    assert "cost/train_j" not in costs("cuda", "cpu")
    assert costs("cuda", "cpu")["cost/compress_j"] == 30
    on_gpu = costs("cuda", "cuda")
    assert not {"cost/train_j", "cost/compress_j", "cost/break_even_inferences"} & set(on_gpu)
    assert (on_gpu["cost/train_s"], on_gpu["cost/compress_s"]) == (2, 4)


def test_costs_tell_the_device_of_what_trained() -> None:
    of = SimpleNamespace(entry=SimpleNamespace(cost={"wall_s": 1.0}))
    made = pipeline.Made(of, {"prune": of, "finetune": of, "qat": of}, [of], "cuda")  # type: ignore[dict-item]
    assert made.train_cost()["device"] == "cuda"
    assert [c.get("device") for c in made.costs()] == [None, "cuda", "cuda", None]


def test_record_holds_sizes_of_the_artifact_against_the_dense_one() -> None:
    scores, labels = predictions(0.9)
    got = assembled(make(), scores, scores, labels)
    assert got.valid
    assert got.energy_source == "estimated:cpu_time"
    sizes = ("size/parameters", "size/macs", "size/bytes", "vs_dense/size_ratio", "prune/achieved_ratio")
    assert [got.metrics[k] for k in sizes] == [5, 7, 100, 3, 0.25]


def test_record_of_windows_without_energy_is_invalid_and_holds_numbers_only() -> None:
    raw = make()
    for w in raw["windows"]:
        w["energy_j"] = 0.0
    scores, labels = predictions(0.9)
    got = assembled(raw, scores, scores, labels)
    assert got.invalid_reasons == ("a window with zero or negative energy",)
    assert "vs_dense/energy_saving_pct" not in got.metrics
    assert all(math.isfinite(v) for v in got.metrics.values())


def test_record_of_which_every_pair_was_discarded_is_invalid() -> None:
    raw = make()
    for w in raw["windows"]:
        w["discarded"] = w["subject"] != "idle"
    scores, labels = predictions(0.9)
    assert not assembled(raw, scores, scores, labels).valid


def test_record_of_an_artifact_that_answers_nan_is_invalid() -> None:
    scores, labels = predictions(0.9)
    broken = scores.copy()
    broken[0] = np.nan
    assert not assembled(make(), broken, scores, labels).valid


def test_an_answer_that_is_not_finite_is_the_same_guess_wherever_it_is_shown() -> None:
    scores = np.array([[np.nan, 2.0], [np.nan, -1.0]], np.float32)
    dataset = SimpleNamespace(classes=("a", "b"))
    _, rows = classification.predictions(scores, scores, np.array([1, 0]), dataset)
    assert [row[:3] for row in rows] == [["b", "b", "b"], ["a", "a", "a"]]
    assert classification.accuracy(scores, np.array([1, 0])) == 1


def test_net_energy_without_idle_windows_is_not_gross_energy() -> None:
    raw = make()
    for w in of(raw, "idle"):
        w["discarded"] = True
    scores, labels = predictions(0.9)
    got = assembled(raw, scores, scores, labels)
    assert not got.valid or "energy/per_inference_net_j" not in got.metrics


def test_one_class_for_everything_is_warned_of() -> None:
    scores, labels = predictions(0.9)
    constant = np.zeros_like(scores)
    assert any(
        "same class for every test series" in w for w in assembled(make(), constant, scores, labels).warnings
    )
    assert not any("same class" in w for w in assembled(make(), scores, constant, labels).warnings)
