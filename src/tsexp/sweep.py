"""What surrounds the jobs of ``--multirun``: checked before the first, one table and one picture after the last."""

from __future__ import annotations

import atexit
import json
import shlex
import sys
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from tsexp import config as configs
from tsexp.cache import write_json
from tsexp.config import Config, ConfigError, TrackingConfig, Unsupported, digest
from tsexp.jobs import OUTCOME, SWEEP, read_outcome


class Sweep(Callback):
    """Hydra's callback for sweeps; does nothing in a single run."""

    _open: tuple[TrackingConfig, str] | None = None

    def _abandon(self) -> None:
        """Close the parent run of a sweep that was interrupted."""
        if self._open is not None:
            from tsexp import tracking

            tracking.close_sweep(*self._open, ok=False, note="interrupted; the same command goes on where it stopped", files=[])

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check every job, then make the store and the parent run."""
        try:
            self._start(config)
        except ConfigError as error:
            print(f"tsexp: error: {error}", file=sys.stderr)
            sys.exit(2)
        except Exception:  # Hydra would only warn, and start the jobs
            traceback.print_exc()
            sys.exit(1)

    def _start(self, config: DictConfig) -> None:
        first, names = _check_all(config)
        from tsexp import tracking

        overrides = sorted(config.hydra.overrides.task)
        name = " ".join(o for o in overrides if o.split("=")[0] not in ("rerun",)) or "sweep"
        parent = tracking.sweep_run(first.tracking, name, digest(overrides))
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"*/{OUTCOME}"):  # by another sweep, in a folder that hydra.sweep.dir fixes
            left.unlink()
        self._open = first.tracking, parent
        atexit.register(self._abandon)
        write_json(
            folder / SWEEP,
            {
                "parent": parent,
                "tracking": asdict(first.tracking),
                "names": names,
                "command": shlex.join(["python", "-m", "tsexp", "-m", *overrides]),
            },
        )

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Show the table and the picture; end with status 1 if a job failed."""
        try:
            status = self._end(config)
        except Exception:
            traceback.print_exc()
            status = 1
        if status:
            sys.exit(status)

    def _end(self, config: DictConfig) -> int:
        from rich.console import Console

        from tsexp import report, tracking

        folder = Path(config.hydra.sweep.dir)
        about = json.loads((folder / SWEEP).read_text())
        store = TrackingConfig(**about["tracking"])
        outcomes = {int(p.parent.name): read_outcome(p.parent) for p in folder.glob(f"*/{OUTCOME}") if p.parent.name.isdigit()}
        ordered = [o for _, o in sorted(outcomes.items()) if o is not None]
        client = tracking.store(store)
        measured = [o for o in ordered if o.ok and o.run_id]
        # A job that was found has the name that it was first measured under; here it has this sweep's.
        rows = [replace(r, name=o.name) for o, r in zip(measured, report.read(client, [o.run_id or "" for o in measured]), strict=True)]
        skipped = {o.name: (o.error or "").splitlines()[0].removesuffix("; supported:") for o in ordered if o.status == "skipped"}
        failed = {f"{o.name} (#{i})": o.error or o.status for i, o in enumerate(ordered) if not o.ok and o.status != "skipped"}
        missing = max(0, len(about["names"] or ordered) - len(ordered))
        if missing:
            failed[f"{missing} job(s)"] = "did not start or did not end"
        found = sum(o.status == "found" for o in ordered)
        counts = {"of them measured before": found, "skipped": len(skipped), "failed": len(failed)}
        title = ", ".join([f"{len(rows)} jobs", *(f"{n} {what}" for what, n in counts.items() if n)])
        console = Console(width=None if sys.stdout.isatty() else 170)
        console.print(report.sweep_table(rows, failed, title, skipped))
        picture = report.sweep_figure(rows, folder / "sweep.png")
        if picture:
            console.print(f"picture: {picture.absolute()}", soft_wrap=True)
        console.print(ui_line(store), soft_wrap=True, markup=False)
        note = "\n".join([f"`{about['command']}`", "", *(f"- {o.name}: {o.status} {o.run_id or o.error}" for o in ordered)])
        tracking.close_sweep(store, about["parent"], not failed, note, [picture] if picture else [])
        self._open = None
        for name, error in failed.items():
            print(f"tsexp: failed: {name}: {error}", file=sys.stderr)
        return 1 if failed else 0


def ui_line(store: TrackingConfig) -> str:
    """Say how to open the MLflow UI on this store."""
    if store.uri.startswith("http"):
        return f"compare: {configs.redact(store.uri)}"
    return f"compare: mlflow ui --host 127.0.0.1 --backend-store-uri {shlex.quote(configs.redact(store.uri))}"


def place(sweep_dir: str, number: int) -> tuple[str | None, str | None]:
    """Return the run id of the sweep whose folder this is, and the name of its job with this number."""
    file = Path(sweep_dir) / SWEEP
    if not file.exists():
        return None, None
    about = json.loads(file.read_text())
    return about["parent"], about["names"][number] if about["names"] else None


def _check_all(config: DictConfig) -> tuple[Config, list[str] | None]:
    """Check each job of a plain sweep (other sweepers choose their jobs on the way); return the first and the names of all."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    from tsexp import pipeline

    overrides = list(config.hydra.overrides.task)
    plain = str(config.hydra.sweeper._target_).endswith(".BasicSweeper")
    if not plain:
        return configs.parse(_without_hydra(config)), None
    parameters = config.hydra.sweeper.get("params") or {}
    every = [f"{k}={v}" for k, v in parameters.items()] + overrides
    loader = GlobalHydra.instance().config_loader()
    batches = BasicSweeper.split_arguments(OverridesParser.create(config_loader=loader).parse_overrides(every), None)
    jobs = [job for batch in batches for job in batch]
    checked, unsupported = [], []
    for job in jobs:
        try:
            cfg = configs.parse(_without_hydra(loader.load_sweep_config(config, list(job))))
            try:
                pipeline.check(cfg)
            except Unsupported as error:  # skipped when its turn comes
                unsupported.append(error)
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            what = str(error) if isinstance(error, ConfigError) else configs.explain(error)
            raise ConfigError(configs.redact(f"job {' '.join(job)}: {what}\nnothing was started")) from None
        checked.append(cfg)
    if len(unsupported) == len(jobs):
        raise ConfigError(f"{unsupported[0]}\nno job of this sweep can run; nothing was started")
    # Every job has the same overrides in the same order; what varies names it.
    varying = [i for i, values in enumerate(zip(*jobs, strict=True)) if len(set(values)) > 1]
    return checked[0], [configs.redact(" ".join(job[i] for i in varying) or " ".join(job) or "job") for job in jobs]


def _without_hydra(config: DictConfig) -> DictConfig:
    plain = config.copy()
    with open_dict(plain):
        plain.pop("hydra", None)
    return plain
