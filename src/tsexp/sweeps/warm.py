"""Imported by the server that jobs are forked from, and by nobody else.

What libraries find out at their first use, each job has found out already.

Nothing here may start a thread: it would not survive the fork.
"""

import io

import matplotlib.figure
from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

from tsexp.tracking import origin

origin.git_sha(), origin.changes()  # of the code that this server has imported, and the jobs with it
warn_dependency_requirement_mismatches(["mlflow"])  # lists the modules of all that is installed
figure = matplotlib.figure.Figure()
figure.add_subplot(title="fonts")
figure.savefig(io.BytesIO())
