"""Where `Scores` was before there were steps: pruning methods of somebody's own import it from here."""

from tsexp.compress.prune import Scores

__all__ = ["Scores"]
