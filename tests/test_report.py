from dataclasses import replace

import pytest

from tsexp.report.console import _si, sweep_table, table
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


def text(renderable):
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


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
        "control, dense fp32 eager: 81.0 %, 75.0 % before tuning",
        "on 40 validation series",
        "70.0 %",
        "drop +2.0 points",
    ):
        assert said in shown
    for said in ("21 ms", "500 mJ†", "3 ms", "61 s", "610 J†", "12 s", "after 123,456 series"):
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
    assert ("val. acc. %" in shown) == (series > 0)
    assert "val. acc. %" not in text(sweep_table([made], {}, "sweep"))


def test_failed_jobs_and_warnings_are_shown():
    shown = text(sweep_table([row(warnings="it drifts")], {"bad job": "boom"}, "sweep"))
    assert "FAILED" in shown
    assert "boom" in shown
    assert "it drifts" in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0123, "12.3 mJ"), (1.5e-6, "1.5 µJ"), (1234.0, "1.23 kJ"), (2.5e6, "2.5 MJ"), (0.0, "0 J")],
)
def test_numbers_have_three_digits_and_a_prefix(value, shown):
    assert _si(value, "J") == shown
