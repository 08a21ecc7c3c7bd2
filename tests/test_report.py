import io
from dataclasses import replace

import pytest
from rich.console import Console

from tsexp.report.console import SAID, in_words, short, si, sweep_table, table, terminal, times_smaller
from tsexp.report.store import Row


def row(name="job", source="estimated:cpu_time", valid=True, ratio=0.3, warnings="", **params):
    metrics = {
        **{f"test/{k}": 0.8 for k in ("accuracy", "macro_f1")},
        **{
            "test/control_accuracy": 0.81,
            "test/dense_accuracy": 0.75,
            "val/accuracy": 0.7,
            "val/accuracy_drop_pt": 2.0,
            "val/series": 40.0,
        },
        **{
            "cost/load_ms": 21.0,
            "cost/load_j": 0.5,
            "cost/first_call_ms": 3.0,
            "cost/train_s": 61.0,
            "cost/train_j": 610.0,
            "cost/compress_s": 12.0,
        },
        **{"cost/break_even_inferences": 123456.0, "energy/reference_per_inference_j": 0.0176},
        **{f"size/{k}": 1234.0 for k in ("parameters", "macs", "bytes")},
        **{
            f"vs_dense/{k}": 1.5
            for k in (
                "speedup",
                "speedup_lo",
                "speedup_hi",
                "cpu_speedup",
                "cpu_speedup_lo",
                "cpu_speedup_hi",
                "size_ratio",
            )
        },
        **{f"vs_dense/energy_saving_{k}": 30.0 for k in ("pct", "lo", "hi")},
        **{f"vs_dense/accuracy_drop_{k}": 1.0 for k in ("pt", "lo", "hi")},
        "energy/per_inference_j": 0.0123,
        "latency/p50_ms": 1.2,
        "prune/achieved_ratio": ratio,
    }
    base = {
        "data.name": "ACSF1",
        "model.name": "t3",
        "runtime.name": "eager",
        "quant.mode": "none",
        "prune.method": "l1",
        "prune.ratio": str(ratio),
    }
    tags = {
        "tsexp.energy_source": source,
        "tsexp.valid": str(valid).lower(),
        "tsexp.warnings": warnings,
        "tsexp.invalid_reasons": "" if valid else "why",
    }
    return Row(name, name, "FINISHED", base | params, metrics, tags)


def text(renderable, width=200):
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_estimates_are_marked_and_measurements_are_not():
    assert "†" in text(table(row()))
    assert "†" not in text(table(row(source="zeus:rapl")))
    assert "†" in text(sweep_table([row()], {}, "sweep"))
    assert "†" in text(table(row(source="estimated:machine_cpu")))
    assert "†" not in text(table(row(source="mains:plug")))
    assert "energy: zeus:rapl" in text(sweep_table([row(source="zeus:rapl")], {}, "sweep"))


WINDOWS = (
    "energy/",
    "latency/",
    "vs_dense/speedup",
    "vs_dense/cpu_speedup",
    "vs_dense/energy",
    "cost/load",
    "cost/first",
    "cost/break",
)


def invalid(reason="why", **changes):
    """As the store has it: what came from windows has another name."""
    made = row(valid=False, **changes)
    renamed = {f"invalid/{k}" if k.startswith(WINDOWS) else k: v for k, v in made.metrics.items()}
    return replace(made, metrics=renamed, tags=made.tags | {"tsexp.invalid_reasons": reason})


def test_a_record_with_invalid_energy_shows_its_accuracy_and_the_reason():
    for shown in (text(sweep_table([invalid()], {}, "sweep")), text(table(invalid()))):
        assert "80.0" in shown
        assert "invalid" in shown
        assert "why" in shown
        assert "12.3 mJ" not in shown
    assert "saving" not in text(table(invalid()))


def test_scores_that_are_not_finite_have_no_accuracy():
    shown = text(
        sweep_table([invalid("the artifact answers series with scores that are not finite")], {}, "sweep")
    )
    assert "80.0" not in shown
    assert "not finite" in shown


def test_one_run_tells_what_it_is_held_against_and_what_it_cost():
    shown = text(table(row()))
    for said in (
        "control: 81.0 %, 75.0 % before tuning",
        "control: dense, fp32, eager, with the same training in total",
        "on 40 validation series",
        "70.0 %",
        "drop +2.0 points",
    ):
        assert said in shown
    for said in ("21 ms", "500 mJ†", "3 ms", "61 s", "610 J†", "12 s", "paid for itself after", "123,456"):
        assert said in shown
    untuned = row()
    assert "before tuning" not in text(
        table(replace(untuned, metrics=untuned.metrics | {"test/dense_accuracy": 0.81}))
    )


@pytest.mark.parametrize(
    ("series", "said"),
    [
        (40, "chosen by the accuracy on 40 validation series"),
        (9, "so few hardly choose better than chance"),
        (0, "chosen on the test split itself"),
    ],
)
def test_a_search_says_what_its_front_was_chosen_on(series, said):
    made = row()
    metrics = {k: v for k, v in made.metrics.items() if series or not k.startswith("val/")} | {
        "val/series": float(series)
    }
    shown = " ".join(text(sweep_table([replace(made, metrics=metrics)], {}, "search", front={"job"})).split())
    assert said in shown
    assert ("val. %" in shown) == (series > 0)


def changed(name, saving=(30, 20, 40), drop=(1, -1, 3), **changes):
    """A row with these values and intervals of saving (%) and drop (points)."""
    made = row(name, **changes)
    keys = [f"vs_dense/energy_saving_{k}" for k in ("pct", "lo", "hi")]
    keys += [f"vs_dense/accuracy_drop_{k}" for k in ("pt", "lo", "hi")]
    return replace(made, metrics=made.metrics | dict(zip(keys, map(float, (*saving, *drop)), strict=True)))


LONG = [
    changed(
        f"seed=0 data=refrigeration_devices prune.ratio={r} quant.mode={q} runtime={t}",
        (-752.4, -901.3, -634.9),
    )
    for r in (0, 0.35)
    for q, t in (("none", "eager"), ("static", "onnxruntime"))
]


@pytest.mark.parametrize("width", [80, 110])
def test_the_table_of_a_sweep_fits_and_its_job_column_does_not_vanish(width):
    error = "RuntimeError: " + "something long that went wrong " * 20
    lines = text(sweep_table(LONG, {"prune.ratio=0.9 (#7)": error}, "sweep"), width).splitlines()
    assert max(map(len, lines)) <= width
    head = next(line for line in lines if line.strip().startswith("job"))
    assert head.split() == ["job", "acc.", "%", "drop,", "points", "saving", "%", "speedup"]
    assert head.index("acc.") >= 16
    assert sum("-752.4 [-901.3, -634.9]†" in line for line in lines) == len(LONG)
    shown = " ".join("".join(lines).split())
    for word in ("refrigeration_devices"[:14], "ratio=0.35", "quant=none", "onnxruntime"):
        assert word in shown
    below = [line for line in lines if line.startswith("FAILED prune.ratio=0.9 (#7): RuntimeError:")]
    assert len(below) == 1
    assert len(shown) - shown.index("FAILED") < 1000


def test_one_run_fits_80_columns():
    made = changed("one", (-752.4, -901.3, -634.9), (-12.3, -15.1, -10.2))
    sizes = {"size/parameters": 12_345_678, "size/macs": 9_876_543_210, "size/bytes": 98_765_432}
    lines = text(table(replace(made, metrics=made.metrics | sizes)), 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("9,876,543,210" in line and "MACs per series" in line for line in lines)
    assert any("drop -12.3 [-15.1, -10.2] points" in line for line in lines)


def test_what_a_kind_of_model_does_not_have_is_a_dash():
    made = row()
    gone = ("size/macs", "prune/achieved_ratio", "vs_dense/size_ratio", "test/macro_f1")
    made = replace(made, metrics={k: v for k, v in made.metrics.items() if k not in gone})
    lines = text(table(made)).splitlines()
    assert any("MACs per series" in line and "–" in line for line in lines)
    assert any("channels removed: –" in line for line in lines)
    assert "– " in text(sweep_table([made], {}, "sweep"))


@pytest.mark.parametrize(
    ("saving", "drop", "said"),
    [
        ((24.2, 20, 28), (0.5, -1, 2), "24 % less energy†, no difference in accuracy seen"),
        ((60, 58, 62), (3.1, 1.2, 5), "60 % less energy†, accuracy lost: 3.1 points"),
        ((9, -2, 20), (-2.0, -3, -1), "no saving seen, accuracy gained: 2.0 points"),
        ((-12, -20, -3), (0, 0, 0), "12 % more energy†, no difference in accuracy seen"),
        ((9, 0, 20), (3, 0, 5), "no saving seen, no difference in accuracy seen"),
    ],
)
def test_a_job_in_words_claims_what_its_intervals_bear(saving, drop, said):
    job = changed("prune.ratio=0.5", saving, drop)
    assert in_words([job]) == [f"ratio 0.5: {said}"]
    assert text(table(job)).rstrip().endswith(said)
    assert text(sweep_table([job], {}, "sweep")).rstrip().endswith(f"ratio 0.5: {said}")


def test_in_words_measured_energy_has_no_mark_and_invalid_energy_no_saving():
    assert in_words([changed("a=b", source="zeus:rapl")]) == [
        "b: 30 % less energy, no difference in accuracy seen"
    ]
    assert in_words([invalid(name="a=b")])[0].startswith("b: energy invalid, ")


def test_jobs_that_differ_in_the_seed_alone_share_a_line_in_words():
    jobs = [
        changed(f"seed={i} prune.ratio=0.5", saving) for i, saving in enumerate([(20, 10, 30), (26, 20, 30)])
    ]
    said = "2 seeds: 20 to 26 % less energy†, no difference in accuracy seen"
    assert in_words(jobs) == [f"ratio 0.5, {said}"]
    unsure = changed("seed=2 prune.ratio=0.5", (5, -1, 10))
    assert "20 to 26 % less energy† in 2 of 3" in in_words([*jobs, unsure])[0]
    assert in_words([replace(job, name=f"seed={i}") for i, job in enumerate(jobs)]) == [said]
    assert in_words([*jobs, jobs[0]])[0].startswith("ratio 0.5, 2 seeds, 3 measurements: ")
    again = [replace(job, name="seed=0 prune.ratio=0.5") for job in jobs]  # rerun=true
    assert in_words(again) == [f"ratio 0.5, {said.replace('2 seeds', '2 measurements')}"]


def test_of_many_jobs_words_name_the_best_and_count_the_others():
    good = [changed(f"prune.ratio=0.{i}", (i, i - 1, i + 1)) for i in range(10, 30)]
    bad = [changed(f"prune.ratio=0.9{i}", drop=(5, 4, 6)) for i in range(3)]
    lines = in_words([*bad, *good])
    assert lines[0].startswith("ratio 0.29: 29 % less")
    assert len(lines) == SAID + 1
    assert lines[-1].startswith("… and 7 more")
    assert (
        "20 save energy with no loss of accuracy seen, 3 lose accuracy, in 0 no saving was seen" in lines[-1]
    )


def test_names_are_shortened_to_what_is_needed_to_tell_them_apart():
    assert short(["data=acsf1 prune.ratio=0.5 quant.mode=none runtime=eager"]) == [
        "acsf1 ratio=0.5 quant=none eager"
    ]
    assert short(["job", "train.clip=null"]) == ["job", "clip=null"]
    same = ["prune.ratio=1 quant.ratio=2", "quant.ratio=1 prune.ratio=2"]
    assert short(same) == same


def test_failed_jobs_and_warnings_are_shown():
    shown = text(sweep_table([row(warnings="it drifts")], {"bad job": "boom"}, "sweep"))
    assert "FAILED bad job: boom" in shown
    assert "it drifts" in shown


def test_what_is_said_of_several_jobs_is_said_once_with_its_range():
    warnings = [f"it drifts by {x} %; foreign load of {y} cores" for x, y in ((5, 1.5), (12, 0.5))]
    shown = text(sweep_table([row(f"a={i}", warnings=w) for i, w in enumerate(warnings)], {}, "sweep"))
    assert "⚠ it drifts by 5 to 12 % (a=0, a=1)" in shown
    assert "⚠ foreign load of 0.5 to 1.5 cores (a=0, a=1)" in shown
    skipped = {f"quant.mode=qat seed={i}": "qat is not supported" for i in range(5)}
    assert "skipped qat is not supported (5 jobs)" in text(sweep_table([row()], {}, "sweep", skipped))
    advice = {"model=t4": "not for t4; use auto"}
    assert "skipped not for t4; use auto (model=t4)" in text(sweep_table([row()], {}, "sweep", advice))


def test_without_a_terminal_the_width_is_fixed(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal().width == 100
    monkeypatch.setenv("COLUMNS", "80")
    assert terminal().width == 80


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0123, "12.3 mJ"),
        (1.5e-6, "1.5 µJ"),
        (1234.0, "1.23 kJ"),
        (2.5e6, "2.5 MJ"),
        (0.0, "0 J"),
        (0.00099963, "1 mJ"),
        (9.48e-7, "948 nJ"),
    ],
)
def test_numbers_have_three_digits_and_a_prefix(value, shown):
    assert si(value, "J") == shown


def test_an_artifact_with_more_bytes_is_larger():
    assert times_smaller(1.999, ".2f") == "2.00 times smaller"
    assert times_smaller(0.49, ".2f") == "2.04 times larger"
