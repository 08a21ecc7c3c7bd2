"""In somebody else's program: what belongs to the whole process is put back as it was found."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

OURS = ("TSEXP_", "MLFLOW_")
"""Variables that begin so are of one call; what others set as they were imported, the next call needs."""

_lock = threading.Lock()
_inside = 0
_leave = ExitStack()
_by_imports: dict[str, str] = {}


@contextmanager
def guest() -> Iterator[None]:
    """Put back environment, levels of loggers, filters of warnings, MLflow's store and PyTorch's threads.

    Of calls within others, or in several threads at once, the last to end does.
    """
    global _inside, _leave
    with _lock:
        if not _inside:
            _leave = _found()
            os.environ.update({k: v for k, v in _by_imports.items() if k not in os.environ})
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _leave.close()


def _found() -> ExitStack:
    """Note how the process is; closed, it puts that back."""
    leave = ExitStack()
    leave.callback(_environment())
    leave.enter_context(warnings.catch_warnings())
    leave.callback(_levels())
    if "mlflow" in sys.modules:
        import mlflow
        from mlflow.tracking._tracking_service import utils

        # `get_tracking_uri` tells a default, too, and `set_tracking_uri` would make that a choice.
        leave.callback(mlflow.set_tracking_uri, cast(str, utils._tracking_uri))
    if "torch" in sys.modules:
        import torch

        leave.callback(torch.set_num_threads, torch.get_num_threads())
    return leave


def _environment() -> Callable[[], None]:
    before = dict(os.environ)

    def put_back() -> None:
        changed = {k: v for k, v in os.environ.items() if before.get(k) != v}
        _by_imports.update({k: v for k, v in changed.items() if k not in before and not k.startswith(OURS)})
        for name in changed.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)

    return put_back


def _levels() -> Callable[[], None]:
    found: list[logging.Logger] = [logging.getLogger()]
    found += [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    before = [(one, one.level) for one in found]

    def put_back() -> None:
        for one, level in before:
            if one.level != level:
                one.setLevel(level)

    return put_back
