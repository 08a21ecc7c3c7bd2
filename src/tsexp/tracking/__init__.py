"""MLflow: one run per experiment, a parent run per sweep, with all that it takes to recompute a number."""

from tsexp.tracking.client import (
    VIEW,
    asking,
    end_the_dead,
    expect,
    experiment_of,
    finished,
    has_metric,
    is_there,
    opened,
    said,
    store,
    view_url,
)
from tsexp.tracking.model import requirements
from tsexp.tracking.run import Tracked, as_shown, being_written, log_record, mark_killed, said_of, tracked
from tsexp.tracking.spool import (
    NotDelivered,
    NotKept,
    address,
    by_hand,
    check_home,
    deliver,
    known,
    sync,
    waits,
)
from tsexp.tracking.sweep import close_sweep, sweep_run

__all__ = [
    "VIEW",
    "NotDelivered",
    "NotKept",
    "Tracked",
    "address",
    "as_shown",
    "asking",
    "being_written",
    "by_hand",
    "check_home",
    "close_sweep",
    "deliver",
    "end_the_dead",
    "expect",
    "experiment_of",
    "finished",
    "has_metric",
    "is_there",
    "known",
    "log_record",
    "mark_killed",
    "opened",
    "requirements",
    "said",
    "said_of",
    "store",
    "sweep_run",
    "sync",
    "tracked",
    "view_url",
    "waits",
]
