"""From raw windows and scores to the numbers that are kept, and whether they may be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tsexp import tasks
from tsexp.data import Dataset, FloatArray, IntArray
from tsexp.energy import hardware, validity
from tsexp.energy.statistics import summarize
from tsexp.energy.validity import ESTIMATE
from tsexp.marks import NOT_FINITE

if TYPE_CHECKING:
    from tsexp.energy.measuring import Scores


@dataclass(frozen=True)
class Record:
    """One measurement of one artifact.

    Attributes
    ----------
    metrics
        By the fixed names (docs/measuring.md: the numbers).
    energy_source
        ``zeus:nvml``, ``zeus:rapl``, ``zeus:soc`` or ``estimated:cpu_time``.
    invalid_reasons
        Why it must stay out of tables; empty if valid.
    warnings
        Why to look twice.
    raw
        What the worker returned: every window, the latencies, the checks.
    scores, reference_scores
        Class scores on the whole test split, float32 (series, classes).
    labels
        int64 (series,).
    manifest
        Of the artifact that was measured.
    hardware
        The machine.
    is_reference
        Whether the artifact is the reference itself.
    """

    metrics: dict[str, float]
    energy_source: str
    invalid_reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    raw: dict[str, Any] = field(repr=False)
    scores: FloatArray = field(repr=False)
    reference_scores: FloatArray = field(repr=False)
    labels: IntArray = field(repr=False)
    manifest: dict[str, Any] = field(repr=False)
    hardware: dict[str, Any] = field(repr=False)
    is_reference: bool = False

    @property
    def valid(self) -> bool:
        """Nothing speaks against it."""
        return not self.invalid_reasons

    def with_costs(
        self, train: dict[str, Any], compress: Sequence[dict[str, Any]], watts_per_core: float
    ) -> Record:
        """Add what it took to get there, and after how many inferences compression has paid for itself.

        Parameters
        ----------
        train, compress
            As `costs_of`.
        watts_per_core
            For joules where this record's are estimated, too.
        """
        costs = costs_of(train, compress, self.energy_source, watts_per_core)
        compress_j = costs["cost/compress_j"]
        reference_j = self.metrics.get("energy/reference_per_inference_j", 0.0)
        gained_j = reference_j - self.metrics.get("energy/per_inference_j", 0.0)
        if gained_j > 0 and self.metrics.get("vs_dense/energy_saving_lo", 0.0) > 0:  # noise pays nothing back
            costs["cost/break_even_inferences"] = compress_j / gained_j
        return replace(self, metrics=self.metrics | {k: float(v) for k, v in costs.items() if np.isfinite(v)})


def costs_of(
    train: dict[str, Any], compress: Sequence[dict[str, Any]], source: str, watts_per_core: float
) -> dict[str, float]:
    """Seconds and joules of training and of compression.

    Parameters
    ----------
    train, compress
        `Entry.cost` of the dense model; of everything that made the artifact of it. Of what trained, perhaps
        with the ``device``: CPU time says nothing of a GPU, and there is no estimate then.
    source
        Of the joules; NaN if that did not read them.
    watts_per_core
        For joules that are estimated.
    """

    def joules(cost: dict[str, Any]) -> float:
        if source == ESTIMATE:
            return float(cost["cpu_s"]) * watts_per_core if cost.get("device", "cpu") == "cpu" else np.nan
        return float(cost["energy_j"].get(source, np.nan))

    return {
        "cost/train_s": float(train["wall_s"]),
        "cost/train_j": joules(train),
        "cost/compress_s": float(sum(cost["wall_s"] for cost in compress)),
        "cost/compress_j": float(sum(map(joules, compress))),
    }


def assemble(
    raw: dict[str, Any],
    scores: Scores,
    reference_scores: Scores,
    manifest: dict[str, Any],
    dense: dict[str, Any],
    dataset: Dataset,
) -> Record:
    """Make a `Record` of what the processes returned, what was answered, and what was counted on both."""
    task = tasks.of(dataset)
    invalid, warnings = validity.judge(raw)
    for name, values in (("artifact", scores), ("reference", reference_scores)):
        if not (np.isfinite(values.test).all() and np.isfinite(values.val).all()):
            invalid += (f"the {name} answers series with {NOT_FINITE}",)
    pointless = task.pointless(scores.test, dataset.y_test)
    if pointless:
        warnings += (f"the artifact answers {pointless}",)
    y_val = dataset.y_train[dataset.val]
    control = task.quality(reference_scores.test, dataset.y_test, "test")
    metrics = task.quality(scores.test, dataset.y_test, "test")
    metrics |= task.drop(scores.test, reference_scores.test, dataset.y_test)
    first = task.HEADLINE
    metrics |= {f"test/control_{first}": control[f"test/{first}"], "val/series": len(y_val)}
    metrics["memory/peak_mb"] = scores.peak_mb
    if len(y_val):
        lost_pt = task.loss_pt(scores.val, y_val).mean() - task.loss_pt(reference_scores.val, y_val).mean()
        metrics |= task.quality(scores.val, y_val, "val") | {f"val/{first}_drop_pt": lost_pt}
    sizes = sizes_of(manifest, dense.get("channels", 0))
    sizes["vs_dense/size_ratio"] = dense["bytes"] / manifest["bytes"]
    return Record(
        metrics=combined(metrics | sizes, summarize(raw)),
        energy_source=raw["source"],
        invalid_reasons=invalid,
        warnings=warnings,
        raw=raw,
        scores=scores.test,
        reference_scores=reference_scores.test,
        labels=dataset.y_test,
        manifest=manifest,
        hardware=hardware.describe(manifest["device"]),
    )


def combined(known: dict[str, float], measured: dict[str, float]) -> dict[str, float]:
    """Return all metrics of a record: those known before, of its windows, and what follows from both."""
    numbers = known | measured
    if numbers.get("test/accuracy") and "energy/per_inference_j" in numbers:
        numbers["energy/per_correct_j"] = numbers["energy/per_inference_j"] / numbers["test/accuracy"]
    # An invalid record may divide by zero.
    return {k: float(v) for k, v in numbers.items() if np.isfinite(v)}


def sizes_of(manifest: dict[str, Any], dense_channels: int) -> dict[str, float]:
    """Parameters, bytes, MACs per series where they are known, and the share of channels that was pruned.

    Parameters
    ----------
    manifest
        Of the artifact.
    dense_channels
        That the model had before; 0 if it has none to prune.
    """
    sizes = {"size/parameters": manifest["parameters"], "size/bytes": manifest["bytes"]}
    if manifest["macs"] is not None:
        sizes["size/macs"] = manifest["macs"]
    if "channels" in manifest and dense_channels:
        sizes["prune/achieved_ratio"] = 1 - manifest["channels"] / dense_channels
    return sizes
