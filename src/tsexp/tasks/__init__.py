"""What is learned from a dataset, and how it is judged: one module per task.

A task is a module with one line in `TASKS` and

``targets(labels, files)``
    Targets of both splits, and the names of what a model answers with, from the labels of both files.
``strata(targets)``
    int64: series that a validation split must hold in equal shares.
``HEADLINE``
    The metric that is shown first.
``loss(scores, targets, smoothing)``, ``distillation(scores, teacher, temperature)``
    What training minimizes; tensors, means over a batch.
``Validation(outputs)``
    A torchmetrics metric of scores and targets, the higher the better, which selects a checkpoint.
``quality(scores, targets, prefix)``
    The metrics of a record, by name.
``loss_pt(scores, targets)``
    The loss of each series, in points: paired, these are what an artifact loses against a reference.
``drop(scores, reference, targets)``
    That, averaged, with its 95 % interval.
``pointless(scores, targets)``
    Why a model has learned nothing, or an empty string.
``predictions(scores, reference, targets, dataset)``
    Heading and rows of ``predictions.csv``.
"""

from tsexp.tasks.table import TASKS, named, of

__all__ = ["TASKS", "named", "of"]
