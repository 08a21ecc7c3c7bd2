"""The description that every model has: plain values, no torch, no pickle."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from tsexp.config import ConfigError
from tsexp.data import Dataset, Preprocessing


@dataclass(frozen=True)
class BaseArch:
    """Everything needed to rebuild a model except what it learns; each family adds its own fields.

    Attributes
    ----------
    channels
        Of a raw series.
    classes
        The labels, in the order of the scores.
    preprocessing
        What happens to a raw series first.
    """

    channels: int
    classes: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def inputs(self) -> int:
        """Channels behind the preprocessing."""
        return self.channels * self.preprocessing.signals

    @classmethod
    def of(cls, dataset: Dataset, **own: Any) -> Self:
        """Describe a model for a dataset; `own` are the family's fields."""
        return cls(dataset.channels, dataset.classes, dataset.preprocessing, **own)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Rebuild from the plain values of ``arch.json``, where tuples are lists.

        Raises
        ------
        ConfigError
            If it describes a model that another version of this package made.
        """
        known: list[tuple[dict[str, Any], Any]] = [(raw, cls), (raw["preprocessing"], Preprocessing)]
        if unknown := sorted(key for of, kind in known for key in of.keys() - {f.name for f in fields(kind)}):
            raise ConfigError(
                f"arch.json is of another version of tsexp, with {', '.join(unknown)}: train the model "
                "again, or use the version that its run names"
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        values["preprocessing"] = Preprocessing.from_dict(raw["preprocessing"])
        return cls(**values)
