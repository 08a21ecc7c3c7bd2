"""Making a fitted model smaller: an ordered list of steps (`fold`), one module each."""

from tsexp.compress.fold import STEPS, asked, check, compress, control, trains, versions

__all__ = ["STEPS", "asked", "check", "compress", "control", "trains", "versions"]
