"""``python -m tsexp.doctor``: what this machine can measure, and what is missing; ``--selftest`` proves the meter."""

from __future__ import annotations

import argparse
import math
import platform
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tsexp import config as configs
from tsexp.config import Config, ConfigError, MeasureConfig

PLANTED = 0.10
ROUNDS = 5
INSTRUCTIONS = {
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
}
ADVICE = {
    "rapl": "Needs a bare-metal x86 machine (most virtual machines hide RAPL) and read permission: run as root, or run Zeus' daemon zeusd",
    "soc": "Only on Apple silicon (pip install 'zeus\\[apple]') and NVIDIA Jetson",
    "nvml": "Needs an NVIDIA GPU with its driver",
}


def main(arguments: list[str] | None = None) -> int:
    """Print the findings; return 1 if the self-test fails."""
    parser = argparse.ArgumentParser(prog="python -m tsexp.doctor", description="What this machine can measure, and what is missing.")
    parser.add_argument(
        "--selftest", action="store_true", help=f"measure an artifact against itself, and against one with {PLANTED:.0%} more work (minutes)"
    )
    parser.add_argument("--quick", action="store_true", help="self-test with measure=quick only")
    parser.add_argument("--meter", default="auto", metavar="MODULE:CLASS", help="self-test of a meter of your own (docs/extending.md)")
    chosen = parser.parse_args(arguments)
    try:
        _measure("quick", chosen.meter)
    except ConfigError as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(findings())
    if not chosen.selftest:
        return 0
    return 0 if selftest(console, with_paper=not chosen.quick, meter=chosen.meter) else 1


def findings() -> Table:
    """Everything that decides what can be measured here, and what to do about what is missing."""
    from tsexp import runtimes
    from tsexp.energy import hardware, meters

    out = Table(title="What this machine can measure", title_justify="left", show_header=False)
    out.add_column(style="bold")
    out.add_column(overflow="fold")
    facts = hardware.describe()
    flags = hardware.cpu_flags()
    out.add_row("CPU", f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB")
    for kind, names in INSTRUCTIONS.items():
        out.add_row(f"{kind} instructions", ", ".join(n for n in names if n in flags) or "none found")
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    out.add_row("frequency governor", governor.read_text().strip() if governor.exists() else "not visible (typical of a virtual machine)")
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
        out.add_row(f"runtime {name}", (ready or "none") + (f"; [red]not here[/red]: {escape(problems)}" if problems else ""))
    for device in ("cpu", "cuda"):
        for kind, problem in meters.available(device).items():
            if problem:
                out.add_row(f"meter {kind} ({device})", f"no: {escape(problem.rstrip('.'))}. {ADVICE[kind]}")
            else:
                meter = meters.ZeusMeter(kind)
                out.add_row(f"meter {kind} ({device})", f"[green]yes[/green]: {meter.scope}; refreshed every {meter.resolution_s:g} s")
    meter_used = meters.choose("cpu", "any", _measure("quick").watts_per_core)
    out.add_row("used for CPU runs", f"{meter_used.source}: {meter_used.scope}")
    return out


def selftest(console: Console, with_paper: bool = True, meter: str = "auto") -> bool:
    """Measure an artifact against itself and against one with planted extra work; print what was seen.

    Returns
    -------
    bool
        True if the intervals of the artifact against itself hold a saving of 0 (one of five may miss: they are 95 % intervals), and the planted
        work was found, to within 3 points.
    """
    from tsexp import data, models, runtimes, training
    from tsexp.cache import Cache
    from tsexp.config import QuantConfig, RuntimeConfig
    from tsexp.energy import measure
    from tsexp.training import Fitted

    cfg = _config()
    dataset = data.load(cfg.data, cfg.paths.data, 0)
    out = Table(title="Self-test: saving and speedup with 95 % intervals", title_justify="left")
    for head in ("measure", "what", "seed", "saving %", "speedup", "CPU speedup", "as it must be", "warnings"):
        out.add_column(head, overflow="fold")
    with tempfile.TemporaryDirectory(prefix="tsexp-selftest-") as folder:
        cache = Cache(Path(folder))

        def build(target: Path) -> None:  # untrained: a network's cost does not depend on its weights
            training.save(models.Classifier(models.architecture(cfg.model, dataset)), [], target)

        fitted = Fitted(cache.stage("selftest", 1, {}, build))
        artifact = runtimes.deploy(fitted, QuantConfig("none"), RuntimeConfig("eager", "cpu"), dataset, cache)
        plans = [("quick", ROUNDS)] + ([("paper", 1)] if with_paper else [])
        verdicts, resolved = [], {}
        for name, rounds in plans:
            config = _measure(name, meter)
            blind, misses, invalid = 0.0, 0, 0
            for seed in range(rounds + 1):
                planted = PLANTED if seed == rounds else 0.0
                what = f"{PLANTED:.0%} more work" if planted else "itself"
                record = measure(artifact, artifact, dataset, config, seed, f"{name}: against {what}", planted=planted)
                m = record.metrics
                low, high = (m.get(f"vs_dense/energy_saving_{bound}", math.inf) for bound in ("lo", "hi"))  # an invalid record may have none
                right = high < 0 and abs(m["vs_dense/energy_saving_pct"] + 100 * planted) < 3 if planted else low <= 0 <= high
                invalid += not record.valid
                if planted:
                    verdicts.append(right)
                else:
                    misses += not right
                    blind = max(blind, abs(low), abs(high))
                out.add_row(
                    name, what, str(seed),
                    _interval(m, "energy_saving_pct", "energy_saving", "{:.2f}"),
                    _interval(m, "speedup", "speedup", "{:.3f}"),
                    _interval(m, "cpu_speedup", "cpu_speedup", "{:.3f}"),
                    "yes" if right else "NO",
                    "; ".join(record.invalid_reasons + record.warnings),
                )  # fmt: skip
            verdicts += [misses <= rounds // ROUNDS, not invalid]
            resolved[name] = blind
    ok = all(verdicts)
    console.print(out)
    for name, blind in resolved.items():
        console.print(f"measure={name} resolves savings above about {blind:.1f} % here (largest bound of the artifact against itself)")
    console.print("self-test passed" if ok else "self-test FAILED: do not trust numbers from this machine", style="green" if ok else "bold red")
    return ok


def _interval(metrics: dict[str, float], key: str, bounds: str, form: str) -> str:
    value, low, high = (form.format(metrics.get(f"vs_dense/{k}", math.nan)) for k in (key, f"{bounds}_lo", f"{bounds}_hi"))
    return f"{value} [{low}, {high}]"


def _config(*overrides: str) -> Config:
    from hydra import compose, initialize_config_dir

    configs.register()
    with initialize_config_dir(str(configs.conf_dir()), version_base="1.3"):
        return configs.parse(compose("config", list(overrides)))


def _measure(name: str, meter: str = "auto") -> MeasureConfig:
    return replace(_config(f"measure={name}", f"measure.meter={meter}").measure, require="any")


if __name__ == "__main__":
    sys.exit(main())
