import pytest

from tsexp.report.console import _si, sweep_table, table
from tsexp.report.figures import _label, _lines, sweep_figure
from tsexp.report.store import Row


def row(name="job", source="estimated:cpu_time", valid=True, ratio=0.3, warnings="", **params):
    metrics = {
        **{f"test/{k}": 0.8 for k in ("accuracy", "macro_f1")},
        **{f"size/{k}": 1234.0 for k in ("parameters", "macs", "bytes")},
        **{f"vs_dense/{k}": 1.5 for k in ("speedup", "speedup_lo", "speedup_hi", "cpu_speedup", "cpu_speedup_lo", "cpu_speedup_hi", "size_ratio")},
        **{f"vs_dense/energy_saving_{k}": 30.0 for k in ("pct", "lo", "hi")},
        **{f"vs_dense/accuracy_drop_{k}": 1.0 for k in ("pt", "lo", "hi")},
        "energy/per_inference_j": 0.0123,
        "latency/p50_ms": 1.2,
        "prune/achieved_ratio": ratio,
    }
    base = {"data.name": "ACSF1", "model.name": "t3", "runtime.name": "eager", "quant.mode": "none", "prune.method": "l1", "prune.ratio": str(ratio)}
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


def test_invalid_records_show_no_energy_but_the_reason():
    shown = text(sweep_table([row(valid=False)], {}, "sweep"))
    assert "12.3 mJ" not in shown
    assert "why" in shown
    assert "saving" not in text(table(row(valid=False)))


def test_failed_jobs_and_warnings_are_shown():
    shown = text(sweep_table([row(warnings="it drifts")], {"bad job": "boom"}, "sweep"))
    assert "FAILED" in shown
    assert "boom" in shown
    assert "it drifts" in shown


def test_the_picture_leaves_invalid_records_out_and_says_nothing_without_rows(tmp_path):
    assert sweep_figure([row(valid=False)], tmp_path / "a.png") is None
    assert sweep_figure([row(), row(ratio=0.5)], tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_lines_are_named_by_what_varies_and_not_by_what_follows_from_it():
    rows = [row(**{"model.name": m, "train.epochs": e, "data.name": d}) for m, e in (("t1", "20"), ("t3", "200")) for d in ("ACSF1", "PLAID")]
    assert {_label(r, rows) for r in rows} == {"ACSF1 t1", "ACSF1 t3", "PLAID t1", "PLAID t3"}
    assert _label(row(), [row(), row(ratio=0.5)]) == "t3"
    rows = [row(**{"prune.method": m}) for m in ("l1", "l2")]
    assert _label(rows[0], rows) == "method=l1"


def test_a_dense_job_is_on_every_line_that_starts_from_it():
    def pruned(method, model="t3", ratio=0.5):
        return row(f"{method} {model}", ratio=ratio, **{"prune.method": method, "prune.finetune_epochs": "30", "model.name": model})

    # The one dense t3 was measured in a sweep over taylor, and stands in this one for both its jobs at ratio 0.
    dense = row("dense t3", ratio=0, **{"prune.method": "taylor", "prune.finetune_epochs": "5"})
    other = row("dense t1", ratio=0, **{"prune.method": "l1", "model.name": "t1"})
    lines = _lines([dense, pruned("l1"), dense, pruned("l2"), pruned("l1", ratio=0.3), other, pruned("l1", "t1")])
    assert {label: [(r.name, float(r.params["prune.ratio"])) for r in members] for label, members in lines.items()} == {
        "t3 method=l1": [("dense t3", 0), ("l1 t3", 0.3), ("l1 t3", 0.5)],
        "t3 method=l2": [("dense t3", 0), ("l2 t3", 0.5)],
        "t1 method=l1": [("dense t1", 0), ("l1 t1", 0.5)],
    }


def test_a_dense_job_alone_has_a_line_of_its_own():
    assert list(map(len, _lines([row("dense", ratio=0), row("dense", ratio=0)]).values())) == [1]


@pytest.mark.parametrize(("value", "shown"), [(0.0123, "12.3 mJ"), (1.5e-6, "1.5 µJ"), (1234.0, "1.23 kJ"), (2.5e6, "2.5 MJ"), (0.0, "0 J")])
def test_numbers_have_three_digits_and_a_prefix(value, shown):
    assert _si(value, "J") == shown
