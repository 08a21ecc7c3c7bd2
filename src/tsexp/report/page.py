"""The interactive page: one file with everything in it, which needs no network."""

from __future__ import annotations

import gzip
import html
import json
import math
import re
from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexp.marks import ESTIMATED
from tsexp.report import company
from tsexp.report.console import ESTIMATE, FRONT
from tsexp.report.frozen import Frozen
from tsexp.report.points import SETUP, colours, prefer_measured
from tsexp.report.statistics import aggregate, processor
from tsexp.report.style import relative
from tsexp.system.files import whole

if TYPE_CHECKING:
    import pandas as pd

TEMPLATE = Path(__file__).with_name("page.html")
SHOWN = (
    *(
        "run_name",
        "dataset",
        "model",
        "method",
        "scope",
        "ratio",
        "mode",
        "runtime",
        "seed",
        "warnings",
        "invalid_reasons",
    ),
    *(
        "accuracy_drop_pt",
        "accuracy_drop_lo",
        "accuracy_drop_hi",
        "latency_p50_ms",
        "latency_p90_ms",
        "latency_p99_ms",
    ),
    *(
        "speedup",
        "speedup_lo",
        "speedup_hi",
        "cpu_speedup",
        "cpu_speedup_lo",
        "cpu_speedup_hi",
        "series_per_s",
    ),
    *("parameters", "macs", "bytes", "size_ratio", "peak_mb", "val_series"),
    *("cost_load_ms", "cost_first_call_ms", "cost_train_s", "cost_compress_s", "cost_break_even_inferences"),
)
"""Columns of the results that the page shows as they are; energies come with them, for each side that has
any."""


def write(frozen: Frozen, path: Path, ui: str) -> Path:
    """Write the page; equal results give equal bytes.

    Parameters
    ----------
    frozen
        The results.
    path
        Of the file.
    ui
        Where the MLflow UI answers, such as ``http://127.0.0.1:5000``: each run links to its page there. A
        name and password in it are left out.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        If `ui` is no http address.
    """
    from plotly.offline import get_plotlyjs

    if not re.match(r"https?://", ui):
        raise ValueError(
            f"the MLflow UI must be an http:// or https:// address, as in http://127.0.0.1:5000, not {ui!r}"
        )
    parts = {
        "title": html.escape(f"Results of {frozen.about['experiment']}"),
        "data": _inert(_data(frozen, re.sub(r"(?<=://)[^/@]*@", "", ui.rstrip("/")))),
        "plotly": b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode(),
    }
    # One pass, so that nothing in the store can pose as a placeholder.
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], TEMPLATE.read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _data(frozen: Frozen, ui: str) -> dict[str, Any]:
    runs = frozen.results[frozen.results["scored"]]
    sides = [s for s in ("measured", "estimated") if runs[f"{s}_j"].notna().any()]
    shares = {"accuracy_pct": "accuracy", "macro_f1_pct": "macro_f1"}
    shares |= {f"{of}_accuracy_pct": f"{of}_accuracy" for of in ("control", "dense", "val")}
    energies = [f"{side}_{what}" for side in sides for what in ("j", "saving_pct", "saving_lo", "saving_hi")]
    setups = _setups(runs)
    first, experiments = frozen.about["experiment_id"], frozen.about.get("experiment_ids", {})
    return {
        "runs": [
            {name: _plain(run[name]) for name in (*SHOWN, *energies)}
            | _relative(run, sides)
            | {name: _plain(100 * run[column]) for name, column in shares.items()}
            | {"setup": setups[tuple(run[SETUP])]}
            | {"url": f"{ui}/#/experiments/{experiments.get(run['run_id'], first)}/runs/{run['run_id']}"}
            for _, run in runs.iterrows()
        ],
        "axes": _axes(sides),
        "sides": {side: ESTIMATE if side == "estimated" else "" for side in sides},
        "setups": list(dict.fromkeys(setups[tuple(run[SETUP])] for _, run in runs.iterrows())),
        "commonest": _first(setups, runs),
        "no_energy": int((~runs["valid"]).sum()),
        "invalid": len(frozen.results) - len(runs),
        "left_out": {reason: len(names) for reason, names in frozen.about.get("left_out", {}).items()},
        "colours": colours(frozen),
        "front": FRONT,
        "advice": _advice(frozen),
    }


def _advice(frozen: Frozen) -> list[str]:
    """What to deploy, in words, and by which rule; nothing if no two models can be compared."""
    said = company.advice(frozen, company.compared(aggregate(frozen)))
    return [*(f"{label}: {words}" for label, words in said), *([company.RULE] if said else [])]


def _axes(sides: list[str]) -> dict[str, dict[str, Any]]:
    """What an axis can show.

    Its label, its interval's columns, whether it is logarithmic, and which end is the better one: of two axes
    that have one, there is a Pareto front.
    """
    axes: dict[str, dict[str, Any]] = {}
    for side in sides:
        mark = ESTIMATE if side == "estimated" else ""
        axes[f"{side}_j"] = {"label": f"{side} energy per inference{mark} (J)", "log": True, "better": "low"}
        axes[f"{side}_relative"] = _factor(f"{side} energy{mark} (control = 1)", f"{side}_relative", "low")
    paid = "inferences after which compressing has paid for itself"
    return axes | {
        "accuracy_pct": {"label": "test accuracy (%)", "better": "high"},
        "val_accuracy_pct": {"label": "accuracy on validation series (%)", "better": "high"},
        "macro_f1_pct": {"label": "macro F1 (%)", "better": "high"},
        "accuracy_drop_pt": {
            "label": "accuracy drop against the control (points)",
            "low": "accuracy_drop_lo",
            "high": "accuracy_drop_hi",
            "better": "low",
        },
        "speedup": _factor("speedup, wall time", "speedup", "high"),
        "cpu_speedup": _factor("speedup, CPU time", "cpu_speedup", "high"),
        "latency_p50_ms": {"label": "latency p50 (ms per call)", "log": True, "better": "low"},
        "series_per_s": {"label": "throughput (series per second)", "log": True, "better": "high"},
        "bytes": {"label": "bytes on disk", "log": True, "better": "low"},
        "parameters": {"label": "parameters", "log": True, "better": "low"},
        "macs": {"label": "multiply-accumulates per series", "log": True, "better": "low"},
        "peak_mb": {"label": "peak memory, loaded and called alone (MiB)", "better": "low"},
        "cost_break_even_inferences": {"label": paid, "log": True, "better": "low"},
        "ratio": {"label": "pruning ratio"},
    }


def _factor(label: str, name: str, better: str) -> dict[str, Any]:
    """A ratio to the control, with its interval: on a logarithmic axis, half and twice are equally far."""
    return {"label": label, "low": f"{name}_lo", "high": f"{name}_hi", "log": True, "better": better}


def _relative(run: pd.Series, sides: list[str]) -> dict[str, Any]:
    """Energies relative to the control's; the most that is saved is the least that is left."""
    ends = {"": "pct", "_lo": "hi", "_hi": "lo"}
    savings = {f"{s}_relative{end}": run[f"{s}_saving_{of}"] for s in sides for end, of in ends.items()}
    return {name: None if math.isnan(v) else relative(float(v)) for name, v in savings.items()}


def _setups(runs: pd.DataFrame) -> dict[tuple[Any, ...], str]:
    """Name of each setup; energies of different ones are not comparable."""
    named = {}
    for _, run in runs.drop_duplicates(SETUP).iterrows():
        threads = f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
        named[tuple(run[SETUP])] = (
            f"{processor(run)}, {threads}, batch {run['batch_size']}, energy by {run['energy_source']}"
        )
    twice = {n for n in named.values() if list(named.values()).count(n) > 1}
    return {key: f"{name} ({key[0][:6]})" if name in twice else name for key, name in named.items()}


def _first(setups: dict[tuple[Any, ...], str], runs: pd.DataFrame) -> str:
    """Which is shown first: the commonest, but one that was measured before one that is estimated."""
    every, valid = (
        Counter(of[SETUP].itertuples(index=False, name=None)) for of in (runs, runs[runs["valid"]])
    )
    sides: dict[bool, list[tuple[Any, ...]]] = {True: [], False: []}
    for key in setups:
        sides[str(key[SETUP.index("energy_source")]).startswith(ESTIMATED)].append(key)
    estimates, measured = (
        max(sides[side], key=lambda key: (valid[key], every[key]), default=None) for side in (True, False)
    )
    if measured and (not estimates or prefer_measured(valid[estimates], valid[measured])):
        return setups[measured]
    return setups[estimates] if estimates else ""


def _plain(value: Any) -> Any:
    """As JSON has it: numpy's numbers as Python's, and nothing for what is not a number."""
    value = value.item() if hasattr(value, "item") else value
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _inert(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return (
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )
