"""Which of several classes a series belongs to: scores (batch, classes) and targets int64 (batch,)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tsexp.config import ConfigError
from tsexp.marks import label_order

if TYPE_CHECKING:  # judging scores needs no PyTorch
    from torch import Tensor

    from tsexp.data import Dataset, FloatArray, IntArray

Rows = list[list[str]]
HEADLINE = "accuracy"


def targets(
    labels: tuple[list[str], list[str]], files: tuple[Any, Any]
) -> tuple[IntArray, IntArray, tuple[str, ...]]:
    """Return indices into the sorted classes of the train split, of both splits, and those classes.

    Raises
    ------
    ConfigError
        If there is one class only, or the test split has others.
    """
    train, test = labels
    classes = tuple(sorted(set(train), key=label_order))
    unknown = set(test) - set(classes)
    if unknown:
        some = ", ".join(sorted(unknown)[:5]) + (", …" if len(unknown) > 5 else "")
        raise ConfigError(f"{files[1]}: labels that the train split does not have: {some}")
    if len(classes) < 2:
        raise ConfigError(f"{files[0]}: one class only; a classifier needs two")
    y_train, y_test = (np.array([classes.index(label) for label in one], np.int64) for one in labels)
    return y_train, y_test, classes


def strata(targets: IntArray) -> IntArray:
    """Each class."""
    return targets


def loss(scores: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats, with label smoothing."""
    from torch.nn import functional as F

    return F.cross_entropy(scores, targets, label_smoothing=smoothing)


def distillation(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL of softened class probabilities (Hinton et al. 2015, arXiv 1503.02531)."""
    from torch.nn import functional as F

    soft, target = F.log_softmax(scores / temperature, -1), F.softmax(teacher / temperature, -1)
    return F.kl_div(soft, target, reduction="batchmean") * temperature * temperature


def Validation(classes: int) -> Any:
    """Return torchmetrics' accuracy."""
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(classes, average="micro")


def chosen(scores: FloatArray) -> IntArray:
    """Class scores (series, classes) → the class with the highest; what is not finite is a guess."""
    return np.nan_to_num(scores).argmax(1)  # type: ignore[no-any-return]


def accuracy(scores: FloatArray, targets: IntArray) -> float:
    """Share of series whose highest score is their label's."""
    return float((chosen(scores) == targets).mean())


def quality(scores: FloatArray, targets: IntArray, prefix: str) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro F1 and negative log-likelihood (nats)."""
    from scipy.special import softmax
    from sklearn.metrics import f1_score, log_loss, recall_score

    scores = np.nan_to_num(scores)  # NaN makes the record invalid; its quality is that of guessing
    probabilities = softmax(scores.astype(np.float64), axis=-1)
    return {
        f"{prefix}/accuracy": accuracy(scores, targets),
        # balanced_accuracy_score is this, and warns of a test split with a single class
        f"{prefix}/balanced_accuracy": float(
            recall_score(
                targets, scores.argmax(1), labels=np.unique(targets), average="macro", zero_division=0
            )
        ),
        f"{prefix}/macro_f1": float(f1_score(targets, scores.argmax(1), average="macro", zero_division=0)),
        f"{prefix}/nll": float(log_loss(targets, probabilities, labels=np.arange(scores.shape[1]))),
    }


def loss_pt(scores: FloatArray, targets: IntArray) -> FloatArray:
    """0 or 100 per series: the mean is the error in points."""
    return 100.0 * (chosen(scores) != targets)  # type: ignore[no-any-return]


def drop(scores: FloatArray, reference: FloatArray, targets: IntArray) -> dict[str, float]:
    """Points of accuracy lost against the reference, with a 95 % interval over paired test predictions.

    The interval is the adjusted Wald one of Bonett and Price (2012, doi:10.3102/1076998611411915): one more
    pair of each kind that differs, so that no flip among n series is no proof that none can happen. It is
    what the report has for a single seed, and leaves out 0 from six flips to one side on, as the exact test
    of McNemar does (a bootstrap does from four); of flips to both sides, up to a p of .064. The very same
    scores have none.
    """
    from scipy.special import stdtrit

    difference = loss_pt(scores, targets) - loss_pt(reference, targets)
    lost, gained = int((difference > 0).sum()), int((difference < 0).sum())
    centre, reach = 0.0, 0.0
    if not np.array_equal(np.nan_to_num(scores), np.nan_to_num(reference)):
        n = len(targets) + 2
        centre = (lost - gained) / n
        variance = ((lost + gained + 2) / n - centre**2) / (n - 1)
        reach = float(stdtrit(n - 1, 0.975)) * math.sqrt(variance)
    return {
        "vs_dense/accuracy_drop_pt": 100 * (lost - gained) / len(targets),
        "vs_dense/accuracy_drop_lo": 100 * max(-1.0, centre - reach),
        "vs_dense/accuracy_drop_hi": 100 * min(1.0, centre + reach),
    }


def pointless(scores: FloatArray, targets: IntArray) -> str:
    """A model that answers the same for all."""
    if np.ptp(targets) and not np.ptp(chosen(scores)):
        return "the same class for every test series: it has learned nothing, or lost everything"
    return ""


def predictions(
    scores: FloatArray, reference: FloatArray, targets: IntArray, dataset: Dataset
) -> tuple[list[str], Rows]:
    """Label, both predictions, and the probabilities of both, with all their digits."""
    from scipy.special import softmax

    p, q = (softmax(s.astype(np.float64), axis=-1) for s in (scores, reference))
    classes = dataset.classes
    heading = ["label", "predicted", "dense_predicted"]
    heading += [f"p_{c}" for c in classes] + [f"dense_p_{c}" for c in classes]
    rows = []
    answers = zip(targets, chosen(scores), chosen(reference), strict=True)
    for i, indices in enumerate(answers):
        names = [classes[index] for index in indices]
        rows.append([*names, *map(repr, p[i].tolist()), *map(repr, q[i].tolist())])
    return heading, rows
