"""From the store to what people look at.

Nothing here imports training or measuring code: the store is all it knows.
"""

from tsexp.report.console import sweep_table, table
from tsexp.report.front import energy_front
from tsexp.report.front_picture import front_figure
from tsexp.report.store import Row, read
from tsexp.report.sweep_picture import sweep_figure

__all__ = ["Row", "energy_front", "front_figure", "read", "sweep_figure", "sweep_table", "table"]
