"""``python -m tsexp.doctor``: what this machine can measure, and what is missing.

``--selftest`` proves the meter.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tsexp import config as configs
from tsexp import subcommand
from tsexp.command import called
from tsexp.config import Config, ConfigError
from tsexp.config.compose import composed
from tsexp.system import alive, cpu

if TYPE_CHECKING:
    from tsexp.cache import Cache
    from tsexp.data import Dataset
    from tsexp.energy import Record
    from tsexp.training import Fitted

PLANTED = 0.02
ROUNDS = 20
"""Of the artifact against itself; and, at most, against one with planted work: as many as it takes for an
interval of half of what is planted."""
LEAST_P = 0.01
"""Of a meter that is right, 1 in 100 self-tests fails for this; of one whose 95 % intervals hold the truth in
75 %, about 5 in 6 do."""
FAILED = "self-test FAILED: do not trust numbers from this machine"
TOO_WIDE = (
    f"self-test FAILED: the intervals are right, but too wide to see {PLANTED:.0%}: quiet the machine, or "
    "raise measure.processes"
)
INSTRUCTIONS = {
    "int8": (*cpu.VNNI, "asimddp", "i8mm"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
}
ADVICE = {
    "rapl": "Needs a bare-metal x86 machine (most virtual machines hide RAPL) and read permission: run as "
    "root, run Zeus' daemon zeusd, or permit it by a udev rule (--udev prints it)",
    "soc": "Only on Apple silicon (pip install 'zeus\\[apple]') and NVIDIA Jetson",
    "nvml": "Needs an NVIDIA GPU with its driver",
}

UDEV_RULE = """\
# Members of the group rapl may read the energy counters of the CPU, and nobody else, for the counters leak
# what other processes compute. As root (the last command applies it at once; a new login, membership):
#   groupadd --system rapl; usermod --append --groups rapl USER
#   python -m tsexp.doctor --udev > /etc/udev/rules.d/70-rapl.rules
#   udevadm control --reload; udevadm trigger --action=add --subsystem-match=powercap
SUBSYSTEM=="powercap", ACTION=="add", KERNEL=="intel-rapl*:*", TEST=="energy_uj", \
RUN+="/bin/chgrp rapl /sys%p/energy_uj", RUN+="/bin/chmod 0440 /sys%p/energy_uj"
"""
"""Lets RAPL be read without root. Its syntax was checked; on a machine with RAPL it was not tried."""


def main(arguments: list[str] | None = None) -> int:
    """Print the findings; return 1 if the self-test fails."""
    parser = argparse.ArgumentParser(
        prog=called("doctor"), description="What this machine can measure, and what is missing."
    )
    parser.add_argument(
        "--selftest",
        action="store_true",
        help=f"measure an artifact against itself {ROUNDS} times, and with {100 * PLANTED:g} %% more work "
        "(minutes)",
    )
    parser.add_argument(
        "--meter",
        default="auto",
        metavar="MODULE:CLASS",
        help="self-test of a meter of your own (docs/extending.md)",
    )
    parser.add_argument(
        "--udev", action="store_true", help="print a udev rule that permits RAPL without root, and do no more"
    )
    chosen = parser.parse_args(arguments)
    if chosen.udev:
        print(UDEV_RULE, end="")
        return 0
    try:
        configs.parse(composed(f"measure.meter={chosen.meter}"))
    except ConfigError as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(findings())
    if not chosen.selftest:
        return 0
    return subcommand.carried_out(
        "doctor", lambda: int(not selftest(console, chosen.meter)), "the self-test says nothing"
    )


def findings() -> Table:
    """Everything that decides what can be measured here, and what to do about what is missing."""
    from tsexp import runtimes
    from tsexp.energy import hardware, meters

    out = Table(title="What this machine can measure", title_justify="left", show_header=False)
    out.add_column(style="bold")
    out.add_column(overflow="fold")
    facts = hardware.describe()
    flags = cpu.flags()
    out.add_row("CPU", f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB")
    for kind, names in INSTRUCTIONS.items():
        found = ", ".join(n for n in names if n in flags) or "none found"
        if kind == "int8" and cpu.int8_largest() < 127:
            found += ": products of int8 overflow here, so weights get 7 bits"
        out.add_row(f"{kind} instructions", found)
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    out.add_row(
        "frequency governor",
        governor.read_text().strip() if governor.exists() else "not visible (typical of a virtual machine)",
    )
    out.add_row("throttling counters", "yes" if hardware.throttle_count() is not None else "not visible")
    out.add_row("system", f"{facts['system']}, Python {platform.python_version()}")
    for package in ("torch", "lightning", "mlflow", "zeus", "aeon"):
        try:
            out.add_row(package, version(package))
        except PackageNotFoundError:
            out.add_row(package, "[red]missing[/red]: make setup")
    for name, modes in runtimes.available().items():
        ready = ", ".join(mode for mode, problem in modes.items() if not problem)
        problems = "; ".join(dict.fromkeys(problem for problem in modes.values() if problem))
        out.add_row(
            f"runtime {name}",
            (ready or "none") + (f"; [red]not here[/red]: {escape(problems)}" if problems else ""),
        )
    for device in ("cpu", "cuda"):
        for kind, problem in meters.available(device).items():
            if problem:
                out.add_row(f"meter {kind} ({device})", f"no: {escape(problem.rstrip('.'))}. {ADVICE[kind]}")
            else:
                meter = meters.ZeusMeter(kind)
                out.add_row(
                    f"meter {kind} ({device})",
                    f"[green]yes[/green]: {meter.scope}; refreshed every {meter.resolution_s:g} s",
                )
    meter_used = meters.choose("cpu", "any", configs.parse(composed()).measure.watts_per_core)
    out.add_row("used for CPU runs", f"{meter_used.source}: {meter_used.scope}")
    return out


def selftest(console: Console, meter: str = "auto") -> bool:
    """Measure an artifact against itself, again and again, and then against one with planted extra work.

    Print what was seen.

    Returns
    -------
    bool
        True if the rounds scatter no more than their own intervals say (`scatter_p`), the planted work was
        found, to within its interval and a point, and every record is valid.
    """
    from tsexp import data, energy, runtimes
    from tsexp.cache import Cache
    from tsexp.config import QuantConfig, RuntimeConfig
    from tsexp.energy import statistics
    from tsexp.report.console import between
    from tsexp.system import processes

    processes.start(energy.PRELOAD)
    cfg = configs.parse(composed("measure=quick", f"measure.meter={meter}"))
    config = replace(cfg.measure, require="any")
    dataset = data.load(cfg.data, cfg.paths.data, 0)
    out = Table(title="Self-test: saving and speedup with 95 % intervals", title_justify="left")
    for head in ("what", "seed", "saving %", "speedup", "CPU speedup", "held", "warnings"):
        out.add_column(head, overflow="fold")

    with alive.scratch("selftest") as folder:
        cache = Cache(folder)
        artifact = runtimes.deploy(
            untrained(cfg, dataset, cache), QuantConfig("none"), RuntimeConfig("eager", "cpu"), dataset, cache
        )
        scores = energy.score(artifact, dataset, config, cache, progress=False)

        def measured(what: str, seed: int, planted: float) -> Record:
            record = energy.measure(
                artifact, artifact, scores, scores, dataset, config, seed, f"against {what}", planted=planted
            )
            out.add_row(
                what, str(seed),
                between(record.metrics, "vs_dense/energy_saving", "{:.2f}", "_pct"),
                between(record.metrics, "vs_dense/speedup", "{:.3f}"),
                between(record.metrics, "vs_dense/cpu_speedup", "{:.3f}"),
                "yes" if _holds(record, -100 * planted) else "no",
                "; ".join(record.invalid_reasons + record.warnings),
            )  # fmt: skip
            return record

        nulls = [measured("itself", seed, 0.0) for seed in range(ROUNDS)]
        more: list[Record] = []
        low, high = -math.inf, math.inf
        # A noisy machine needs more of them before 2 % can be seen at all.
        while len(more) < ROUNDS and high - low > 100 * PLANTED and all(r.valid for r in [*nulls, *more]):
            more.append(measured(f"{PLANTED:.0%} more work", ROUNDS + len(more), PLANTED))
            if more[-1].valid:
                _, low, high = statistics.pooled_saving([r.raw for r in more])
    console.print(out)
    said, passed = _judged(nulls, more)
    console.print(said)
    return passed


def _judged(nulls: list[Record], more: list[Record]) -> tuple[Text, bool]:
    """What rounds of the artifact against itself, and against one with planted work, say of the meter."""
    from tsexp.energy import statistics

    if any(not r.valid for r in [*nulls, *more]):
        return Text("a record is invalid\n").append(FAILED, style="bold red"), False
    saving, low, high = statistics.pooled_saving([r.raw for r in more])
    p = statistics.scatter_p([r.raw for r in nulls])
    right = p >= LEAST_P and low - 1 <= -100 * PLANTED <= high + 1
    found = high < 0
    reach = max(statistics.reach_pct(r.raw) for r in nulls)
    said = Text(
        f"{sum(_holds(r, 0) for r in nulls)} of {len(nulls)} intervals hold 0; the rounds scatter "
        f"{'no ' if p >= LEAST_P else ''}more than their "
        f"intervals say (χ² test, p = {p:.3f}; at least {LEAST_P:g} asked)\n"
        f"{PLANTED:.0%} of planted work {'was' if found else 'was NOT'} found: saving {saving:.2f} "
        f"[{low:.2f}, {high:.2f}] % over {len(more)} round{'s' * (len(more) > 1)} "
        f"(true: {-100 * PLANTED:g} %)\n"
        f"measure=quick resolves savings above about {reach:.1f} % here (the widest interval of the "
        "artifact against itself)\n"
    )
    if right and found:
        return said.append("self-test passed", style="green"), True
    return said.append(TOO_WIDE if right else FAILED, style="bold red"), False


def _holds(record: Record, truth: float) -> bool:
    # An invalid record may have none.
    low, high = (record.metrics.get(f"vs_dense/energy_saving_{end}", math.nan) for end in ("lo", "hi"))
    return low <= truth <= high


def untrained(cfg: Config, dataset: Dataset, cache: Cache) -> Fitted:
    """A model as it is before training: a network's cost does not depend on its weights."""
    import torch

    from tsexp import models, training
    from tsexp.training import Fitted

    def build(target: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            training.save(models.build(cfg.model, dataset), [], target)

    return Fitted(cache.stage("untrained", 1, {"model": asdict(cfg.model), "data": dataset.checksum}, build))


if __name__ == "__main__":
    sys.exit(main())
