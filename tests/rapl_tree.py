"""A made RAPL tree, as the kernel shows one, whose counters rise while they are read.

No thread feeds them: on a busy machine it would be late, and the power would seem to be less.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

RANGE_UJ = 262_143_328_850
"""Where a real package counter starts again from 0."""


def set_counter(zone: Path, microjoules: float) -> None:
    """Write a counter so that no reader ever sees half of it."""
    partial = zone / f".energy_uj.{os.getpid()}"
    partial.write_text(f"{int(microjoules)}\n")
    partial.replace(zone / "energy_uj")


def add_zone(zone: Path, name: str, microjoules: float = 0) -> Path:
    """Make one zone of a RAPL tree."""
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    set_counter(zone, microjoules)
    return zone


def rising(watts: dict[Path, float], clock: Callable[[], float]) -> Callable[[object], float]:
    """`RAPLFile.read` of Zeus that sets the counter of a zone, to what it is at `clock`, and reads it."""
    from zeus.device.cpu.rapl import RAPLFile

    read = RAPLFile.read

    def write_and_read(self: RAPLFile) -> float:
        zone = Path(self.path)
        set_counter(zone, 1e6 * (1 + watts[zone] * clock()))
        found: float = read(self)
        return found

    return write_and_read


def planted(root: Path, watts: dict[Path, float]) -> str:
    """Code that does so in another process, from now on, where `root` is the machine's tree."""
    told = {str(zone): power for zone, power in watts.items()}
    return "\n".join(
        [
            f"import sys\nsys.path.append({str(Path(__file__).parent)!r})",
            "import pathlib, time, rapl_tree, zeus.device.cpu.rapl as rapl",
            f"rapl.RAPL_DIR = {str(root)!r}",
            f"watts = {{pathlib.Path(zone): power for zone, power in {told!r}.items()}}",
            f"clock = lambda: time.perf_counter() - {time.perf_counter()!r}",
            "rapl.RAPLFile.read = rapl_tree.rising(watts, clock)",
        ]
    )
