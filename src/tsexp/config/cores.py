"""How many cores this process may use, and how many jobs and threads they are enough for."""

from __future__ import annotations

from tsexp.config.errors import ConfigError


def usable_cores() -> int:
    """Return how many cores this process may use, by its affinity and by the quota of a container."""
    import joblib

    return int(joblib.cpu_count())


def at_once(*threads: int) -> int:
    """Return how many jobs with so many threads the cores are enough for that this process may use."""
    return max(1, usable_cores() // max(threads))


def check_threads(threads: int) -> None:
    """Refuse to measure with more threads than cores.

    Raises
    ------
    ConfigError
        If there are so many.
    """
    if threads > (cores := usable_cores()):
        raise ConfigError(
            f"measure.threads={threads}, but {cores} core(s) can be used here: threads would wait for each "
            "other, and the waiting of the dense model would count as saved; take no more"
        )
